"""Several scorers as one."""

import numpy as np
import pytest
from toys import HashScorer

from xlingtox.scoring import ByLanguage, Cached, ScorerIdentity, UncoveredLanguage, WordlistScorer, check_scores


def test_a_text_goes_to_the_first_scorer_of_its_language():
    first, second = WordlistScorer({"en": ["fool"]}, name="first"), WordlistScorer({"en": ["cat"], "es": ["gato"]})
    scorer = ByLanguage([first, second])
    texts, codes = ["a cat", "un gato", "a fool", "un fool"], ["en", "es", "en", "es"]
    assert check_scores(scorer, texts, codes).tolist() == [0.0, 1.0, 1.0, 0.0]
    assert scorer.languages == {"en", "es"}
    assert [(member.name, member.languages) for member in scorer.members] == [("first", ("en",)), ("wordlist", ("es",))]
    with pytest.raises(UncoveredLanguage, match=r"scorer first for en, wordlist for es does not cover de"):
        scorer.score(["ein Narr"], ["de"])


def test_another_order_is_another_scorer():
    scorers = [WordlistScorer({"en": ["fool"]}), WordlistScorer({"en": ["cat"], "es": ["gato"]})]
    one, other = ByLanguage(scorers), ByLanguage(scorers[::-1])
    assert one.revision != other.revision
    assert [identity.languages for identity in other.members] == [("en", "es")]
    assert ScorerIdentity.of(one).languages == ("en", "es")


def test_streamed_scores_are_put_in_their_places(tmp_path):
    rng = np.random.default_rng(0)
    codes = [("en", "es")[i] for i in rng.integers(0, 2, 40)]
    texts = [f"text {i}" for i in range(40)]
    english = Cached(HashScorer("en"), path=tmp_path / "scores", progress=False)
    scorer = ByLanguage([english, HashScorer("en", "es")])
    expected = HashScorer("en", "es").score(texts, codes)
    assert scorer.score(texts, codes).tolist() == list(expected)
    assert scorer.score([], []).tolist() == []


def test_no_scorer_is_refused():
    with pytest.raises(ValueError, match="there is no scorer"):
        ByLanguage([])
