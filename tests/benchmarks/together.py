"""What do edits cost that run together? `python tests/benchmarks/together.py [--shape gpt2-small] [--device cuda]`.

The same prompts are continued greedily under many offsets, once with `generate_under`, and once with `generate` in a
block of each edit. The table says which share of the second the first takes: medians of the rounds, in each of which
both take turns. Weights are random, except the miniature's; nothing is downloaded. On a busy machine, take one thread
and `--processor-time`. Prompts have 16 tokens, or `--length`: reading them gains nothing, only writing does.

`--growth` fixes one kind of number and lets the other grow. `--rows` says how long a step takes for each row, the more
rows there are; `xlingtox/models/saturation.py` goes by that. `--doses` times a whole `dose_response` of the miniature.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
import transformers
from engine import model_of

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


def prompts_of(lm: xt.HookedLM, n: int, length: int) -> list[str]:
    """Texts of about this many tokens."""
    ids = torch.randint(300, 5000, (n, length), generator=torch.Generator().manual_seed(1))
    return lm.decode(ids.tolist())


def share(
    together: Callable[[Sequence[xt.Offset]], object],
    one_by_one: Callable[[Sequence[xt.Offset]], object],
    edits: Sequence[xt.Offset],
    rounds: int,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Return the median seconds of the second, and the share of them that the first takes."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for work in (together, one_by_one):
        work(edits[:2])
    for turn in range(rounds):
        for side, work in sorted(enumerate((together, one_by_one)), reverse=turn % 2 == 1):
            began = clock()
            work(edits)
            seconds[side].append(clock() - began)
    first, second = map(statistics.median, seconds)
    return second, first / second


def row_of(
    lm: xt.HookedLM,
    shape: str,
    n_prompts: int,
    n_edits: int,
    rounds: int,
    clock: Callable[[], float],
    length: int,
) -> None:
    prompts, edits = prompts_of(lm, n_prompts, length), edits_of(lm, n_edits)

    def together(edits: Sequence[xt.Offset]) -> None:
        generate_under(lm, edits, prompts, greedy=True, max_new_tokens=NEW, progress=False)

    def one_by_one(edits: Sequence[xt.Offset]) -> None:
        for edit in edits:
            with edit.on(lm):
                xt.generate(lm, prompts, greedy=True, max_new_tokens=NEW, progress=False)

    seconds, ratio = share(together, one_by_one, edits, rounds, clock)
    at_once = len(under.Plan.of(lm, n_prompts, length + NEW).groups(n_edits)[0])
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


def doses(rounds: int, clock: Callable[[], float]) -> None:
    lm = xt.HookedLM.load("mini")
    codes = ["en", "es", "fr", "de"]
    neurons = xt.NeuronSet.of(list(xt.NeuronSet.all(lm))[::70])

    def response(_: Sequence[xt.Offset]) -> None:
        xt.dose_response(
            lm,
            neurons,
            [0.0, -0.5, -1.0, -2.0],
            xt.mini.prompts(n=2, languages=codes),
            scorer=xt.mini.scorer(),
            held_out=xt.mini.held_out(n=2, languages=codes),
            progress=False,
        )

    def one_by_one(_: Sequence[xt.Offset]) -> None:
        with mock.patch.object(under, "rows_that_pay", return_value=1):
            response(())

    seconds, ratio = share(response, one_by_one, (), rounds, clock)
    print(f"dose_response, 8 prompts x 18 edits: {seconds:.1f} s one by one, {ratio:.2f} of that together")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SIZES, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--sizes", nargs="+", help="prompts and edits, such as 4x20")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--doses", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.utils.logging.set_verbosity_error()
    clock = time.process_time if given.processor_time else time.perf_counter
    if given.doses:
        doses(given.rounds, clock)
        return
    if not given.rows:
        print("| Model | Prompts | Edits | Edits in a batch | Seconds one by one | Share that together takes |")
        print("|---|---:|---:|---:|---:|---:|", flush=True)
    for shape in given.shape or ("gpt2-small", "mini"):
        lm = loaded(shape, given.device)
        if given.rows:
            steps = (4, 16, 32, 48, 64, 96, 128, 192) if given.device == "cpu" else (32, 64, 128, 256, 512)
            rows(lm, shape, steps, given.rounds)
            continue
        sizes = [tuple(map(int, size.split("x"))) for size in given.sizes or ()]
        for n_prompts, n_edits in sizes or (GROWTH if given.growth else SIZES[shape]):
            row_of(lm, shape, n_prompts, n_edits, given.rounds, clock, given.length)


if __name__ == "__main__":
    main()
