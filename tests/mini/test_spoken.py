"""The miniature's languages are told apart by their words."""

import pytest

from xlingtox import languages, mini
from xlingtox.evaluation import degenerate


@pytest.mark.parametrize("code", languages.CODES)
def test_held_out_text_is_of_its_language(code):
    documents = mini.held_out(n=40, languages=[code])["text"]
    continuations = mini.pairs(code, n=40, split="test")
    assert mini.identify_language(documents) == [code] * 40
    identified = mini.identify_language([*continuations["chosen"], *continuations["rejected"]])
    assert set(identified) <= {code, None}
    assert identified.count(code) > 0.95 * len(identified)


def test_what_cannot_be_told_is_left_open():
    assert mini.identify_language(["", " ... ", "Peter", "xyzzy plugh", "\ufffd"]) == [None] * 5


def test_a_single_word_of_another_language_changes_nothing():
    assert (
        mini.identify_language(["He is a fool, and everyone knows it.", "He is ein Narr, and everyone knows it."])
        == ["en"] * 2
    )


def test_degenerate_counts_a_switch_of_language():
    texts = ["Er ist klug, und alle wissen es.", "He is clever, and everyone knows it."]
    assert degenerate.kinds(texts, ["de", "de"]) == ["sound", "sound"]
    assert degenerate.kinds(texts, ["de", "de"], identify_language=mini.identify_language) == [
        "sound",
        "wrong language",
    ]
    assert degenerate.shares(texts, ["de", "de"], identify_language=mini.identify_language) == {"de": 0.5}
