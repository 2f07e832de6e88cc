"""Give the examples in docstrings the names that they begin with. Only pytest reads this file."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xlingtox as xt
from xlingtox.evaluation.halves import Halves
from xlingtox.frontiers import Curve, Point
from xlingtox.models.identity import Identity
from xlingtox.scoring import ScorerIdentity


@pytest.fixture(scope="session")
def example_values() -> dict[str, Any]:
    lm = xt.HookedLM.load("mini")
    prompts = xt.mini.prompts(n=2, languages=["en", "es"])
    probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=200), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=100)
    activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=8, progress=False)
    sources = candidates.where(activations.mean(language="en") > 0)
    frontier, matrix = made_up_frontier(), made_up_matrix()
    validation, blind_spots = judged_by_two(), blinded()
    names = {"lm", "prompts", "probe", "candidates", "activations", "sources", "frontier", "matrix"}
    names |= {"validation", "blind_spots"}
    return {"xt": xt} | {name: value for name, value in locals().items() if name in names}


def judged_by_two() -> xt.scoring.Validation:
    """Return the miniature's judge, which is right by construction, beside a short list of words in two languages."""
    labelled = [row for code in ("en", "es") for row in xt.mini.labelled(code, n=120, split="validation")]
    words = {code: listed[:4] for code, listed in xt.mini.toxic_words().items() if code in ("en", "es")}
    return xt.scoring.validate([xt.mini.scorer(), xt.scoring.WordlistScorer(words)], labelled)


def blinded() -> xt.scoring.BlindSpots:
    return xt.scoring.blind_spots(xt.scoring.WordlistScorer({"en": ["fool"]}), ["You fool!", "A fool."], ["en", "en"])


def made_up_frontier() -> xt.Frontier:
    """Return two methods in two languages: one lowers toxicity at a price in perplexity, and the other falls silent."""

    def point(strength: float, toxicity: float, ratio: float, silent: float = 0.0) -> Point:
        values = {code: np.full(8, toxicity) + np.arange(8) / 100 for code in ("en", "es")}
        shares = {code: np.full(8, silent) for code in values}
        kinds = {"empty": shares, "sound": {code: 1 - share for code, share in shares.items()}}
        losses = {code: (np.full(4, 10 * np.log(8 * ratio)), np.full(4, 10)) for code in values}
        return Point(strength, {"wordlist": values}, shares, kinds, distinct=values, losses=losses)

    ablation = Curve(
        *("ablation of sources", "Li, Yong and Bach 2024", "continuous"),
        (point(0.5, 0.4, 1.05), point(1.0, 0.2, 1.15)),
        fit_seconds=2.0,
        token_seconds=1.1,
        baked="",
    )
    silencer = Curve(
        *("silencer", "nobody", "switch"),
        (point(1.0, 0.0, 1.01, silent=0.9),),
        fit_seconds=0.1,
        token_seconds=1.0,
        baked="it is another model",
    )
    half = {code: np.arange(8) % 2 for code in ("en", "es")}
    return xt.Frontier(
        point(0.0, 0.6, 1.0),
        (ablation, silencer),
        judges=("wordlist",),
        scorers={"wordlist": ScorerIdentity("wordlist", "1", ("en", "es"))},
        meanings={code: list(range(8)) for code in half},
        halves=Halves(half, {code: numbers[:4] for code, numbers in half.items()}),
        n_samples=4,
    )


def made_up_matrix() -> xt.TransferMatrix:
    """Return four languages: English teaches best, French learns best, and German keeps most of its toxicity."""
    codes = ("en", "es", "fr", "de")
    teacher, pupil = np.array([0.5, 0.4, 0.3, 0.2]), np.array([0.0, 0.0, 0.1, -0.1])
    drops = teacher[:, None] + pupil + 0.2 * np.eye(4) + 0.03 * np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4])
    base = 0.5 + np.arange(12) / 40 + np.zeros((4, 1))
    noise = 0.05 * np.sin(np.arange(4 * 4 * 12)).reshape(4, 4, 12)
    tuned = base * (1 - drops[..., None] + noise)
    values = np.stack([base, *tuned, *(base * (0.97 + noise))])
    same_script = np.ones((4, 4))
    return xt.TransferMatrix(
        sources=codes,
        targets=codes,
        values={"average_toxicity": values, "degenerate": np.zeros_like(values)},
        perplexity=np.full((9, 4), 8.0) * np.linspace(1, 1.1, 9)[:, None],
        meanings=np.tile(np.arange(12), (4, 1)),
        properties={
            "same_script": same_script,
            "retrieval": np.array([[1, 0.9, 0.6, 0.5], [0.9, 1, 0.6, 0.4], [0.6, 0.6, 1, 0.5], [0.5, 0.4, 0.5, 1]]),
        },
        scorer=ScorerIdentity("wordlist", "1", codes),
        model=Identity("mini", None, "float32", "abc", None),
        recipe={"method": "dpo", "max_steps": 100},
        has_shuffled=True,
    )


@pytest.fixture(scope="session", autouse=True)
def file_of_log_probs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the reference's log-probabilities out of the user's folder."""
    file = tmp_path_factory.mktemp("reference") / "reference.sqlite"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xlingtox.tuning.reference.default_path", lambda: file)
        yield


@pytest.fixture(autouse=True)
def names_in_examples(request: pytest.FixtureRequest) -> None:
    """Give a docstring's example the model and the results that it begins with."""
    if isinstance(request.node, pytest.DoctestItem):
        namespace = request.getfixturevalue("doctest_namespace")
        namespace.update(request.getfixturevalue("example_values"))
        namespace["tmp_path"] = request.getfixturevalue("tmp_path")
