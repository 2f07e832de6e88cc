"""Frontiers made by hand, whose answers can be computed by hand."""

from collections.abc import Mapping, Sequence

import numpy as np

from xlingtox.evaluation.dose_measures import Halves
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
