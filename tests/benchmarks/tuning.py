"""What `tune_dpo` costs: `python tests/benchmarks/tuning.py [--shape mini] [--only memory]`.

On the CPU, against a bare DPOTrainer with the same arguments: ratios within one run, medians of rounds in which the
ways take turns. Memory is that of fresh processes, beyond what they had when everything was imported: `--batch 1
--length 16` for weights that dominate, `--length 64` for activations that tell. Random weights; nothing is downloaded.
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import io
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
import trl
from datasets import Dataset, load_from_disk
from engine import SHAPES, model_of, show, timed

import xlingtox as xt
from xlingtox.tuning import Recipe

# What is freed goes back to the system at once, so that what is resident is what is held.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}

OURS, BARE, BESIDE = "tune_dpo", "TRL", "TRL, a second model as the reference"
AGAIN = "tune_dpo, gradient checkpointing"


def pairs_of(n: int, length: int, folder: Path) -> Dataset:
    """Pairs of at least `length` tokens, in a new folder, where TRL then keeps the reference's log-probabilities."""
    rng = random.Random(0)
    words = [word for row in xt.mini.parallel(n=100).to_list() for text in row.values() for word in text.split()]
    texts = {"prompt": 2, "chosen": length, "rejected": length}
    rows = [{name: " ".join(["", *rng.sample(words, k)]) for name, k in texts.items()} for _ in range(n)]
    Dataset.from_list(rows).save_to_disk(folder)
    return load_from_disk(folder)


def checkpoint_of(shape: str, folder: Path) -> None:
    model_of(shape, "cpu", torch.float32).save_pretrained(folder)
    xt.HookedLM.load("mini").tokenizer.save_pretrained(folder)


class Watched(trl.DPOTrainer):
    """TRL's trainer with one callback more, the same for all ways."""

    watch: transformers.TrainerCallback

    def __init__(self, callbacks: Sequence[Any] = (), **options: Any) -> None:
        super().__init__(callbacks=[*callbacks, self.watch], **options)


def tune(way: str, model: Path, recipe: Recipe, out: Path, watch: transformers.TrainerCallback) -> None:
    """From the checkpoint's folder to the tuned one's."""
    pairs = pairs_of(4 * recipe.batch_size, recipe.max_length, out / "pairs")
    Watched.watch = watch
    if way in (OURS, AGAIN):
        recipe = dataclasses.replace(recipe, gradient_checkpointing=way == AGAIN)
        xt.tune_dpo(model, pairs, output_dir=out / "tuned", recipe=recipe, progress=False)
        return
    given = transformers.AutoModelForCausalLM.from_pretrained(model)
    arguments = recipe.arguments(recipe.max_length, validated=False, on_cpu=True)
    arguments["precompute_ref_log_probs"] = way == BARE
    trainer = Watched(
        model=given,
        ref_model=copy.deepcopy(given) if way == BESIDE else None,
        args=trl.DPOConfig(output_dir=str(out / "checkpoints"), **arguments),
        train_dataset=pairs,
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    trainer.save_model(str(out / "tuned"))


class Clock(transformers.TrainerCallback):
    """Time from the beginning of each step to that of the next: with its log, without loading and saving."""

    def __init__(self) -> None:
        self.began: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began.append((time.perf_counter(), time.process_time()))

    def steps(self) -> list[tuple[float, ...]]:
        # The first step makes the optimiser's state.
        pairs = itertools.pairwise(self.began[1:])
        return [tuple(after - before for before, after in zip(*pair, strict=True)) for pair in pairs]


def seconds(model: Path, recipe: Recipe, rounds: int, work: Path) -> None:
    steps: dict[str, list[tuple[float, ...]]] = {OURS: [], BARE: []}
    fresh = itertools.count()

    def way(name: str) -> None:
        clock, turn = Clock(), next(fresh)
        with contextlib.redirect_stdout(io.StringIO()):
            tune(name, model, recipe, work / str(turn), clock)
        gc.collect()
        if turn >= len(steps):  # `timed` leaves out the first round
            steps[name].append(tuple(map(statistics.median, zip(*clock.steps(), strict=True))))

    ways: dict[str, Callable[[], Any]] = {name: (lambda name=name: way(name)) for name in steps}
    whole = timed(ways, rounds)
    for i, what in enumerate(("by the wall clock", "of processor time")):
        show(f"a step, {what}", {name: statistics.median(row[i] for row in each) for name, each in steps.items()}, BARE)
        ratios = [ours[i] / bare[i] for ours, bare in zip(steps[OURS], steps[BARE], strict=True)]
        print(f"  round by round: {statistics.median(ratios):.3f} x, {min(ratios):.3f} to {max(ratios):.3f}")
    show(f"the whole call, {recipe.steps} steps", whole, BARE)


class Highest(transformers.TrainerCallback):
    """The most resident memory of this process in each part of a run, beyond what was there before, in bytes.

    What getrusage calls it begins at what the parent had, and cannot be set back. Linux only.
    """

    def __init__(self) -> None:
        self.before = psutil.Process().memory_info().rss
        self.parts: dict[str, int] = {}
        self.set_back()

    def set_back(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def ended(self, part: str) -> None:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        self.parts[part] = max(self.parts.get(part, 0), int(found[1]) * 1024 - self.before)
        self.set_back()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ended("before training")

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.ended("between steps")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended("steps")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.ended("between steps")


def child(way: str, model: Path, recipe: Recipe, work: Path) -> None:
    """Write what one way takes, in a process of its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        # All that is imported late is imported before memory is looked at.
        tune(way, xt.models.loading.mini_checkpoint(), recipe, work / "first", Highest())
        gc.collect()
        highest = Highest()
        tune(way, model, recipe, work / "second", highest)
    highest.ended("after training")
    print(json.dumps(highest.parts))


def memory(given: argparse.Namespace, model: Path) -> None:
    weights = (model / "model.safetensors").stat().st_size
    parts: dict[str, list[dict[str, int]]] = {BESIDE: [], BARE: [], OURS: [], AGAIN: []}
    for _ in range(given.rounds):
        for way, found in parts.items():
            command = [sys.executable, __file__, "--way", way, "--model", str(model)]
            for option in ("batch", "length", "steps", "threads"):
                command += [f"--{option}", str(getattr(given, option))]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=RETURNING | os.environ)
            if done.returncode:
                raise SystemExit(done.stderr)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\nmost memory, in copies of the weights of {weights / 2**20:.0f} MiB")
    peaks = {way: statistics.median(max(each.values()) for each in found) for way, found in parts.items()}
    for way, found in parts.items():
        print(f"  {way:42s} {peaks[way] / weights:6.2f}     {peaks[way] / peaks[BESIDE]:6.3f} x", end="")
        for part in found[0]:
            print(f"   {part} {statistics.median(each[part] for each in found) / weights:.2f}", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small-6000")
    parser.add_argument("--batch", type=int, default=4, help="pairs")
    parser.add_argument("--length", type=int, default=32, help="tokens of prompt and continuation")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    transformers.utils.logging.set_verbosity_error()
    trl.DPOTrainer = Watched
    recipe = Recipe(
        batch_size=given.batch,
        learning_rate=1e-5,
        steps=given.steps,
        max_length=given.length,
        save_every=given.steps,
    )
    with tempfile.TemporaryDirectory() as work:
        if given.way:
            child(given.way, given.model, recipe, Path(work))
            return
        model = Path(work) / "model"
        checkpoint_of(given.shape, model)
        if given.only != "memory":
            seconds(model, recipe, given.rounds, Path(work))
        if given.only != "time":
            memory(given, model)


if __name__ == "__main__":
    main()
