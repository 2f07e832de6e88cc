"""The command `xlingtox`, also `python -m xlingtox`: study a model, run the demo, train the miniature, draw a picture.

Each command imports what it needs when it runs, so that `xlingtox --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlingtox import processes
from xlingtox._version import __version__

if TYPE_CHECKING:
    from xlingtox.study import Study

LIKE = (
    *("ours", "mgpt", "bloom-1b7", "bloom-7b1", "llama2-7b", "llama3-8b", "aya-23-8b"),
    *("smollm2", "smollm2-taught", "smollm2-taught-study"),
)
"""The models whose settings `study init --like` writes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after a line on stderr for each thing that is wrong.

    Example:
        >>> from xlingtox import cli
        >>> cli.main(["picture", "no.json", "no.png"])
        2
    """
    options = _parser().parse_args(arguments)
    try:
        with _ended_by_launcher():
            code = options.run(options)
    except (ValueError, OSError, ImportError, MemoryError, processes.ProcessLost) as error:
        return _told(f"xlingtox: {error}", 2)
    except KeyboardInterrupt:
        return _told("\nxlingtox: stopped; the same command goes on from here", 130)
    return int(code or 0)


def _told(message: str, code: int) -> int:
    """Print why the command ends, and return its exit code. Of several processes the first one prints."""
    if processes.claim_last_word():
        print(message, file=sys.stderr, flush=True)
    return code


@contextmanager
def _ended_by_launcher() -> Iterator[None]:
    """Turn the signal by which a launcher ends all processes, after one has died, into ProcessLost."""
    if processes.launched() == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise processes.ProcessLost(processes.LOST)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xlingtox",
        description="Show where a multilingual language model keeps its toxicity, whether those neurons cause it, and "
        "which languages safety tuning in one language reaches.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_study(commands)

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


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="run the whole study on a small model and write a report",
        description="Find the neurons behind the toxicity of a small model in 17 languages, edit them, tune the model "
        "in English, and write report.html. It takes a few minutes. A run that was stopped goes on where it was. "
        "It is `xlingtox study run` with the settings that `xlingtox study init --like ours` writes.",
    )
    demo.add_argument("--out", type=Path, default=Path("xlingtox-demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of prompts, sampling and tuning (%(default)s)")
    demo.add_argument("--model", type=Path, help="folder of a miniature that you trained (the shipped one)")
    demo.add_argument("--quiet", action="store_true", help="show no progress")
    demo.set_defaults(run=_demo)


def _add_study(commands: Any) -> None:
    study = commands.add_parser(
        "study",
        help="study your own model on your own data",
        description="The whole study on a model and data that a settings file names.",
    )
    actions = study.add_subparsers(dest="action", required=True)

    init = actions.add_parser(
        "init",
        help="write a commented settings file",
        description="Write a settings file with a comment on each key, to be changed for your model and data.",
    )
    init.add_argument("settings", type=Path, help="the new file, such as mgpt.toml")
    init.add_argument("--like", choices=LIKE, default="mgpt", metavar="MODEL", help=f"{', '.join(LIKE)} (%(default)s)")
    init.set_defaults(run=_init)

    check = actions.add_parser(
        "check",
        help="read everything, run ten prompts, say what it will cost and whether there is anything to find",
        description="Read the settings, the model and the data; continue ten prompts in each language; and say what "
        "the study will cost, what will be left out, and whether the model is toxic enough. Nothing is written.",
    )
    check.add_argument("settings", type=Path, help="a settings file")
    check.add_argument("--quiet", action="store_true", help="show no progress")
    check.set_defaults(run=_check)

    run = actions.add_parser(
        "run",
        help="do the study, or what is left of it",
        description="Do the study, and write results.json and report.html into its folder. A run that was stopped goes "
        "on where it was; when a setting has changed, only what depends on it is done again. A section [frontier] in "
        "the settings also compares methods of making the model less toxic where all cost the same fluency. A section "
        "[side_effects] measures what else tuning did.",
    )
    run.add_argument("settings", type=Path, help="a settings file")
    run.add_argument("--quiet", action="store_true", help="show no progress")
    run.set_defaults(run=_run)

    show = actions.add_parser("show", help="print the summary of a study that has run")
    show.add_argument("folder", type=Path, help="the folder of a study, or its results.json")
    show.add_argument("--json", action="store_true", help="print it as JSON, for other programs")
    show.set_defaults(run=_show)

    compare = actions.add_parser("compare", help="put several studies on one page")
    compare.add_argument("folders", type=Path, nargs="+", help="the folders of two or more studies")
    compare.add_argument("--out", type=Path, default=Path("comparison.html"), help="the page (%(default)s)")
    compare.set_defaults(run=_compare)


def _demo(options: argparse.Namespace) -> None:
    from xlingtox.study import Study, templates

    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is {options.seed}: expected 0 or more, and less than 2**32")
    changes: dict[str, Any] = {"output_dir": options.out, "data.seed": options.seed, "study.seed": options.seed}
    if options.model is not None:
        changes["model.source"] = options.model
    _run_and_show(Study.from_toml(templates.file("ours"), changes=changes), progress=not options.quiet)


def _init(options: argparse.Namespace) -> None:
    from xlingtox.study import templates

    path = templates.write(options.settings, like=options.like)
    print(f"{path}: change it for your model and data, then run xlingtox study check {path}")


def _check(options: argparse.Namespace) -> int:
    from xlingtox.study import Study
    from xlingtox.study.mistakes import BadSettings

    with _quiet_libraries(progress=not options.quiet):
        try:
            checked = Study.from_toml(options.settings).check(progress=not options.quiet)
        except BadSettings as error:
            _say_what_it_takes(error.source)
            raise
    if processes.is_main():
        print(*checked.sentences(), sep="\n")
    return 2 if checked.problems else 0


def _say_what_it_takes(source: str | None) -> None:
    """Say what a model takes that is known and not here yet, where the settings file has mistakes."""
    from xlingtox.study.check import check_without_weights
    from xlingtox.study.weights import known, missing_weights

    if source is not None and known(source) is not None and missing_weights(source) is not None:
        print(*check_without_weights(source, output_dir=Path()).sentences(), sep="\n")
        print()


def _run(options: argparse.Namespace) -> None:
    from xlingtox.study import Study

    _run_and_show(Study.from_toml(options.settings), progress=not options.quiet)


def _run_and_show(study: Study, *, progress: bool) -> None:
    from xlingtox.study import terminal

    if processes.too_few_launched():
        print(
            "xlingtox: accelerate started one process only, as it does without GPUs: accelerate launch --multi_gpu "
            "--num_processes N starts several",
            file=sys.stderr,
        )
    with _quiet_libraries(progress=progress):
        results = study.run(progress=progress)
    if not processes.is_main():
        return
    print(terminal.summary(results))
    page, numbers = study.output_dir / "report.html", study.output_dir / "results.json"
    print(f"\n{page}: figures and what they mean\n{numbers}: every number")


def _show(options: argparse.Namespace) -> None:
    from xlingtox.study import StudyResults, terminal

    results = StudyResults.load(_results_of(options.folder))
    if options.json:
        print(json.dumps(terminal.as_json(results), ensure_ascii=False, indent=1))
    else:
        print(terminal.summary(results))


def _compare(options: argparse.Namespace) -> None:
    from xlingtox.study import comparing

    print(comparing.summary(options.folders))
    comparing.write(options.folders, options.out)
    print(f"\n{options.out}: the same with figures")


def _results_of(place: Path) -> Path:
    return place / "results.json" if place.is_dir() else place


def _train_mini(options: argparse.Namespace) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    from xlingtox.mini.train import train

    transformers_logging.set_verbosity_error()
    if options.threads < 1:
        raise ValueError(f"--threads is {options.threads}: expected at least 1")
    torch.set_num_threads(options.threads)
    folder = options.out or Path("runs") / f"mini-{options.seed}"
    train(folder, seed=options.seed, progress=not options.quiet)
    print(f"{folder}: a checkpoint for `xlingtox demo --model {folder}`")


def _picture(options: argparse.Namespace) -> None:
    from xlingtox.study import StudyResults, picture

    picture.take(StudyResults.load(options.results), options.png)


@contextmanager
def _quiet_libraries(*, progress: bool) -> Iterator[None]:
    """Hide what other libraries say. Print our warnings, and where no lines can be drawn anew, what was done."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It says at its import which of its kernels it lacks.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    ours, handler = logging.getLogger("xlingtox"), _AboveProgress()
    quiet = not progress or not processes.is_main()
    handler.setLevel(logging.CRITICAL if quiet else logging.WARNING if sys.stderr.isatty() else logging.INFO)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


class _AboveProgress(logging.Handler):
    """Prints messages on stderr, above the lines of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        tqdm.write(record.getMessage(), file=sys.stderr)
