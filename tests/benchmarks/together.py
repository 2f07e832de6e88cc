"""What do edits cost that run together? `python tests/benchmarks/together.py [--shape gpt2-small] [--device cuda]`.

The same prompts are continued greedily under many offsets, once with `edits.generate_under`, and once with `generate`
in a block of each edit. The table says which share of the second the first takes: medians of the rounds, in each of
which both take turns. Weights are random, except the miniature's; nothing is downloaded.

`--growth` fixes one kind of number and lets the other grow. `--rows` says how long a step takes for each row, the more
rows there are; `xlingtox/models/saturation.py` goes by that. `--doses` times a whole `dose_response` of the miniature.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import transformers
from engine import model_of, prompts_of

import xlingtox as xt
from xlingtox.edits import generate_under, under
from xlingtox.models.generation import decode, pick_greedily
from xlingtox.models.saturation import rows_that_pay

SIZES = {"gpt2-small": ((4, 20), (10, 10), (32, 5)), "mini": ((34, 10), (85, 10)), "mgpt": ((4, 170), (32, 170))}
GROWTH = ((4, 5), (4, 10), (4, 20), (4, 40), (10, 10), (20, 10), (40, 10), (80, 10))
NEW = 20


def loaded(shape: str, device: str) -> xt.HookedLM:
    mini = xt.HookedLM.load("mini", device=device)
    if shape == "mini":
        return mini
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return xt.HookedLM.load(model_of(shape, device, dtype), tokenizer=mini.tokenizer)


def edits_of(lm: xt.HookedLM, n: int) -> list[xt.Offset]:
    """Offsets of 100 neurons each, as a sweep of doses has them with its random controls."""
    everything = xt.NeuronSet.all(lm)
    chosen = xt.NeuronSet.of(list(everything)[:: len(everything) // 100][:100])
    return [xt.Offset(chosen.random_like(lm, seed=seed), -0.1 * (1 + seed % 5)) for seed in range(n)]


def share(together: Callable[[], object], one_by_one: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of the second, and the share of them that the first takes."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side, work in sorted(enumerate((together, one_by_one)), reverse=turn % 2 == 1):
            began = time.perf_counter()
            work()
            if turn:
                seconds[side].append(time.perf_counter() - began)
    first, second = map(statistics.median, seconds)
    return second, first / second


def row_of(lm: xt.HookedLM, shape: str, n_prompts: int, n_edits: int, rounds: int) -> None:
    prompts, edits = prompts_of(lm, n_prompts), edits_of(lm, n_edits)

    def together() -> None:
        generate_under(lm, edits, prompts, greedy=True, max_new_tokens=NEW, progress=False)

    def one_by_one() -> None:
        for edit in edits:
            with edit.on(lm):
                xt.generate(lm, prompts, greedy=True, max_new_tokens=NEW, progress=False)

    seconds, ratio = share(together, one_by_one, rounds)
    at_once = under.edits_at_once(lm, n_prompts, 32 + NEW)
    print(f"| {shape} | {n_prompts} | {n_edits} | {at_once} | {seconds:.1f} | {ratio:.2f} |", flush=True)


def rows(lm: xt.HookedLM, shape: str, sizes: Sequence[int], rounds: int) -> None:
    """Print how long a step takes for each row, the shortest of the rounds, against that of the first size."""
    print(f"{shape}: rows that pay: {rows_that_pay(lm)}\n\n| Rows | ms for each row and step |\n|---:|---:|")
    shortest = dict.fromkeys(sizes, float("inf"))
    for _ in range(rounds):
        for size in sizes:
            ids = torch.full((size, 4), 300, device=lm.device)
            taken = []
            for steps in (1, 6):
                began = time.perf_counter()
                decode(lm, ids, torch.ones_like(ids, dtype=torch.bool), steps, pick=pick_greedily, stop_at_end=False)
                taken.append(time.perf_counter() - began)
            shortest[size] = min(shortest[size], (taken[1] - taken[0]) / 5)
    for size, seconds in shortest.items():
        print(f"| {size} | {1000 * seconds / size:.2f} |", flush=True)


def doses(rounds: int) -> None:
    lm = xt.HookedLM.load("mini")
    codes = ["en", "es", "fr", "de"]
    neurons = xt.NeuronSet.of(list(xt.NeuronSet.all(lm))[::70])

    def response() -> None:
        xt.dose_response(
            lm,
            neurons,
            [0.0, -0.5, -1.0, -2.0],
            xt.mini.prompts(n=2, languages=codes),
            scorer=xt.mini.scorer(),
            held_out=xt.mini.held_out(n=2, languages=codes),
            progress=False,
        )

    def one_by_one() -> None:
        real, under.rows_that_pay = under.rows_that_pay, lambda lm: 1
        try:
            response()
        finally:
            under.rows_that_pay = real

    seconds, ratio = share(response, one_by_one, rounds)
    print(f"dose_response, 8 prompts x 18 edits: {seconds:.1f} s one by one, {ratio:.2f} of that together")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SIZES, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--doses", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.utils.logging.set_verbosity_error()
    if given.doses:
        doses(given.rounds)
        return
    if not given.rows:
        print("| Model | Prompts | Edits | Edits in a batch | Seconds one by one | Share that together takes |")
        print("|---|---:|---:|---:|---:|---:|", flush=True)
    for shape in given.shape or ("gpt2-small", "mini"):
        lm = loaded(shape, given.device)
        if given.rows:
            sizes = (4, 16, 32, 48, 64, 96, 128, 192) if given.device == "cpu" else (32, 64, 128, 256, 512)
            rows(lm, shape, sizes, given.rounds)
            continue
        for n_prompts, n_edits in GROWTH if given.growth else SIZES[shape]:
            row_of(lm, shape, n_prompts, n_edits, given.rounds)


if __name__ == "__main__":
    main()
