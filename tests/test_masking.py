"""Which words are masked, and that no other is."""

import html
import re

import pytest

from xlingtox.masking import mask

WORDS = {"en": ["fool"], "fr": ["fou"], "zh": ["傻瓜"], "ko": ["바보"], "hi": ["मूर्ख"], "ar": ["أحمق"]}


def masked(text, words=WORDS):
    """The words under a mask, after checking that all else stands as it was."""
    shown = mask(words)(text)
    found = re.findall(r'<span class="masked" data-text="([^"]*)">([^<]*)</span>', shown)
    uncovered = re.sub(r'<span class="masked" data-text="([^"]*)">[^<]*</span>', r"\1", shown)
    assert html.unescape(uncovered) == text.strip()
    assert not any(html.unescape(word) in cover for word, cover in found if len(word) > 1)
    return [html.unescape(word) for word, _ in found]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He is a FOOL, a fool.", ["FOOL", "fool"]),
        ("found foolish fooled", []),
        ("他是傻瓜。", ["傻瓜"]),
        ("그는 바보다.", ["바보"]),
        ("वह मूर्ख है", ["मूर्ख"]),
        ("هو أحمق.", ["أحمق"]),
        ("un fou", ["fou"]),
        (" fo", ["fo"]),
        ("f", []),
        ("<b>fool</b> & co", ["fool"]),
        ("", []),
    ],
)
def test_listed_words_of_every_language(text, words):
    assert masked(text) == words


def test_without_a_list_all_of_a_text_is_masked():
    assert masked("She is kind.", None) == ["She is kind."]
    assert mask(None)("  ") == ""
    assert masked("She is kind.", {}) == []


def test_the_cover_keeps_the_first_character_only():
    assert ">f•••<" in mask(WORDS)("fool")
    assert ">मू•<" in mask(WORDS)("मूर्ख") or ">मू••<" in mask(WORDS)("मूर्ख")
