"""What the paper's study costs on GPUs, on paper: `python tests/benchmarks/costs.py [--price 3]`.

No GPU is needed, and none is measured. The library's own count of the work (`xt.study.costs`) is multiplied by rates:

1. SmolLM2 writes, reads and is tuned here on one thread, which gives seconds of processor time a token. A large matrix
   product gives operations a second. So each kind of work takes a multiple of its pure matrix products.
2. The lower figure supposes the same multiples on an H100, whose matrix products reach 60 % of 989 * 10^12 operations
   a second in bfloat16.
3. The upper figure is the library's guess for any large GPU: 10^14 operations a second, a tenth of an H100's best.

On eight GPUs, batches are shared out among eight processes. Tuning stays on one GPU, while the others wait. Adapters of
4-bit weights (QLoRA) are counted as if unpacking were free. A server as the writer is not counted.

The study is the one of `xlingtox study init --like mgpt`: 17 languages, 1,000 prompts each, 25 samples before and
after. Patience ends tuning, nobody knows when: it is counted after 1,000 steps, and to its last epoch. Before its end,
most of its time goes into reading 1,229 validation pairs every 25 steps, as the paper did.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping
from unittest import mock

import torch

import xlingtox as xt
from xlingtox.study import Materials, Settings
from xlingtox.study.costs import Rates, Shape, seconds, stage_costs
from xlingtox.study.measuring import measure
from xlingtox.study.recipes import papers_recipe
from xlingtox.study.settings import STAGES
from xlingtox.study.sizes import Sizes
from xlingtox.study.weights import known

MODELS = (
    *("ai-forever/mGPT", "bigscience/bloom-1b7", "bigscience/bloom-7b1"),
    *("meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B", "CohereLabs/aya-23-8B"),
)
H100, REACHED = 989e12, 0.6
"""The most operations a second of an H100 in bfloat16, without sparsity; and the share that a large product reaches."""

GUESSED = 1e14

JUDGE = 2 * 303e6 * 40
"""The operations that judging a text takes: the layers of XLM-R large read 40 tokens."""

DISK = 2e9
"""The bytes a second that are written of a checkpoint, to a local disk of a GPU node."""

ON_CPU = 1e-4
"""The seconds of processor time for all else that is done with a text: to look at its repetitions and its script."""


def product_operations(n: int = 2048) -> float:
    """Return how many operations a second this machine does in a large matrix product, at its best of several."""
    left, right = torch.randn(n, n), torch.randn(n, n)
    took = []
    for _ in range(7):
        began = time.process_time()
        left @ right
        took.append(time.process_time() - began)
    return 2 * n**3 / min(took)


def measured_multiples(rounds: int) -> dict[str, float]:
    """Return how many times the seconds of its matrix products a token takes, for each kind of work."""
    lm = xt.HookedLM.load("smollm2")
    codes = ["en", "es"]
    materials = Materials(
        toxic_prompts=xt.mini.prompts(n=5, languages=codes), scorer=xt.mini.scorer(), pairs=xt.mini.pairs("en", n=16)
    )
    recipe = dataclasses.replace(xt.tuning.PAPER_FULL, batch_size=4)
    multiples: dict[str, list[float]] = {}
    for _ in range(rounds):
        operations = product_operations()
        with mock.patch("time.perf_counter", time.process_time):
            rates = measure(lm, materials, Settings(recipe=recipe), recipe, progress=False).rates
        for kind in ("written", "read", "trained"):
            alone = 2 * lm.n_parameters / operations
            multiples.setdefault(kind, []).append(getattr(rates, kind) / alone)
        print(f"{1 / rates.written:.0f} tokens written and {1 / rates.read:.0f} read a second, ", end="")
        print(f"{1 / rates.trained:.1f} tuned on; {operations / 1e9:.0f} * 10^9 operations a second")
    return {kind: statistics.median(each) for kind, each in multiples.items()}


def rates_of(shape: Shape, multiples: Mapping[str, float]) -> tuple[Rates, Rates]:
    """Return the rates of the lower and of the upper figure."""
    alone = 2 * shape.n_parameters / (H100 * REACHED)
    low = Rates(judged=ON_CPU + JUDGE / (H100 * REACHED), **{kind: many * alone for kind, many in multiples.items()})
    high = dataclasses.replace(Rates.guessed(shape, operations=GUESSED), judged=ON_CPU + JUDGE / GUESSED)
    low, high = (dataclasses.replace(rates, saved=1 / DISK) for rates in (low, high))
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=3.0, help="dollars for an hour of one H100 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    multiples = measured_multiples(given.rounds)
    print("seconds a token, as a multiple of the matrix products alone:", end=" ")
    print(", ".join(f"{kind} {many:.2f}" for kind, many in multiples.items()))
    sizes, settings = Sizes.of_paper(), Settings()
    print("\ncosts\n")
    columns = ["Model", "All but tuning, 1 H100", "All but tuning, 8 H100", "1,000 steps", "To the last epoch"]
    columns += ["Dollars, 1 H100", "Dollars, 8 H100"]
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for name in MODELS:
        model = known(name)
        assert model is not None
        whole = papers_recipe(model.shape.n_parameters)
        short = dataclasses.replace(whole, steps=1000, epochs=None)
        hours: dict[str, list[float]] = {}
        for rates in rates_of(model.shape, multiples):
            for column, recipe, n, is_tuning in (
                ("one", whole, 1, False),
                ("eight", whole, 8, False),
                ("short", short, 1, True),
                ("whole", whole, 1, True),
            ):
                work = stage_costs(model.shape, sizes, settings, stages=STAGES, recipe=recipe)
                took = [seconds(one, rates.shared(n)) for stage, one in work.items() if (stage == "tune") == is_tuning]
                hours.setdefault(column, []).append(sum(took) / 3600)
        pairs = list(zip(hours["one"], hours["eight"], hours["short"], strict=True))
        dollars = [[(one + short) * given.price for one, _, short in pairs]]
        dollars.append([8 * (eight + short) * given.price for _, eight, short in pairs])
        cells = [f"{low:.2g} to {high:.2g} h" for low, high in hours.values()]
        cells += [f"{low:.0f} to {high:.0f}" for low, high in dollars]
        kind = "" if whole.lora is None else " (QLoRA)"
        print("| " + " | ".join([name.split("/")[1] + kind, *cells]) + " |")


if __name__ == "__main__":
    main()
