"""Frontiers made by hand, whose answers can be computed by hand."""

from collections.abc import Mapping, Sequence

import numpy as np

from xlingtox.evaluation.halves import Halves
from xlingtox.frontiers.point import Curve, Point
from xlingtox.frontiers.result import Frontier
from xlingtox.scoring import ScorerIdentity

KINDS = ("sound", "empty", "ended early", "repeated", "wrong script", "wrong language", "gibberish")
N_TOKENS = 10


def point(strength, toxicity, *, ratio=1.0, empty=0.0, n_prompts=8, n_texts=4, judges=None):
    """A point in which every prompt of a language has one toxicity, and every held-out text one perplexity.

    Args:
        toxicity, ratio, empty: by language; a number stands for all of them. Perplexity is 10 times the ratio.
        judges: further judges with their toxicity.
    """
    codes = list(toxicity)

    def spread(values):
        by_language = values if isinstance(values, Mapping) else dict.fromkeys(codes, values)
        return {
            code: np.broadcast_to(np.asarray(value, float), n_prompts).copy() for code, value in by_language.items()
        }

    of_texts = ratio if isinstance(ratio, Mapping) else dict.fromkeys(codes, ratio)
    share = spread(empty)
    kinds = {kind: {code: np.zeros(n_prompts) for code in codes} for kind in KINDS}
    kinds |= {"empty": share, "sound": {code: 1 - values for code, values in share.items()}}
    return Point(
        float(strength),
        {"wordlist": spread(toxicity)} | {name: spread(values) for name, values in (judges or {}).items()},
        degenerate=share,
        kinds=kinds,
        distinct={code: np.full(n_prompts, 0.5) for code in codes},
        losses={
            code: (np.full(n_texts, N_TOKENS * np.log(10 * value)), np.full(n_texts, N_TOKENS))
            for code, value in of_texts.items()
        },
    )


def curve(name, points: Sequence[Point], *, dial="continuous", control=False, baked=""):
    return Curve(name, "Author 2025", dial, tuple(points), 1.5, 1.1, baked, control)


def frontier(unedited: Point, *curves: Curve, meanings=None, **fields):
    halves = Halves(
        {code: np.arange(len(values)) % 2 for code, values in unedited.degenerate.items()},
        {code: np.arange(len(losses)) % 2 for code, (losses, _) in unedited.losses.items()},
    )
    judges = tuple(unedited.toxicity)
    scorers = {name: ScorerIdentity(name, "1", tuple(unedited.degenerate)) for name in judges}
    made = {"judges": judges, "scorers": scorers, "halves": halves, "n_samples": 4, "meanings": meanings, **fields}
    return Frontier(unedited, curves, **made)


METHODS = (
    *("offset of sources", "ablation of sources", "AurA", "damping of neurons", "offset of attributed neurons"),
    *("difference of means, added", "difference of means, projected out", "principal direction, added"),
    *("principal direction, projected out", "ITI", "Lin-AcT", "LinEAS", "DPO", "polite prefix", "random neurons"),
    "random direction",
)
"""Names as they are in a whole comparison; the last two are controls."""


def whole(codes, *, n_methods=16, n_prompts=20, n_strengths=6, n_texts=10, seed=0):
    """A frontier of the size of a whole comparison, of random numbers: method after method is better, and one silences.

    The fifth method falls silent. "polite prefix" is a switch.
    """
    rng = np.random.default_rng(seed)
    n_samples = 4
    hardness = {code: rng.uniform(0.3, 0.7, n_prompts) for code in codes}
    reach = {code: rng.uniform(0.3, 1.0) if code != "en" else 1.0 for code in codes}
    base = {code: rng.uniform(8, 20) for code in codes}

    def measured(strength, effect, rise, silence):
        toxicity, silent, losses = {}, {}, {}
        for code in codes:
            texts = rng.random((n_prompts, n_samples)) < silence
            chance = hardness[code] * np.exp(-effect * reach[code] * strength)
            hits = (rng.random((n_prompts, n_samples)) < chance[:, None]) & ~texts
            toxicity[code], silent[code] = hits.mean(1), texts.mean(1)
            perplexity = base[code] * (1 + rise * reach[code] * strength**2)
            tokens = rng.integers(8, 14, n_texts)
            losses[code] = (tokens * np.log(perplexity), tokens)
        kinds = {kind: {code: np.zeros(n_prompts) for code in codes} for kind in KINDS}
        kinds |= {"empty": silent, "sound": {code: 1 - values for code, values in silent.items()}}
        noisy = {code: np.clip(values * 0.8, 0, 1) for code, values in toxicity.items()}
        distinct = {code: rng.uniform(0.4, 0.6, n_prompts) for code in codes}
        return Point(strength, {"wordlist": toxicity, "classifier": noisy}, silent, kinds, distinct, losses)

    curves = []
    for number, name in enumerate(METHODS[-n_methods:]):
        control = name.startswith("random")
        strengths = [1.0] if name == "polite prefix" else np.linspace(0.25, 1.5, n_strengths).tolist()
        effect = 0.05 if control else 0.2 + 1.6 * number / n_methods
        silence = 0.5 if number == 4 else 0.02
        points = [measured(one, effect, 0.2, min(0.9, silence * (one if number == 4 else 1))) for one in strengths]
        dial = "switch" if name == "polite prefix" else "continuous"
        curves.append(curve(name, points, dial=dial, control=control))
    meanings = {code: list(range(n_prompts)) for code in codes}
    return frontier(measured(0.0, 0.0, 0.0, 0.02), *curves, meanings=meanings)
