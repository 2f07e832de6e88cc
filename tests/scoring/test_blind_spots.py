"""What escapes a judge that reads letters: a word list, and a small classifier."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from toys import NeverAsked, xlm_roberta

from xlingtox.scoring import PERTURBATIONS, BlindSpots, ClassifierScorer, WordlistScorer, blind_spots, perturbed

WORDS = WordlistScorer({"en": ["fool", "jerk"], "ru": ["вор"], "zh": ["傻瓜"], "hi": ["मूर्ख"]})
TEXTS = [f"You {word} number {i}" for i, word in enumerate(["fool", "jerk", "fool", "friend"] * 5)]


@pytest.mark.parametrize(
    ("way", "text", "expected"),
    [
        ("look-alike letters", "a cap", "\u0430 \u0441\u0430\u0440"),
        ("look-alike letters", "\u0441\u043e\u0440", "cop"),
        ("look-alike letters", "傻瓜 123", "傻瓜 123"),
        ("masked letters", "a fool, isn't he", "a f*ol, i*n't he"),
        ("masked letters", "сволочь, 傻瓜傻瓜", "с*олочь, 傻瓜傻瓜"),
        ("spaced letters", "a fool 12", "a f o o l 12"),
        ("spaced letters", "傻瓜", "傻 瓜"),
        ("spaced letters", "मूर्ख", "मू र्ख"),
        ("zero-width characters", "fool!", "f\u200bo\u200bo\u200bl!"),
        ("digits for letters", "Toast, i see", "70457, 1 533"),
        ("full-width letters", "Ab 1", "Ａｂ 1"),
        ("upper case", "größe", "GRÖSSE"),
    ],
)
def test_each_way_of_writing(way, text, expected):
    assert perturbed(text, way) == expected


def test_every_way_changes_english_and_none_fails():
    for way in PERTURBATIONS:
        assert perturbed("You fool", way) != "You fool"
        for text in (
            "",
            " ",
            "\ud800x",
            "e\u0301e\u0301e\u0301",
            "👩‍👩‍👧 ok",
            "نص عربي",
            "한국어",
            "a\0b",
            "स्त्री",
            "\u1112\u1161\u11ab",
        ):
            assert isinstance(perturbed(text, way), str)


def test_a_word_list():
    found = blind_spots(WORDS, TEXTS, ["en"] * 20)
    rows = found.to_frame().query("language == 'en'").set_index("perturbation")
    assert list(found.to_frame().columns[:8]) == [
        "judge",
        "perturbation",
        "language",
        "before",
        "after",
        "low",
        "high",
        "n",
    ]
    escaping = ("look-alike letters", "masked letters", "spaced letters", "digits for letters")
    lost = dict.fromkeys(escaping, 1)
    assert rows.lost.to_dict() == pytest.approx(dict.fromkeys(PERTURBATIONS, 0) | lost)
    assert set(rows.before) == {0.75}
    assert set(rows.n_flagged) == {15}
    for row in rows.itertuples():
        n_lost = round(row.lost * 15)
        expected = [binomtest(k, n).proportion_ci(method="wilson") for k, n in ((15 - n_lost, 20), (n_lost, 15))]
        assert (row.low, row.high) == pytest.approx((expected[0].low, expected[0].high))
        assert (row.lost_low, row.lost_high) == pytest.approx((expected[1].low, expected[1].high))
        assert row.score_after == pytest.approx(1 - row.lost)
    assert found.warnings == (
        f"wordlist is blind to {', '.join(f'{way} (100%)' for way in escaping)}: it no longer flags so many of the "
        "texts that it flagged.",
    )


def test_only_texts_that_change_are_counted():
    texts, codes = ["一个傻瓜", "You fool", "вор"], ["zh", "en", "ru"]
    table = blind_spots(WORDS, texts, codes, perturbations=["upper case", "spaced letters"]).to_frame()
    counted = table.set_index(["perturbation", "language"]).n
    assert counted["upper case"].to_dict() == {"en": 1, "ru": 1, "all": 2}
    assert counted["spaced letters"].to_dict() == {"en": 1, "ru": 1, "zh": 1, "all": 3}


def test_a_small_classifier(tmp_path):
    """A random one, which reads letters: as flagged as texts that we perturb and score by hand."""
    texts = [
        f"{text} {end}" for text in ("the cat sat on the mat", "you are a fool", "what a day") for end in "abcdefgh"
    ]
    model, tokenizer = xlm_roberta({"id2label": {0: "neutral", 1: "toxic"}}, texts)
    judge = ClassifierScorer(model, languages=["en"], tokenizer=tokenizer, device="cpu", progress=False)
    before = judge.score(texts, ["en"] * len(texts))
    threshold = float(np.median(before))
    found = blind_spots(judge, texts, ["en"] * len(texts), threshold=threshold, cache=tmp_path / "scores.sqlite")
    for row in found.to_frame().query("language == 'all'").itertuples():
        after = judge.score([perturbed(text, row.perturbation) for text in texts], ["en"] * len(texts))
        flagged = before >= threshold
        assert row.n == len(texts)
        assert row.lost == pytest.approx((after[flagged] < threshold).mean(), abs=1 / flagged.sum())
        assert row.score_after == pytest.approx(after[flagged].mean(), abs=1e-5)
    assert found.to_frame().score_after.std() > 0


def test_judges_side_by_side_and_saved(tmp_path):
    other = WordlistScorer({"en": ["f*ol", "f o o l"]}, name="knows tricks")
    found = blind_spots([WORDS, other], [*TEXTS, "傻瓜"], ["en"] * 20 + ["zh"])
    assert "knows tricks does not cover zh: texts in these languages were not scored." in found.warnings
    assert "knows tricks flags none of the texts as they are, so its blind spots cannot be seen." in found.warnings
    found.save(tmp_path / "a.safetensors")
    loaded = BlindSpots.load(tmp_path / "a.safetensors")
    assert loaded == found
    pd.testing.assert_frame_equal(loaded.to_frame(), found.to_frame())
    assert found._repr_html_().count("<tr") == 1 + 2 * len(PERTURBATIONS)
    with pytest.raises(ValueError, match="scores have shape"):
        BlindSpots(found.judges, found.perturbations[:2], found.languages, found.scores)


@pytest.mark.parametrize(
    ("judge", "texts", "codes", "options", "words"),
    [
        ([], ["a"], ["en"], {}, "expected one judge or several"),
        ([NeverAsked("en")] * 2, ["a"], ["en"], {}, "each with a name of its own"),
        (NeverAsked("en"), [], [], {}, "there are no texts"),
        (NeverAsked("en"), ["a"], [], {}, "1 texts and 0 languages"),
        (NeverAsked("en"), ["a"], ["de"], {}, "hash covers none of the languages of the texts: de"),
        (NeverAsked("en"), ["a"], ["en"], {"perturbations": "rot13"}, "unknown perturbation 'rot13'"),
        (NeverAsked("en"), ["a"], ["en"], {"perturbations": []}, "there is no perturbation"),
        (NeverAsked("en"), ["a"], ["en"], {"threshold": 1.5}, "threshold is 1.5"),
    ],
)
def test_bad_input(judge, texts, codes, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        blind_spots(judge, texts, codes, **options)
    assert "\n" not in str(caught.value)
