"""Kill what writes files at random moments: `python tests/benchmarks/kills.py [--saves 200 --studies 40 --tunings 40]`.

A process that saves, studies or tunes is killed, now after a random time, now before a random one of its operations on
files. Saves must leave whole files; studies and tuning runs, started again until they are done, must leave what an
uninterrupted one leaves: the same files with the same content, but for how long things took. All the while another
process reads the folder. Exits with 1 if not.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import torch
import trl
from datasets import Dataset

from xlingtox import mini, tuning
from xlingtox.models.hooked import HookedLM
from xlingtox.study import Materials, Settings, report
from xlingtox.study import run as run_study

sys.path.append(str(Path(__file__).parents[1]))
from kept import contents, save_all

SIZE = 4000
"""Numbers in a result: files of some hundred kilobytes."""

CHANGING = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "sqlite3.connect")
"""Audit events of operations on files."""

TIMED = ("seconds", "runtime", "per_second")
"""The ends of names of what differs from run to run."""


# --- killing


def events(folder: Path, kill_before: int | None = None) -> Counter[str]:
    """Count this process's operations on files below a folder, and kill it before one of them."""
    counts: Counter[str] = Counter()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGING and any(str(folder) in str(each) for each in arguments[:2]):
            counts["all"] += 1
            if counts["all"] == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return counts


def killed(work: Callable[[], None], folder: Path, seconds: float | None = None, event: int | None = None) -> bool:
    """Do the work in a child process and kill it after a time or before an operation; False if it ended before.

    Raises:
        RuntimeError: it failed.
    """
    said = folder.parent / f"{folder.name}.said"
    said.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            counts = events(folder, event)
            work()
            said.write_text(str(counts["all"]))
            code = 0
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    deadline = None if seconds is None else time.perf_counter() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if deadline is not None and time.perf_counter() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(said.read_text())
    return False


# --- saves


def debris(folder: Path) -> list[str]:
    """Hidden files and folders: what was not moved into place."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def kill_saves(lm: HookedLM, n: int, rng: random.Random, work: Path) -> None:
    """Save results over those before until killed, n times: each file must be one of those that were saved."""
    versions = []
    for value in (1.0, 2.0, 3.0):
        began = time.perf_counter()
        save_all(lm, value, work / f"version-{value}", SIZE)
        seconds = time.perf_counter() - began
        versions.append(contents(work / f"version-{value}"))
    assert all(first != then for first, then in zip(versions[0].values(), versions[1].values(), strict=True))
    folder = work / "saves"
    save_all(lm, 1.0, folder, SIZE)

    def save() -> None:
        for i in range(1000):
            save_all(lm, 1.0 + i % 3, folder, SIZE)

    left = 0
    for i in range(n):
        how: dict[str, Any] = {"seconds": 2 * seconds * rng.random()} if i % 2 else {"event": rng.randint(1, 150)}
        if not killed(save, folder, **how):
            raise AssertionError("the saves ended before they were killed")
        left += len(debris(folder))
        for name, content in contents(folder).items():
            if all(content != version[name] for version in versions):
                raise AssertionError(f"after kill {i} ({how}), {name} is not what was saved")
    save_all(lm, 1.0, folder, SIZE)
    print(f"saves: {n} kills, every file whole; {left} partial files were left, {len(debris(folder))} in the end")
    if debris(folder):
        raise AssertionError(f"left: {debris(folder)}")


# --- studies and tuning runs


def untimed(value: Any) -> Any:
    """JSON without what says how long something took."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if not key.endswith(TIMED)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def outcome(folder: Path) -> dict[str, Any]:
    """Every file below a folder: JSON without times and without the folder's own path, and scores as a table."""
    found: dict[str, Any] = dict(contents(folder))
    for name, content in found.items():
        if name.endswith(".json"):
            found[name] = untimed(json.loads(content.replace(str(folder).encode(), b"")))
        if name.endswith(".log"):
            found[name] = b""  # each run adds to it
        if name.endswith(".sqlite"):
            found[name] = rows_of(folder / name)
    # The numbers of a stage that is done, and SQLite's own files, stay as long as the other process has them open.
    open_elsewhere = re.compile(r"(^|/)stages/[^/]*\.sqlite|\.sqlite-(wal|shm)$")
    found = {name: content for name, content in found.items() if not open_elsewhere.search(name)}
    return found | dict.fromkeys(debris(folder), "hidden")


def rows_of(file: Path) -> dict[str, list[str]]:
    """The rows of each table of a SQLite file, whatever their order; a scorer has another number in each file."""
    with contextlib.closing(sqlite3.connect(file)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(map(repr, db.execute(f"SELECT * FROM {name}").fetchall())) for name in tables}


@contextlib.contextmanager
def read_by_another(folder: Path) -> Iterator[None]:
    """Read every file below a folder again and again in another process, databases too, while the block lasts."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        while True:
            with contextlib.suppress(OSError, sqlite3.Error):
                for place in folder.rglob("*"):
                    if place.suffix == ".sqlite":
                        rows_of(place)
                    elif place.is_file():
                        place.read_bytes()
            time.sleep(0.01)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of the files that are not the same."""
    # As text, in which one NaN is like another, and the order of names does not matter.
    first, then = (
        {name: json.dumps(value, sort_keys=True, default=repr) for name, value in side.items()} for side in (one, other)
    )
    return sorted(name for name in first.keys() | then.keys() if first.get(name) != then.get(name))


