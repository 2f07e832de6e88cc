"""What the paper's study costs on GPUs, on paper: `python tests/benchmarks/costs.py [--price 3]`.

No GPU is needed, and none is measured. The library's own count of the work (`xt.study.costs`) is multiplied by rates:

1. SmolLM2 writes, reads and is tuned here, which gives seconds a token. A large matrix product gives this machine's
   operations a second. So each kind of work has its seconds as a multiple of the pure matrix products.
2. The lower figure supposes the same multiples on an H100, whose matrix products reach 60 % of 989 * 10^12 operations
   a second in bfloat16.
3. The upper figure is the library's guess for any large GPU: 10^14 operations a second, a tenth of an H100's best.

The study is the one of `xlingtox study init --like mgpt`: 17 languages, 1,000 prompts each, 25 samples before and
after. Patience ends tuning, nobody knows when: it is counted after 1,000 steps, and to its last epoch.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping

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

ON_CPU = 1e-4
"""The seconds of processor time for all else that is done with a text: to look at its repetitions and its script."""


def product_operations(n: int = 2048) -> float:
    """Return how many operations a second this machine does in a large matrix product, at its best of several."""
    left, right = torch.randn(n, n), torch.randn(n, n)
    took = []
    for _ in range(7):
        began = time.perf_counter()
        left @ right
        took.append(time.perf_counter() - began)
    return 2 * n**3 / min(took)


def measured_multiples(rounds: int) -> dict[str, float]:
    """Return how many times the seconds of its matrix products a token takes, for each kind of work."""
    lm = xt.HookedLM.load("smollm2")
    codes = ["en", "es", "fr", "de"]
    materials = Materials(
        toxic_prompts=xt.mini.prompts(n=10, languages=codes), scorer=xt.mini.scorer(), pairs=xt.mini.pairs("en", n=64)
    )
    recipe = dataclasses.replace(xt.tuning.PAPER_FULL, batch_size=4)
    multiples: dict[str, list[float]] = {}
    for _ in range(rounds):
        operations = product_operations()
        rates = measure(lm, materials, Settings(recipe=recipe), recipe, progress=False).rates
        for kind in ("written", "read", "trained"):
            alone = 2 * lm.n_parameters / operations
            multiples.setdefault(kind, []).append(getattr(rates, kind) / alone)
        print(f"{1 / rates.written:.0f} tokens written and {1 / rates.read:.0f} read a second, ", end="")
        print(f"{1 / rates.trained:.0f} tuned on; {operations / 1e9:.0f} * 10^9 operations a second")
    return {kind: statistics.median(each) for kind, each in multiples.items()}


def rates_of(shape: Shape, multiples: Mapping[str, float]) -> tuple[Rates, Rates]:
    """Return the rates of the lower and of the upper figure."""
    alone = 2 * shape.n_parameters / (H100 * REACHED)
    low = Rates(judged=ON_CPU + JUDGE / (H100 * REACHED), **{kind: many * alone for kind, many in multiples.items()})
    high = dataclasses.replace(Rates.guessed(shape, operations=GUESSED), judged=ON_CPU + JUDGE / GUESSED)
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
    print(
        "| Model | Tuning | All but tuning, 1 H100 | Tuning, 1 H100 | All, 8 H100 | Dollars, 1 H100 | Dollars, 8 H100 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in MODELS:
        model = known(name)
        assert model is not None
        recipe = papers_recipe(model.shape.n_parameters)
        work = stage_costs(model.shape, sizes, settings, stages=STAGES, recipe=recipe)
        cells: dict[str, list[float]] = {}
        for rates in rates_of(model.shape, multiples):
            # A step of tuning has so few pairs that no more processes than these find one each.
            together = rates.shared(8)
            together = dataclasses.replace(together, trained=rates.trained / min(8, recipe.batch_size))
            tuning = seconds(work["tune"], rates) / 3600
            rest = sum(seconds(one, rates) for name, one in work.items() if name != "tune") / 3600
            on_eight = sum(seconds(one, together) for one in work.values()) / 3600
            cells.setdefault("rest", []).append(rest)
            cells.setdefault("tuning", []).append(tuning)
            cells.setdefault("eight", []).append(on_eight)
            cells.setdefault("dollars", []).append((rest + tuning) * given.price)
            cells.setdefault("dollars of eight", []).append(8 * on_eight * given.price)
        hours = [f"{low:.1f} to {high:.1f} h" for low, high in (cells[key] for key in ("rest", "tuning", "eight"))]
        dollars = [f"{low:.0f} to {high:.0f}" for low, high in (cells[key] for key in ("dollars", "dollars of eight"))]
        print(
            "| " + " | ".join([name.split("/")[1], "full" if recipe.lora is None else "QLoRA", *hours, *dollars]) + " |"
        )


if __name__ == "__main__":
    main()
