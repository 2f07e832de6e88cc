"""Several scorers asked of the same text."""

import numpy as np
import pytest
from toys import HashScorer

from xlingtox.scoring import Cached, Ensemble, StreamingScorer, UncoveredLanguage, WordlistScorer, check_scores

LISTS = [
    WordlistScorer({"en": {"fool": 0.4}, "es": ["tonto"]}, name="mild"),
    WordlistScorer({"en": ["fool", "jerk"], "de": ["Narr"]}, name="strict"),
]
TEXTS = ["a fool", "a jerk", "a cat"]


def test_mean_and_maximum():
    assert check_scores(Ensemble(LISTS), TEXTS, ["en"] * 3).tolist() == [0.7, 0.5, 0.0]
    assert check_scores(Ensemble(LISTS, rule="max"), TEXTS, ["en"] * 3).tolist() == [1.0, 1.0, 0.0]
    assert Ensemble(LISTS).score([], []).tolist() == []


def test_it_states_its_parts():
    scorer = Ensemble(LISTS, rule="max")
    assert scorer.name == "max of mild and strict"
    assert scorer.revision == f"max of {LISTS[0].revision} and {LISTS[1].revision}"
    assert scorer.revision != Ensemble(LISTS).revision
    assert [(member.name, member.languages) for member in scorer.members] == [
        ("mild", ("en", "es")),
        ("strict", ("en", "de")),
    ]
    assert (scorer.languages, scorer.rule) == ({"en"}, "max")
    with pytest.raises(UncoveredLanguage, match="max of mild and strict does not cover es"):
        scorer.score(["tonto"], ["es"])


def test_streamed_and_cached(tmp_path):
    class Other(HashScorer):
        name = "other"

        def score(self, texts, languages):
            return 1 - super().score(texts, languages) / 2

    texts = [f"text {i % 290}" for i in range(600)]
    first, second = HashScorer("en"), Other("en")
    scorer = Ensemble([Cached(first, path=tmp_path / "parts", progress=False), second])
    assert isinstance(scorer, StreamingScorer)
    expected = (first.score(texts, ["en"] * 600) + second.score(texts, ["en"] * 600)) / 2
    assert [len(rows) for rows, _ in scorer.stream(texts, ["en"] * 600)] == [256, 256, 88]
    cached = Cached(scorer, path=tmp_path / "scores", progress=False)
    for _ in range(2):
        assert np.array_equal(cached.score(texts, ["en"] * 600), expected)


@pytest.mark.parametrize(
    ("scorers", "words"),
    [
        ([], "two different scorers or more, got none"),
        (LISTS[:1], "got mild"),
        ([LISTS[0], LISTS[0]], "got mild, mild"),
        ([LISTS[0], WordlistScorer({"de": ["Narr"]})], r"no language is covered by all .*mild: en es; wordlist: de"),
    ],
)
def test_refused(scorers, words):
    with pytest.raises(ValueError, match=words):
        Ensemble(scorers)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match=r"rule is 'min' .*expected one of 'mean', 'max'"):
        Ensemble(LISTS, rule="min")