def kill_runs(what: str, run: Callable[[Path], None], n: int, rng: random.Random, work: Path) -> None:
    """Kill runs until there were n kills, start each again until it is done, and compare it with one left alone."""
    alone = work / "alone"
    began = time.perf_counter()
    killed(lambda: run(alone), alone)
    seconds, operations = time.perf_counter() - began, int((work / "alone.said").read_text())
    expected = outcome(alone)
    print(f"{what}: left alone, {seconds:.1f} s and {operations} operations on files", flush=True)
    kills, finished, began = 0, 0, time.perf_counter()
    while kills < n:
        folder, history = work / f"run-{finished}", []
        while True:
            how: dict[str, Any] = {}
            if kills < n:
                how = {"seconds": seconds * rng.random()} if kills % 2 else {"event": rng.randint(1, operations)}
            try:
                with read_by_another(folder):
                    over = not killed(lambda folder=folder: run(folder), folder, **how)
            except RuntimeError as error:
                raise AssertionError(f"{what}: after {[*history, how]}, it could not be resumed: {error}") from error
            if over:
                break
            kills += 1
            history.append(how)
        finished += 1
        if wrong := differing(outcome(folder), expected):
            raise AssertionError(f"{what}: after {history}, other content in {wrong}; see {folder} and {alone}")
        shutil.rmtree(folder)
    print(
        f"{what}: {kills} kills, {finished} runs, all as if left alone; {time.perf_counter() - began:.0f} s", flush=True
    )


CODES = ("en", "es", "fr")


def of(table: Dataset, n: int) -> Dataset:
    """The first n rows of each of a few languages."""
    seen: Counter[str] = Counter()
    rows = []
    for row in table:
        if row["language"] in CODES and seen[row["language"]] < n:
            rows.append(row)
        seen[row["language"]] += 1
    return Dataset.from_list(rows)


def study(lm: HookedLM) -> Callable[[Path], None]:
    """A study of the miniature in three languages, as small as it can be, with its report."""
    materials = Materials(
        labelled=mini.labelled("en", n=40),
        toxic_prompts=of(mini.prompts(n=2, kind="toxic"), 2),
        neutral_prompts=of(mini.prompts(n=2, kind="neutral"), 2),
        pairs=mini.pairs("en", n=12),
        validation=mini.pairs("en", n=4, split="validation"),
        parallel=mini.parallel(n=8, languages=CODES),
        held_out=of(mini.held_out(n=4), 2),
        scorer=mini.scorer(),
    )
    settings = Settings(
        k=12,
        offsets=(0.0, -0.5),
        amplifications=(0.0, 0.5),
        n_random=1,
        n_random_amplified=1,
        dose_prompts=1,
        n_samples=3,
        max_new_tokens=6,
        recipe=dataclasses.replace(tuning.MINI, steps=4, batch_size=4, evaluate_every=2, save_every=2),
    )

    def run(folder: Path) -> None:
        results = run_study(lm, materials, output_dir=folder, settings=settings, progress=False)
        # A page says how long its study took.
        report.write(dataclasses.replace(results, seconds={}), folder / "report.html")

    return run


def tune(lm: HookedLM, **changes: Any) -> Callable[[Path], None]:
    """A tuning run of the miniature, of six steps."""
    pairs, validation = mini.pairs("en", n=24), mini.pairs("en", n=4, split="validation")
    short = {"steps": 6, "batch_size": 4, "save_every": 2, "evaluate_every": 2}
    recipe = dataclasses.replace(tuning.MINI, **short | changes)

    def run(folder: Path) -> None:
        tuning.tune_dpo(lm, pairs, output_dir=folder, recipe=recipe, validation=validation, progress=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=200, help="kills of saves (%(default)s)")
    parser.add_argument("--studies", type=int, default=40, help="kills of a small study (%(default)s)")
    parser.add_argument("--tunings", type=int, default=40, help="kills of a small tuning run (%(default)s)")
    parser.add_argument("--adapters", type=int, default=10, help="kills of one with LoRA (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the moments")
    parser.add_argument(
        "--keep", type=Path, help="an empty folder to work in, which is kept (default: a temporary one)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)  # a child that was forked must not wait for threads that it has not
    rng = random.Random(given.seed)
    print(f"seed {given.seed}, TRL {trl.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = given.keep or Path(temporary)
        lm = HookedLM.load("mini")
        recipes = {
            "study": study(lm),
            "tuning": tune(lm, patience=2),
            "adapter": tune(lm, lora=tuning.Lora(rank=4, bits=None)),
        }
        counts = {"saves": given.saves, "study": given.studies, "tuning": given.tunings, "adapter": given.adapters}
        for what, n in counts.items():
            place = work / what
            place.mkdir(parents=True)
            if n and what == "saves":
                kill_saves(lm, n, rng, place)
            elif n:
                kill_runs(what, recipes[what], n, rng, place)


if __name__ == "__main__":
    main()
