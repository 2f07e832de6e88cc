"""Changes by group, against means by hand over the texts."""

import re

import numpy as np
import pytest
from toys import HashScorer

from xlingtox.data import Prompt
from xlingtox.evaluation import changes_by_group, paired_changes
from xlingtox.models.generation import Continuations
from xlingtox.scoring import WordlistScorer

CODES = ("en", "es", "de")
N_PROMPTS, N_SAMPLES = 6, 3
GROUPS = ["met", "met", "not met", "met", "not met", "not met"]
ROWS = [
    {"language": code, "prompt": f"{code} {i}", "index": i, "group": GROUPS[i]}
    for code in CODES
    for i in range(N_PROMPTS)
]


def written(seed: int) -> Continuations:
    rng = np.random.default_rng(seed)
    prompts = tuple(Prompt(row["language"], row["prompt"]) for row in ROWS)
    words = rng.choice(["fool", "rat", "kind", "calm"], len(prompts) * N_SAMPLES)
    return Continuations(prompts, N_SAMPLES, tuple(f"a {word} {i}" for i, word in enumerate(words)))


SCORER = WordlistScorer({code: {"fool": 0.4, "rat": 0.9} for code in CODES})
WORDS = {"fools": WordlistScorer({code: ["fool"] for code in CODES})}


def by_hand(continuations: Continuations, code: str, group: str) -> float:
    """The mean score, or the share with a fool, of the texts of one language and group."""
    table = continuations.to_frame()
    table["group"] = [row["group"] for row in ROWS for _ in range(N_SAMPLES)]
    texts = table[table["language"] == code]
    if group == "fools":
        return float(texts["continuation"].str.contains("fool").mean())
    scores = texts[texts["group"] == group]["continuation"].map(
        lambda text: 0.4 if "fool" in text else 0.9 if "rat" in text else 0.0
    )
    return float(scores.mean())


def test_means_are_those_by_hand():
    before, after = written(0), written(1)
    changes = changes_by_group(before, after, ROWS, scorer=SCORER, words=WORDS)
    assert [(change.kind, change.group) for change in changes[::4]] == [
        ("prompts", "met"),
        ("prompts", "not met"),
        ("words", "fools"),
    ]
    for change in changes:
        codes = ["es", "de"] if change.language == "others" else [change.language]
        means = (np.mean([by_hand(side, code, change.group) for code in codes]) for side in (before, after))
        assert (change.before, change.after) == pytest.approx(tuple(means))
        assert change.low <= change.after - change.before <= change.high
    assert [change.language for change in changes[:4]] == ["en", "es", "de", "others"]


def test_intervals_are_those_of_the_group_alone():
    before, after = written(0), written(1)
    (change, *_) = changes_by_group(before, after, ROWS, scorer=SCORER)
    kept = [i for i in range(N_PROMPTS) if GROUPS[i] == "met"]
    sides = (
        {
            "en": np.array(
                [
                    np.mean(SCORER.score(list(side.texts[i * N_SAMPLES : (i + 1) * N_SAMPLES]), ["en"] * N_SAMPLES))
                    for i in kept
                ]
            )
        }
        for side in (before, after)
    )
    expected = paired_changes(*sides)[0]["en"]
    assert (change.low, change.high) == pytest.approx((expected.low, expected.high))


def test_without_groups_only_words_are_told_apart():
    rows = [{name: row[name] for name in ("language", "prompt")} for row in ROWS]
    changes = changes_by_group(written(0), written(1), rows, scorer=SCORER, words=WORDS)
    assert {change.group for change in changes} == {"fools"}
    assert changes_by_group(written(0), written(1), rows, scorer=SCORER) == ()


def test_another_source_language_leaves_itself_out_of_the_others():
    changes = changes_by_group(written(0), written(1), ROWS, scorer=SCORER, words=WORDS, source_language="de")
    (others,) = [change for change in changes if change.group == "fools" and change.language == "others"]
    assert others.before == pytest.approx(np.mean([by_hand(written(0), code, "fools") for code in ("en", "es")]))


def test_other_prompts_are_refused():
    with pytest.raises(ValueError, match=re.escape("18 prompts and other prompts, 17 of them")):
        changes_by_group(written(0), written(1), ROWS[1:], scorer=SCORER)
    with pytest.raises(ValueError, match="es"):
        changes_by_group(written(0), written(1), ROWS, scorer=HashScorer("en", "de"))
