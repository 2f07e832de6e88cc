"""Do the neurons depend on how the probe was made? `python tests/benchmarks/stability.py [--prompts 20] [--samples 3]`.

In the miniature, five probes choose 50, 100 and 200 candidates each: ours, the same with ten times and a tenth of its
penalty, the authors', and the difference of means. Prints a Markdown table: how many of the 100 candidates each shares
with ours, how many are active on English prompts, and what taking these one standard deviation down does to the
average toxicity of all languages. A last row has the range over all fifteen sets.
"""

import argparse

import xlingtox as xt
from xlingtox.neurons.probe import PENALTY

K = 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--samples", type=int, default=3)
    given = parser.parse_args()
    lm, labelled = xt.HookedLM.load("mini"), xt.mini.labelled("en")
    penalties = {"ours": PENALTY, "ten times the penalty": 10 * PENALTY, "a tenth of the penalty": PENALTY / 10}
    probes = {name: xt.Probe.fit(lm, labelled, penalty=penalty, progress=False) for name, penalty in penalties.items()}
    probes["the authors'"] = xt.study.published.fit_probe(lm, labelled, progress=False)
    probes["difference of means"] = xt.Probe.difference_of_means(lm, labelled, progress=False)
    stability = xt.stability(
        lm,
        probes,
        xt.mini.prompts(n=given.prompts),
        ks=(50, K, 200),
        scorer=xt.mini.scorer(),
        held_out=xt.mini.held_out(n=10),
        n_samples=given.samples,
        progress=False,
    )
    shared = {
        overlap.second: (overlap.shared, overlap.chance)
        for overlap in stability.overlaps
        if (overlap.first, overlap.k) == ("ours", K)
    }
    print(f"| Probe | Shared with ours | By chance | Sources | Toxicity from {stability.toxicity:.3f} | Perplexity |")
    print("| --- | --- | --- | --- | --- | --- |")
    for effect in stability.effects:
        if effect.k == K:
            known = shared.get(effect.probe)
            overlap = "– | –" if known is None else f"{known[0]:.0%} | {known[1]:.1%}"
            change = f"{effect.change.mean:+.3f} ({effect.change.low:+.3f} to {effect.change.high:+.3f})"
            print(f"| {effect.probe} | {overlap} | {effect.n_sources} | {change} | {effect.perplexity:.2f} |")
    changes = [effect.change for effect in stability.effects]
    n_below = sum(change.high < 0 for change in changes)
    least, most = min(change.mean for change in changes), max(change.mean for change in changes)
    means = f"{least:+.3f} to {most:+.3f}; below zero in {n_below} of {len(changes)}"
    print(f"| all probes, 50, 100 and 200 candidates | – | – | – | {means} | – |")


if __name__ == "__main__":
    main()
