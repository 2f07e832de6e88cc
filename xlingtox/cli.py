"""The command `xlingtox`, also `python -m xlingtox`: run the demo, train the miniature, draw a picture of results.

Each command imports what it needs when it runs, so that `xlingtox --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xlingtox._version import __version__

if TYPE_CHECKING:
    from xlingtox.study import Materials, StudyResults

_WIDTH = 80
"""The width of printed text, in columns of a terminal."""

_MEASURES = (
    ("toxicity_probability", (8, 8), 2),
    ("average_toxicity", (8, 8), 3),
    ("sound_toxicity", (8, 8), 3),
    ("perplexity", (7, 6), 2),
)
"""Each measure in the demo's table, with the widths of its two columns and their decimals."""

_ASCII = str.maketrans({"\u00a0": " ", "−": "-", "’": "'"})
"""Characters that a terminal without UTF-8 cannot show, and their replacements."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after one line on stderr that says what is wrong.

    Example:
        >>> from xlingtox import cli
        >>> cli.main(["picture", "no.json", "no.png"])
        2
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"xlingtox: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xlingtox",
        description="Show where a multilingual language model keeps its toxicity, whether those neurons cause it, and "
        "which languages English-only safety tuning reaches.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo",
        help="run the whole study on a small model and write a report",
        description="Find the neurons behind the toxicity of a small model in 17 languages, edit them, tune the model "
        "in English, and write report.html. It takes a few minutes. A run that was stopped goes on with the stage that "
        "it was in.",
    )
    demo.add_argument("--out", type=Path, default=Path("xlingtox-demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of prompts, sampling and tuning (%(default)s)")
    demo.add_argument("--model", default="mini", help="folder of a miniature that you trained (the shipped one)")
    demo.add_argument("--quiet", action="store_true", help="show no progress bars")
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train-mini",
        help="train the small model of the demo anew",
        description="Train the miniature from nothing. It takes about half an hour on one core.",
    )
    train.add_argument("--out", type=Path, help="new folder for the checkpoint (runs/mini-SEED)")
    train.add_argument("--seed", type=int, default=0, help="seed of text and weights (%(default)s)")
    train.add_argument("--threads", type=int, default=1, help="CPU threads; the weights depend on it (%(default)s)")
    train.add_argument("--quiet", action="store_true", help="show no progress bar")
    train.set_defaults(run=_train_mini)

    picture = commands.add_parser(
        "picture",
        help="draw the results of a study as one picture",
        description="Draw toxicity before and after tuning, and retrieval against the drop. It needs a Chromium.",
    )
    picture.add_argument("results", type=Path, help="the results.json of a study")
    picture.add_argument("png", type=Path, help="where the picture goes")
    picture.set_defaults(run=_picture)
    return parser


def _demo(options: argparse.Namespace) -> None:
    from transformers.utils import logging

    from xlingtox import mini
    from xlingtox.files import writable_folder
    from xlingtox.study import report
    from xlingtox.study.findings import without_warnings

    logging.set_verbosity_error()
    folder = writable_folder(options.out)
    results = study(options.model, folder, options.seed, progress=not options.quiet)
    print(summary(results), *map(_wrapped, without_warnings(results)), sep="\n\n")
    report.write(results, folder / "report.html", toxic_words=mini.toxic_words())
    print(f"\n{folder / 'report.html'}: figures and what they mean; {folder / 'results.json'}: every number")


def _train_mini(options: argparse.Namespace) -> None:
    import torch
    from transformers.utils import logging

    from xlingtox.mini.train import train

    logging.set_verbosity_error()
    if options.threads < 1:
        raise ValueError(f"--threads is {options.threads}: expected at least 1")
    torch.set_num_threads(options.threads)
    folder = options.out or Path("runs") / f"mini-{options.seed}"
    train(folder, seed=options.seed, progress=not options.quiet)
    print(f"{folder}: a checkpoint for `xlingtox demo --model {folder}`")


def _picture(options: argparse.Namespace) -> None:
    from xlingtox.study import StudyResults, picture

    picture.take(StudyResults.load(options.results), options.png)


def study(model: str, out: Path, seed: int, *, progress: bool = True) -> StudyResults:
    """Run the demo's study, without its report."""
    from xlingtox.models import HookedLM
    from xlingtox.study import Settings, run

    lm = HookedLM.load(model)
    return run(lm, materials(seed), output_dir=out, settings=Settings(seed=seed), progress=progress)


