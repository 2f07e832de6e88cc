"""Which groups of neurons carry tuning's change, by which method? `python tests/benchmarks/split.py [--prompts 20]`.

Prints a Markdown table: the share that each group of neurons carries of what DPO on English pairs changed in the
miniature, over all languages, by the method of Yang et al. 2024 (projection), by attribution (integrated), and by exact
patching in both directions, beside random groups of as many neurons in the same layers. The text is the base model's
own toxic continuations. The neurons of attribution are chosen on prompts of the split "validation".
"""

import argparse
import tempfile
from pathlib import Path

import xlingtox as xt

K = 100
METHODS = {
    "projection": "Projection",
    "integrated": "Integrated",
    "patch": "Exact patch",
    "patch_probe": "Probe patched",
}


def cell(row: object) -> str:
    """Return a share with its interval, and the random groups' mean in brackets."""
    random = "" if row.random != row.random else f" [{row.random:.0%}]"
    return f"{row.share:.0%} ({row.low:.0%} to {row.high:.0%}){random}".replace("%", " %").replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, help="prompts in each language (%(default)s)")
    parser.add_argument("--samples", type=int, default=10, help="continuations of each (%(default)s)")
    parser.add_argument("--tuned", type=Path, help="the folder of a tuned miniature; by default it is tuned anew")
    given = parser.parse_args()
    lm, scorer = xt.HookedLM.load("mini"), xt.mini.scorer()
    with tempfile.TemporaryDirectory() as folder:
        pairs = xt.mini.pairs("en", n=1000)
        tuned = xt.tune_dpo(lm, pairs, output_dir=folder) if given.tuned is None else xt.HookedLM.load(given.tuned)
    probe = xt.Probe.fit(lm, xt.mini.labelled("en"), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=K)
    others = xt.mini.prompts(n=given.prompts, split="validation")
    english = [prompt for prompt in xt.data.as_prompts(others) if prompt.language == "en"]
    sources = candidates.where(xt.collect_activations(lm, english, candidates, progress=False).mean() > 0)
    attribution = xt.attribute(lm, tuned, others, scorer=scorer, n_samples=given.samples, seed=1, progress=False)
    split = xt.alignment_split(
        lm,
        tuned,
        xt.mini.prompts(n=given.prompts),
        probe,
        scorer=scorer,
        groups={"sources": sources, "candidates": candidates, "attribution": attribution.top(len(sources))},
        methods=list(METHODS),
        n_samples=given.samples,
        progress=False,
    )
    rows = split.to_frame().query("language == 'all'").set_index(["direction", "method", "group"]).sort_index()
    columns = ["Group", "Neurons", *METHODS.values(), "Exact patch, base into tuned"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for group, neurons in split.groups.items():
        cells = [cell(rows.loc[("tuned into base", method, group)]) for method in METHODS]
        cells.append(cell(rows.loc[("base into tuned", "patch", group)]))
        print(f"| {group} | {len(neurons)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
