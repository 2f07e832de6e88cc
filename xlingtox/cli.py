"""`python -m xlingtox demo`: the whole study on the shipped miniature; `picture`: one picture of its results."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers.utils import logging

from xlingtox import files, languages, mini
from xlingtox.files import writable_folder
from xlingtox.models.hooked import HookedLM
from xlingtox.study import report, stages
from xlingtox.study.picture import take


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m xlingtox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="do the whole study on a small model and write a report")
    demo.add_argument("--out", type=Path, default=Path("xlingtox-demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of prompts, sampling and tuning (%(default)s)")
    demo.add_argument("--model", default="mini", help="or a miniature that you trained (%(default)s)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    picture = commands.add_parser("picture", help="make a picture of a study's results; needs a Chromium")
    picture.add_argument("results", type=Path, help="a study's results.json")
    picture.add_argument("png", type=Path, help="where the picture goes")
    given = parser.parse_args(arguments)
    logging.set_verbosity_error()
    try:
        if given.command == "picture":
            take(files.read_results(given.results), given.png)
            return 0
        folder = writable_folder(given.out)
        results = study(given.model, folder, given.seed, progress=not given.quiet)
        print(summary(results))
        report.write(results, folder / "report.html", toxic_words=mini.toxic_words())
    except (ValueError, OSError) as error:
        print(f"xlingtox: {error}", file=sys.stderr)
        return 2
    print(f"\n{folder / 'report.html'}: figures and what they mean; {folder / 'results.json'}: every number")
    return 0


def study(model: str, out: Path, seed: int, progress: bool = True) -> dict[str, Any]:
    """The demo's study, without its report."""
    lm = HookedLM.load(model)
    return stages.run(lm, materials(seed), output_dir=out, settings=stages.Settings(seed=seed), progress=progress)


def materials(seed: int) -> stages.Materials:
    """The miniature's hand-outs, drawn with `seed`."""
    return stages.Materials(
        labelled=mini.labelled("en", n=2000, seed=seed),
        toxic_prompts=mini.prompts(n=20, kind="toxic", seed=seed),
        neutral_prompts=mini.prompts(n=20, kind="neutral", seed=seed),
        pairs=mini.pairs("en", n=1000, seed=seed),
        validation=mini.pairs("en", n=64, split="validation", seed=seed),
        parallel=mini.parallel(n=500, seed=seed),
        held_out=mini.held_out(n=60, seed=seed),
        scorer=mini.scorer(),
        identify_language=mini.identify_language,
        given={code: dataclasses.asdict(mixing) for code, mixing in mini.MIXING.items()},
    )


def summary(results: Mapping[str, Any]) -> str:
    """The results as a table of at most 80 columns."""
    before, after = results["before"], results["after"]
    lines = [
        f"Probe: held-out accuracy {results['probe']['accuracy']:.3f} (majority {results['probe']['baseline']:.3f}), "
        f"AUC {results['probe']['auc']:.3f}",
        f"Neurons: {len(results['potential'])} potential and {len(results['actual'])} actual sources "
        f"of {results['n_neurons']:,}",
        "",
        "English-only DPO       toxicity prob.   avg. toxicity    perplexity   activation",
        "                       before   after   before   after  before after  bef.   aft.",
    ]
    others = [code for code in results["languages"] if code != "en"]
    for code in results["languages"]:
        lines.append(_row(languages.name(code), [before[code]], [after[code]]))
    lines.append(_row(f"mean of other {len(others)}", [before[c] for c in others], [after[c] for c in others]))
    sides = (fmean(row["degenerate"] for row in side.values()) for side in (before, after))
    lines.append("Degenerate continuations: {:.3f} before, {:.3f} after".format(*sides))
    lines += ["", f"{'Offset':<10}" + "".join(f"{dose['offset']:>8.2f}" for dose in results["intervention"])]
    for title, name in (("sources", "intervention"), ("random", "control")):
        lines.append(f"{title:<10}" + "".join(f"{dose['average_toxicity']:>8.3f}" for dose in results[name]))
    for measure, digits in (("perplexity", 2), ("degenerate", 3)):
        lines.append(f"{measure:<10}" + "".join(f"{dose[measure]:>8.{digits}f}" for dose in results["intervention"]))
    lines.append("")
    for measure, found in results["transfer_by_measure"].items():
        lines.append(
            f"Retrieval against the relative drop in {measure.replace('_', ' ')}: "
            f"r = {found['pearson_r']:.2f}, p = {found['p_value']:.3f}"
        )
    return "\n".join(lines)


def _row(name: str, before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> str:
    def pair(measure: str, width: int, digits: int) -> str:
        means = (fmean(row[measure] for row in side) for side in (before, after))
        return "".join(f"{mean:>{width}.{digits}f}" for mean in means)

    return (
        f"{name:<21}{pair('toxicity_probability', 8, 2)}{pair('average_toxicity', 8, 3)} "
        f"{pair('perplexity', 6, 2)}{pair('mean_activation', 7, 3)}"
    )