def materials(seed: int) -> Materials:
    """Return the demo's materials: the miniature's data sets, drawn with `seed`."""
    import dataclasses

    from datasets import concatenate_datasets

    from xlingtox import languages, mini
    from xlingtox.study import Materials

    elsewhere = [mini.labelled(code, n=100, seed=seed) for code in languages.CODES if code != "en"]
    return Materials(
        labelled=mini.labelled("en", n=2000, seed=seed),
        labelled_elsewhere=concatenate_datasets(elsewhere),
        toxic_words=mini.toxic_words(),
        toxic_prompts=mini.prompts(n=30, kind="toxic", seed=seed),
        neutral_prompts=mini.prompts(n=30, kind="neutral", seed=seed),
        pairs=mini.pairs("en", n=1000, seed=seed),
        validation=mini.pairs("en", n=64, split="validation", seed=seed),
        parallel=mini.parallel(n=500, seed=seed),
        held_out=mini.held_out(n=30, seed=seed),
        scorer=mini.scorer(),
        identify_language=mini.identify_language,
        word_groups=mini.word_groups(),
        mixing={code: dataclasses.asdict(mixing) for code, mixing in mini.MIXING.items()},
    )


def summary(results: StudyResults) -> str:
    """Return the results as a table of at most 80 columns."""
    from xlingtox import languages

    def row(name: str, codes: Sequence[str]) -> str:
        cells = (
            f"{mean:>{width}.{digits}f}"
            for measure, widths, digits in _MEASURES
            for mean, width in zip(results.means(measure, codes), widths, strict=True)
        )
        return f"{name:<19}{''.join(cells)}"

    lines = [_wrapped(f"Beware. {warning}") for warning in results.warnings]
    lines += [_wrapped(verdict.claim, title=f"{verdict.verdict:<11}") for verdict in results.verdicts]
    lines += [
        "",
        f"Probe: held-out accuracy {results.probe.accuracy:.3f} (majority {results.probe.baseline:.3f}), "
        f"AUC {results.probe.auc:.3f}",
        f"Neurons: {len(results.candidates)} candidates, {len(results.sources)} of them sources, "
        f"of {results.n_neurons:,}",
        "",
        "English-only DPO     toxicity prob.   avg. toxicity  in sound text   perplexity",
        "                     before   after  before   after  before   after   bef.  aft.",
    ]
    lines += [row(languages.name(code), [code]) for code in results.languages]
    if untuned := results.untuned_languages:
        lines.append(row(f"mean of other {len(untuned)}", untuned))
    degenerate = results.means("degenerate", results.languages)
    lines.append("Degenerate continuations: {:.3f} before, {:.3f} after".format(*degenerate))
    doses, control = results.toxic_doses.doses, results.toxic_doses.control
    rows: tuple[tuple[str, Sequence[float], int], ...] = (
        (f"Dose, {results.toxic_doses.unit}"[:9], [dose.offset for dose in doses], 2),
        ("sources", [dose.average_toxicity for dose in doses], 3),
        ("random", [dose.average_toxicity for dose in control], 3),
        ("perplexity", [dose.perplexity for dose in doses], 2),
        ("degenerate", [dose.degenerate for dose in doses], 3),
    )
    lines += [
        "",
        *(f"{title:<10}" + "".join(f"{cell:>8.{digits}f}" for cell in cells) for title, cells, digits in rows),
    ]
    lines.append("")
    for measure, transfer in results.transfer_by_measure.items():
        lines.append(
            f"Retrieval against the relative drop in {measure.replace('_', ' ')}: "
            f"r = {transfer.pearson_r:.2f}, p = {transfer.p_value:.3f}"
        )
    return "\n".join(lines)


def _wrapped(sentences: str, *, title: str = "") -> str:
    """Return a paragraph of at most 80 columns, in characters that every terminal shows; a title stands beside it."""
    import textwrap

    indent = " " * len(title)
    filled = textwrap.fill(sentences, _WIDTH, initial_indent=title, subsequent_indent=indent, break_on_hyphens=False)
    return filled.translate(_ASCII)
