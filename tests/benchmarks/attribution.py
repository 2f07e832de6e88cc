"""How true is attribution, and what does it cost? `PYTHONPATH=tests python tests/benchmarks/attribution.py --validate`.

`--validate` compares both estimates of single neurons and heads with exact patches, which plain PyTorch hooks make one
unit at a time (`plain_patches.py`). `--completeness` prints what the integrated estimates add up to, `--cost` the time
and memory of a pass. `--shares MODEL [--seed N ...]` tunes a miniature as the demo does, and prints how much of the
change of its toxic continuations groups of neurons and heads carry (`carried.py`).

Models: the miniature with a copy tuned by DPO (`--tuned FOLDER`, else it is tuned here), SmolLM2-135M with `--taught
FOLDER`, a copy that was taught insults (`taught.py --work DIR` makes one), and random families. Each prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import carried
import families
import numpy as np
import plain_patches
import torch
import transformers
from plain_patches import Models, Unit
from scipy import stats

import xlingtox as xt
from xlingtox.evaluation.components import ALL, Components
from xlingtox.evaluation.continuation_rows import WeightedRow, continuation_rows
from xlingtox.evaluation.effects import Path as Between
from xlingtox.evaluation.effects import _Texts
from xlingtox.evaluation.row_measures import LogProbability

GATED = ("llama", "gemma2")
KINDS = {
    "neurons": ("neurons",),
    "heads": ("heads",),
    "neurons and heads": ("neurons", "heads"),
    "all kinds": ALL,
}


class Case:
    """Two models, and the toxic continuations that they read."""

    def __init__(self, name: str, base: str, tuned: str, family: str, n: int, codes: Sequence[str], writer: str):
        self.name, self.sources, self.family = name, (base, tuned), family
        self.base, self.tuned = xt.HookedLM.load(base), xt.HookedLM.load(tuned)
        lm = self.base if writer == "base" else self.tuned
        prompts, samples = xt.mini.prompts(n=n, languages=codes, seed=1000), 10 if writer == "base" else 2
        written = xt.generate(lm, prompts, n_samples=samples, seed=0, progress=False)
        self.given = {"continuations": written, "scorer": xt.mini.scorer(), "progress": False}
        self.prompts = prompts
        self.rows = continuation_rows(self.base, written, scorer=xt.mini.scorer())

    def plain(self) -> Models:
        return Models(*map(plain_patches.plain, self.sources), self.family)

    def attribute(self, **options: Any) -> xt.Attribution:
        return xt.attribute(self.base, self.tuned, self.prompts, **self.given, **options)


def cases(options: argparse.Namespace) -> list[Callable[[], Case]]:
    """Return what makes each case. The writer is the model to whose toxic text the change matters most."""
    made = []
    if "mini" in options.models:
        tuned = options.tuned or carried.tuned_by_demo("mini", 0, Path(tempfile.mkdtemp()))
        made.append(cache(lambda: Case("Miniature", "mini", str(tuned), "gpt2", 10, ["en", "de", "ru", "zh"], "base")))
    if "smollm2" in options.models:
        taught = str(options.taught)
        made.append(cache(lambda: Case("SmolLM2", "smollm2", taught, "llama", options.texts // 2, ["en"], "tuned")))
    return made


# --- order


def validate(options: argparse.Namespace) -> None:
    columns = "Model, Texts, Units, Spearman linear (95 %), Pearson linear, Spearman integrated (95 %), Sum of exact, "
    print(header((columns + "Sum of linear, Sum of integrated").split(", ")), flush=True)
    for made in options.cases:
        case = made()
        estimates = case.attribute(steps=options.steps)
        tables = {
            site: {
                (site, *map(int, unit)): (linear, integrated)
                for unit, linear, integrated in zip(
                    estimates.units[site],
                    *(estimates.values(site, estimate=e) for e in ("linear", "integrated")),
                    strict=True,
                )
            }
            for site in ("neurons", "heads")
        }
        models = case.plain()
        n_random = 300 if case.name == "Miniature" else 40
        compare(case.name, models, case.rows, tables, n_random, options)
    for name in GATED if "families" in options.models else ():
        models = random_models(name)
        rows = random_rows(12)
        lms = [
            xt.HookedLM.load(model, dtype=torch.float32, tokenizer=xt.HookedLM.load("mini").tokenizer)
            for model in models[:2]
        ]
        # In float64, Hugging Face's Gemma 2 gives NaN for texts that are padded on the left.
        path = Between(*lms, LogProbability(), Components.of(*lms, ("neurons", "heads")))
        effects = path.effects(rows, options.steps)
        tables = {"neurons": {}, "heads": {}}
        for (site, layer), linear in effects.linear.items():
            pairs = zip(linear.mean(0).tolist(), effects.integrated[site, layer].mean(0).tolist(), strict=True)
            tables[site] |= {(site, layer, index): pair for index, pair in enumerate(pairs)}
        compare(f"Random {name}", models, rows, tables, len(tables["neurons"]), options)


def compare(
    name: str,
    models: Models,
    rows: Sequence[WeightedRow],
    tables: dict[str, dict[Unit, tuple[float, float]]],
    n_random: int,
    options: argparse.Namespace,
) -> None:
    """Print a row for the strongest neurons, for random ones, and for heads."""
    neurons = list(tables["neurons"])
    strongest = sorted(neurons, key=lambda unit: -abs(tables["neurons"][unit][0]))[:40]
    rng = np.random.default_rng(0)
    drawn = [neurons[i] for i in rng.choice(len(neurons), n_random, replace=False)]
    heads = list(tables["heads"])
    if len(heads) > options.heads:
        heads = [heads[i] for i in rng.choice(len(heads), options.heads, replace=False)]
    chosen = {
        f"{'all' if n_random == len(neurons) else 'random'} {n_random} neurons": drawn,
        "strongest 40 neurons": strongest,
        f"{'all' if len(heads) == len(tables['heads']) else 'random'} {len(heads)} heads": heads,
    }
    for units_name, units in chosen.items():
        values = plain_patches.patched(models, rows, [[unit] for unit in units], options.at_once)
        exact = plain_patches.mean_over_languages(values[2:] - values[0], rows)
        linear, integrated = np.array([tables[unit[0]][unit] for unit in units]).T
        cells = [name, f"{len(rows)}", units_name, correlated(linear, exact), f"{np.corrcoef(linear, exact)[0, 1]:.4f}"]
        cells += [correlated(integrated, exact), *(f"{numbers.sum():+.3f}" for numbers in (exact, linear, integrated))]
        print(line(cells), flush=True)


def correlated(estimate: np.ndarray, exact: np.ndarray) -> str:
    """Return Spearman's correlation, with its bootstrap interval over units."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(exact), (1000, len(exact)))
    resampled = [stats.spearmanr(estimate[some], exact[some])[0] for some in drawn]
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return f"{stats.spearmanr(estimate, exact)[0]:.4f} ({low:.3f} to {high:.3f})"


