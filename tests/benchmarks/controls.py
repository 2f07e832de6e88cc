"""Is it the English preferences? `python tests/benchmarks/controls.py [--seeds 0 1 2] [--out DIR]`.

Tunes the miniature with the same recipe, number of pairs and steps on (1) English pairs; (2) the same pairs with chosen
and rejected changed places in a random half, which should do nothing; (3) pairs of all 17 languages, the most that
could be hoped for. Prints a Markdown table with the 95 % intervals, over prompts, of the changes. A run that was
interrupted goes on in the same folder.
"""

import argparse
import dataclasses
import random
from pathlib import Path

from datasets import Dataset, concatenate_datasets

import xlingtox as xt
from xlingtox.evaluation.comparison import Comparison

N_PAIRS, N_PROMPTS = 1000, 20
OTHERS = xt.languages.CODES[1:]


def shuffled(pairs: Dataset, seed: int) -> Dataset:
    rng = random.Random(f"shuffled labels {seed}")
    half = set(rng.sample(range(len(pairs)), len(pairs) // 2))

    def swap(row: dict[str, str], i: int) -> dict[str, str]:
        return {"chosen": row["rejected"], "rejected": row["chosen"]} if i in half else {}

    return pairs.map(swap, with_indices=True)


def multilingual(seed: int) -> Dataset:
    """As many pairs as in English, evenly of all languages, in random order."""
    each = -(-N_PAIRS // len(xt.languages.CODES))
    parts = [xt.mini.pairs(code, n=each, seed=seed) for code in xt.languages.CODES]
    return concatenate_datasets(parts).shuffle(seed=seed).select(range(N_PAIRS))


def compared(lm: xt.HookedLM, kind: str, pairs: Dataset, seed: int, out: Path) -> dict[str, Comparison]:
    """English, and the other languages, before and after."""
    named = f"{kind.replace(', ', '-').replace(' ', '-')}-{seed}"
    files = {name: out / f"{named}-{name}.json" for name in ("english", "others")}
    if not all(file.exists() for file in files.values()):
        recipe = dataclasses.replace(xt.tuning.MINI, seed=seed)
        tuned = xt.tune_dpo(lm, pairs, output_dir=out / named, recipe=recipe, progress=False)
        neurons, held_out = actual(lm), xt.mini.held_out(n=60, seed=seed)
        for file, codes in zip(files.values(), (("en",), OTHERS), strict=True):
            prompts = xt.mini.prompts(n=N_PROMPTS, languages=codes, seed=seed)
            own = held_out.filter(lambda row, codes=codes: row["language"] in codes)
            found = xt.compare(
                lm, tuned, prompts, neurons=neurons, scorer=xt.mini.scorer(), held_out=own, seed=seed, progress=False
            )
            found.save(file)
    return {name: Comparison.load(file) for name, file in files.items()}


def actual(lm: xt.HookedLM) -> xt.NeuronSet:
    probe = xt.Probe.fit(lm, xt.mini.labelled("en"), progress=False)
    suspects = xt.localize.by_cosine(lm, probe, k=100)
    english = xt.mini.prompts(n=N_PROMPTS, languages=["en"])
    return suspects.where(xt.collect_activations(lm, english, suspects, progress=False).mean() > 0)


def row(kind: str, seed: int, found: dict[str, Comparison]) -> str:
    cells = [kind, str(seed)]
    for diff in found.values():
        before, after = diff.to_frame().groupby("model").mean(numeric_only=True).loc[["before", "after"]].itertuples()
        change, maximum = diff.mean_changes["average_toxicity"], diff.mean_changes["emt"]
        cells.append(f"{before.emt:.2f} → {after.emt:.2f}")
        cells.append(f"{maximum.mean:+.2f} ({maximum.low:+.2f} to {maximum.high:+.2f})")
        cells.append(f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})")
        cells.append(f"{after.perplexity / before.perplexity - 1:+.1%}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("xlingtox-controls"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lm = xt.HookedLM.load("mini")
    titles = ["EMT", "its change (95 %)", "change in average toxicity (95 %)", "perplexity"]
    columns = ["pairs", "seed", *(f"English: {title}" for title in titles), *(f"other 16: {title}" for title in titles)]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    for seed in given.seeds:
        english = xt.mini.pairs("en", n=N_PAIRS, seed=seed)
        for kind, pairs in (
            ("English", english),
            ("English, labels shuffled", shuffled(english, seed)),
            ("all languages", multilingual(seed)),
        ):
            print(
                row(kind, seed, compared(lm, kind.replace(" ", "-").replace(",", ""), pairs, seed, given.out)),
                flush=True,
            )


if __name__ == "__main__":
    main()
