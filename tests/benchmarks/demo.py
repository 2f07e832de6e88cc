"""Where the demo's time goes: `python tests/benchmarks/demo.py [--other CHECKOUT] [--per-language 5]`.

It prints the processor time of each stage, with one thread, so that other work on the machine matters little. With
--other, the demo of another checkout of this project takes turns with this one's, and the ratios are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]


def as_run(out: Path, per_language: int) -> None:
    """Run the demo in this process, and print the processor time of each stage."""
    from xlingtox.study import Study, stages, templates

    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @wraps(work)
        def stage(study: Any) -> Any:
            began = time.process_time()
            result = work(study)
            seconds[name] = time.process_time() - began
            return result

        return stage

    stages.WORK.update({name: timed(name, work) for name, work in stages.WORK.items()})  # type: ignore[attr-defined]
    changes = {"output_dir": out, "data.per_language": per_language}
    Study.from_toml(templates.file("ours"), changes=changes).run(progress=False)
    seconds["all, with start and report"] = time.process_time()
    print("seconds " + json.dumps(seconds))


def run(checkout: Path, per_language: int) -> dict[str, float]:
    """Run the demo of a checkout in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--as-run", str(Path(place) / "out"), "--per-language", str(per_language)]
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not lines:
        sys.exit(done.stderr[-3000:])
    return json.loads(lines[0].removeprefix("seconds "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="another checkout, such as a git worktree of an older commit")
    parser.add_argument("--per-language", type=int, default=30, help="prompts in each language (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--as-run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_run is not None:
        as_run(given.as_run, given.per_language)
        return
    runs: dict[str, list[dict[str, float]]] = {"this": [], "other": []}
    for _ in range(given.rounds):
        runs["this"].append(run(HERE, given.per_language))
        if given.other is not None:
            runs["other"].append(run(given.other.resolve(), given.per_language))
    print("| Stage | Processor seconds" + (" | The other's | Ratio |" if given.other else " |"))
    print("| --- | ---" + (" | --- | --- |" if given.other else " |"))
    for stage in runs["this"][0]:
        cells = [f"{statistics.median(each[stage] for each in runs['this']):.1f}"]
        if given.other is not None:
            pairs = zip(runs["this"], runs["other"], strict=True)
            ratios = [ours[stage] / theirs[stage] for ours, theirs in pairs if stage in theirs]
            cells += [f"{statistics.median(each.get(stage, float('nan')) for each in runs['other']):.1f}"]
            cells += [f"{statistics.median(ratios):.2f}" if ratios else "new"]
        print("| " + " | ".join([stage, *cells]) + " |")


if __name__ == "__main__":
    main()
