"""How often 95 % intervals of a change hold the truth: `python tests/benchmarks/coverage.py [--rounds 1000]`.

Before and after of n prompts are drawn from known distributions, n_resamples is 1,000, and the share of intervals of
`metrics.paired_interval` that hold the true mean change is printed with their mean width. At least 93 % is asked for
where outcomes are rare, bounded or skewed, and at most 97 % where they are smooth. Student's t stands beside it.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy import stats

from xlingtox.evaluation import metrics

Sides = tuple[np.ndarray, np.ndarray, float]
"""Before and after of each prompt, and the true mean change."""

Draw = Callable[[Generator, int], Sides]


def went_to(share: float) -> Draw:
    """All were 1, and a share still is."""
    return lambda rng, n: (np.ones(n), (rng.random(n) < share).astype(float), share - 1)


def zeros(share: float, high: float | None = None) -> Draw:
    """A share was 0, the rest 1 or uniform below `high`, and now all are 0."""

    def draw(rng: Generator, n: int) -> Sides:
        before = np.where(rng.random(n) < share, 0.0, 1.0 if high is None else high * rng.random(n))
        return before, np.zeros(n), (share - 1) * (1.0 if high is None else high / 2)

    return draw


def both_ways(share: float) -> Draw:
    """A share does not change; of the rest 70 % went from 1 to 0, and 30 % from 0 to 1."""

    def draw(rng: Generator, n: int) -> Sides:
        changed, down = rng.random(n) >= share, rng.random(n) < 0.7
        return (changed & down).astype(float), (changed & ~down).astype(float), -0.4 * (1 - share)

    return draw


def means_of_25(rng: Generator, n: int) -> Sides:
    """Shares of 25 samples that are toxic, mostly none."""
    toxic = rng.beta(0.3, 3, n)
    return rng.binomial(25, toxic) / 25, rng.binomial(25, 0.3 * toxic) / 25, -0.7 * 0.3 / 3.3


def lognormal(rng: Generator, n: int) -> Sides:
    return np.zeros(n), 0.02 * rng.lognormal(0, 1, n), 0.02 * math.exp(0.5)


def maxima(rng: Generator, n: int) -> Sides:
    before = rng.beta(2, 2, n)
    return before, before * rng.beta(0.5, 1.5, n), 0.5 * 0.25 - 0.5


def normal(deviation: float) -> Draw:
    return lambda rng, n: (np.full(n, 0.5), 0.45 + deviation * rng.standard_normal(n), -0.05)


SCENARIOS: dict[str, Draw] = {
    **{f"1 to {share}": went_to(share) for share in (0.01, 0.03, 0.05, 0.2, 0.5)},
    **{f"{share:.0%} zeros, else 1": zeros(share) for share in (0.75, 0.85, 0.95)},
    **{f"{share:.0%} zeros, else up to 0.3": zeros(share, 0.3) for share in (0.75, 0.85, 0.95)},
    **{f"{share:.0%} zeros, both ways": both_ways(share) for share in (0.85, 0.95)},
    "means of 25 samples": means_of_25,
    "beta(0.3, 3)": lambda rng, n: (rng.beta(0.3, 3, n), np.zeros(n), -0.3 / 3.3),
    "lognormal": lognormal,
    "smooth: maxima": maxima,
    "smooth: uniform": lambda rng, n: (rng.random(n), rng.random(n), 0.0),
    "smooth: normal, 0.1": normal(0.1),
    "smooth: normal, 0.05": normal(0.05),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    print(f"{'before and after':28s} {'n':>4s} {'covered':>8s} {'width':>6s} {'t covers':>9s} {'width':>6s}")
    for name, draw in SCENARIOS.items():
        for n in (20, 40, 100):
            rng, held, width = np.random.default_rng(n), np.zeros(2), np.zeros(2)
            for trial in range(rounds):
                before, after, truth = draw(rng, n)
                reach = stats.t.ppf(0.975, n - 1) * (after - before).std(ddof=1) / math.sqrt(n)
                mean = (after - before).mean()
                ours = metrics.paired_interval(before, np.clip(after, 0, 1), n_resamples=1000, seed=trial)
                for place, (low, high) in enumerate((ours, (mean - reach, mean + reach))):
                    held[place] += low - 1e-12 <= truth <= high + 1e-12
                    width[place] += high - low
            (own, usual), (wide, other) = held / rounds, width / rounds
            print(f"{name:28s} {n:4d} {own:8.1%} {wide:6.3f} {usual:9.1%} {other:6.3f}")


if __name__ == "__main__":
    main()