def random_models(name: str) -> Models:
    """A random model, and the same with all weights a little changed."""
    base = families.build(name).double()
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator).double())
    return Models(base, tuned, name)


def random_rows(n: int) -> list[WeightedRow]:
    rng = np.random.default_rng(0)
    return [WeightedRow(i, "en", rng.integers(4, families.VOCABULARY, 12 + i % 5).tolist(), 6) for i in range(n)]


# --- sums


def completeness(options: argparse.Namespace) -> None:
    columns = "Model, Components, Steps, Exact, Patched, Sum of linear, Sum of integrated, Completeness, Remainder"
    print(header(columns.split(", ")), flush=True)
    for made in options.cases:
        case = made()
        for name, kinds in KINDS.items():
            # Llama-like models have no biases.
            has = tuple(kind for kind in kinds if kind != "biases" or case.family == "gpt2")
            found = case.attribute(components=has)
            of_all = found.summary().set_index("language").loc["all"]
            numbers = [found.exact, found.patched, of_all.linear, of_all.integrated]
            cells = [case.name, name, f"{found.steps}", *(f"{number:+.3f}" for number in numbers)]
            print(line([*cells, f"{100 * found.completeness:.2f} %", f"{found.remainder:+.3f}"]), flush=True)


# --- time and memory


