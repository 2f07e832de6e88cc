"""Does tuning teach silence? `python tests/benchmarks/endings.py [--lm mini] [--steps 10 40] [--seeds 0 1 2]`.

Tunes on English pairs of the miniature's sentences, whole and with the tail of the chosen side cut off, once with the
end of text as part of what is preferred and once without. For each run: how likely the model ends at once after
English prompts and after those of other languages, and the share of sampled texts that are blank, before and after.
Prints a Markdown table, with 95 % intervals of the changes over prompts.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset

import xlingtox as xt
from xlingtox.evaluation import ending_probability, paired_changes
from xlingtox.text import visible

LANGUAGES = ("en", "es", "fr", "de", "ru", "zh")


def shorter(pairs: Dataset, words: int, stop: str) -> Dataset:
    """The same pairs with only the first words of each chosen side, followed by `stop`."""

    def cut(row: dict[str, str]) -> dict[str, str]:
        kept = row["chosen"].split()[:words]
        return {"chosen": " " + " ".join(kept).rstrip(".,;") + stop}

    return pairs.map(cut)


def blank(lm: xt.HookedLM, prompts: Dataset, n_samples: int) -> dict[str, np.ndarray]:
    """For each language, the share of blank texts after each prompt."""
    written = xt.generate(lm, prompts, n_samples=n_samples, max_new_tokens=20, progress=False)
    table = written.to_frame()
    table["blank"] = [not visible(text) for text in table["continuation"]]
    shares = table.groupby(["language", "prompt_id"], sort=False)["blank"].mean()
    return {code: shares[code].to_numpy(dtype=float) for code in written.languages}


def group(values: dict[str, np.ndarray], *, english: bool) -> dict[str, np.ndarray]:
    return {code: row for code, row in values.items() if (code == "en") == english}


def row(kind: str, end: bool, steps: int, seed: int, before: list[dict], after: list[dict], share: float) -> str:
    cells = [kind, "yes" if end else "no", str(steps), str(seed), f"{share:.0%}"]
    for first, then in zip(before, after, strict=True):
        for english in (True, False):
            sides = group(first, english=english), group(then, english=english)
            _, change = paired_changes(*sides)
            means = [np.mean([values.mean() for values in side.values()]) for side in sides]
            cells.append(f"{means[0]:.4f} → {means[1]:.4f} ({change.low:+.4f} to {change.high:+.4f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="mini")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--words", type=int, default=2, help="words that are left of a chosen side")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()
    lm = xt.HookedLM.load(options.lm)
    prompts = xt.mini.prompts(n=options.prompts, languages=list(LANGUAGES))
    before = [ending_probability(lm, prompts, progress=False), blank(lm, prompts, options.samples)]
    print(
        "| chosen sides | end preferred | steps | seed | chosen shorter | P(end at once), English | others | ", end=""
    )
    print("blank, English | others |\n|" + " --- |" * 9)
    for seed in options.seeds:
        whole = xt.mini.pairs("en", seed=seed)
        kinds = {"whole": whole}
        kinds |= {f"first {options.words} words{stop}": shorter(whole, options.words, stop) for stop in (".", "")}
        for kind, pairs in kinds.items():
            for steps in options.steps:
                for end in (True, False):
                    recipe = dataclasses.replace(xt.tuning.MINI, steps=steps, end_token=end, seed=seed)
                    share = xt.tuning.tunable_pairs(lm, pairs, recipe=recipe).lengths.chosen_shorter
                    with tempfile.TemporaryDirectory() as folder:
                        tuned = xt.tune_dpo(lm, pairs, output_dir=Path(folder), recipe=recipe, progress=False)
                        after = [ending_probability(tuned, prompts, progress=False)]
                        after.append(blank(tuned, prompts, options.samples))
                    print(row(kind, end, steps, seed, before, after, share), flush=True)


if __name__ == "__main__":
    main()
