"""Show how far the sources of a study fell, on own text and on the same text, beside three kinds of random neurons.

    python -m xlingtox demo --out runs/demo
    PYTHONPATH=tests python tests/benchmarks/same_text.py runs/demo

Each row is one text that both models read and one set of neurons: the sources, and the mean over random sets that share
their layers, their activity, or how far they push the residual stream. Neurons of the last kind count by their weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import xlingtox as xt
from xlingtox.evaluation.intervals import paired_changes
from xlingtox.evaluation.named_sets import activations_of_layers
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet

STEPS = 20
"""New tokens of each continuation."""


def by_prompt(
    lm: xt.HookedLM, prompts: object, sets: Sequence[NeuronSet], writer: xt.HookedLM | None
) -> dict[str, np.ndarray]:
    """Return the mean activation of the sets by language, one value a prompt."""
    union = NeuronSet.of(sorted({neuron for neurons in sets for neuron in neurons}))
    read = xt.collect_activations(lm, prompts, union, max_new_tokens=STEPS, writer=writer, progress=False)
    column = {neuron: i for i, neuron in enumerate(union)}
    steps = read.mask.sum(1).double().numpy()
    means = []
    for neurons in sets:
        values = read.values[:, :, [column[neuron] for neuron in neurons]].double().numpy()
        means.append((values * np.array(neurons.amounts)).mean(-1).sum(1) / steps)
    codes = np.array(read.languages)
    return {code: np.mean(means, 0)[codes == code] for code in read.language_codes}


def rows(folder: Path, model: str, n_prompts: int, n_random: int) -> pd.DataFrame:
    """Return the table of one study."""
    results = xt.StudyResults.load(folder / "results.json")
    seed = results.seed or 0
    before, after = xt.HookedLM.load(model), xt.HookedLM.load(folder / "tuned")
    prompts = xt.mini.prompts(n=n_prompts, kind="toxic", seed=seed)
    sources = results.sources
    activations = activations_of_layers(before, [sources], prompts, max_new_tokens=STEPS, progress=False)
    groups: dict[str, list[NeuronSet]] = {"sources": [sources]}
    for match in ("layers", "activity", "push"):
        known = None if match == "layers" else activations
        groups[match] = random_sets(sources, before, n=n_random, seed=seed, match=match, activations=known)
    meanings = xt.data.meanings(prompts)
    table = []
    for text, writers in {"own": (None, None), "before": (None, before), "after": (after, None)}.items():
        changes = {}
        for name, sets in groups.items():
            sides = [by_prompt(lm, prompts, sets, writer) for lm, writer in zip((before, after), writers, strict=True)]
            bounds = (-np.inf, np.inf)
            by_language, overall = paired_changes(*sides, bounds=bounds, meanings=meanings)
            n_below = sum(change.high < 0 for change in by_language.values())
            first = float(np.mean([values.mean() for values in sides[0].values()]))
            changes[name] = {code: sides[1][code] - sides[0][code] for code in sides[0]}
            zero = {code: np.zeros_like(values) for code, values in changes["sources"].items()}
            beyond = {code: changes["sources"][code] - changes[name][code] for code in zero}
            specific = paired_changes(zero, beyond, bounds=bounds, meanings=meanings)
            n_beyond = sum(change.high < 0 for change in specific[0].values())
            further = (
                (specific[1].mean, specific[1].low, specific[1].high, n_beyond) if name != "sources" else ("",) * 4
            )
            table.append(
                (
                    seed,
                    text,
                    name,
                    first,
                    first + overall.mean,
                    overall.mean,
                    overall.low,
                    overall.high,
                    n_below,
                    *further,
                )
            )
    names = "seed text neurons before after change low high n_below beyond beyond_low beyond_high n_beyond".split()
    return pd.DataFrame(table, columns=names)


def shown(table: pd.DataFrame) -> str:
    """Return the changes in the mean over languages as a Markdown table: a row for each seed, text and control."""

    def within(row: dict[str, float], names: str) -> str:
        change, low, high = (f"{row[name]:+.4f}" for name in names.split())
        return f"{change} ({low} to {high})"

    texts = {"own": "each its own", "before": "of the model before", "after": "of the tuned model"}
    lines = ["| Seed | Text | Sources | Control | Control moves | Sources less control | Languages below zero |"]
    lines.append("| --- " * 7 + "|")
    rows = table.to_dict("records")
    for row in rows:
        if row["neurons"] != "sources":
            place = (row["seed"], row["text"], "sources")
            main = next(other for other in rows if (other["seed"], other["text"], other["neurons"]) == place)
            moved = [within(main, "change low high"), row["neurons"], within(row, "change low high")]
            beyond = within(row, "beyond beyond_low beyond_high")
            lines.append(
                f"| {row['seed']} | {texts[row['text']]} | {' | '.join(moved)} | {beyond} | {row['n_beyond']} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("studies", type=Path, nargs="+", help="folders of studies of the miniature")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--random", type=int, default=15)
    options = parser.parse_args()
    print(
        shown(pd.concat([rows(folder, options.model, options.prompts, options.random) for folder in options.studies]))
    )


if __name__ == "__main__":
    main()