def cost(options: argparse.Namespace) -> None:
    columns = (
        "Model, Texts, Tokens, Forward (s), Linear pass (s), Linear pass / forward, Call (s), Steps, MiB for a text"
    )
    print(header(columns.split(", ")), flush=True)
    clock = time.process_time if options.processor_time else time.perf_counter
    for made in options.cases:
        case = made()
        rows = sorted(case.rows, key=lambda row: len(row.ids))[-32:]
        components = Components.of(case.base, case.tuned, KINDS["neurons and heads"])
        path = Between(case.base, case.tuned, LogProbability(), components)

        def forward() -> None:
            texts = _Texts.of(case.base, rows)
            with torch.no_grad():
                texts.measured(case.base, LogProbability())

        def linear_pass(some: Sequence[WeightedRow] = rows) -> None:
            texts = _Texts.of(case.base, some)
            after: dict[Any, torch.Tensor] = {}
            with case.base.differentiable(), case.tuned.differentiable():
                with path._hooked(case.tuned, after.__setitem__):
                    texts.measured(case.tuned, LogProbability())
                path._linear(texts, after)

        forward(), linear_pass()
        seconds: dict[str, list[float]] = {"forward": [], "linear": []}
        for _ in range(options.rounds):
            for name, work in (("forward", forward), ("linear", linear_pass)):
                began = clock()
                work()
                seconds[name].append(clock() - began)
        one, three = (statistics.median(seconds[name]) for name in ("forward", "linear"))
        ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
        began = clock()
        steps = case.attribute().steps
        called = clock() - began
        peaks = [peak(lambda n=n: linear_pass(rows[-n:])) for n in (len(rows) // 2, len(rows))]
        mib = (peaks[1] - peaks[0]) / (len(rows) - len(rows) // 2)
        cells = [case.name, f"{len(rows)}", f"{len(rows[-1].ids)}", f"{one:.3f}", f"{three:.3f}", f"{ratio:.2f}"]
        print(line([*cells, f"{called:.1f}", f"{steps}", f"{mib:.2f}"]), flush=True)


def peak(work: Callable[[], object]) -> float:
    """Return by how many MiB the process grows while it works, at most. For Linux."""

    def status(name: str) -> float:
        (found,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name)]
        return int(found.split()[1]) / 1024

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def header(columns: Sequence[str]) -> str:
    return line(columns) + "\n" + line(["---"] * len(columns))


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in (validate, completeness, cost):
        parser.add_argument(f"--{part.__name__}", action="store_true")
    parser.add_argument("--shares", metavar="MODEL", help="a miniature: mini, or a folder")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="study seeds of --shares (0)")
    parser.add_argument("--prompts", type=int, default=40, help="prompts a language of --shares (40)")
    parser.add_argument("--work", type=Path, help="a folder that keeps the tuned models and texts of --shares")
    parser.add_argument("--models", nargs="+", default=["mini", "families"], choices=["mini", "smollm2", "families"])
    parser.add_argument("--tuned", type=Path, help="the miniature tuned by DPO")
    parser.add_argument("--taught", type=Path, help="SmolLM2, taught insults in English")
    parser.add_argument("--texts", type=int, default=16, help="continuations of SmolLM2; the toxic ones count (16)")
    parser.add_argument("--at-once", type=int, default=96, help="texts in a batch of single patches (96)")
    parser.add_argument("--heads", type=int, default=300, help="the most heads that are patched, at random (300)")
    parser.add_argument("--steps", type=int, default=8, help="points on the path of --validate (8)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers of --shares")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    options.cases = cases(options) if options.validate or options.completeness or options.cost else []
    for part in (validate, completeness, cost):
        if getattr(options, part.__name__):
            print(f"{part.__name__}\n", flush=True)
            part(options)
            print(flush=True)
    if options.shares:
        made = carried.shares(options.shares, options.seed, options.prompts, options.work)
        if options.json:
            options.json.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
