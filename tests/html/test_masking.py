"""Listed words are masked, and no others."""

import html
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xlingtox.html.masking import mask
from xlingtox.scoring import WordlistScorer

WORDS = {
    "en": ["fool", "semen", "hand job"],
    "fr": ["fou"],
    "de": ["scheiße"],
    "ru": ["осёл"],
    "zh": ["傻瓜"],
    "ja": ["ばか"],
    "th": ["ควาย", "คำนำ"],
    "lo": ["ຄວາຍ"],
    "km": ["ឆ្កួត"],
    "my": ["ခွေး"],
    "ko": ["바보"],
    "hi": ["मूर्ख", "लफ़ंगा"],
    "ar": ["أحمق"],
}


def masked(text, words=WORDS):
    """Return the words under a mask, after checking that the rest of the text is unchanged."""
    shown = mask(words)(text)
    covers = re.findall(r'<span class="masked" data-text="([^"]*)">([^<]*)</span>', shown)
    uncovered = re.sub(r'<span class="masked" data-text="([^"]*)">[^<]*</span>', r"\1", shown)
    assert html.unescape(uncovered) == text.strip()
    assert not any(html.unescape(word) in cover for word, cover in covers if len(word) > 1)
    return [html.unescape(word) for word, _ in covers]


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
        ("hand  job, handjob", ["hand  job"]),
        # Parts of words are words of their own: they mask nothing.
        (" sem", []),
        (" fo", []),
        ("semen2", []),
        ("傻", []),
        ("傻瓜傻瓜", ["傻瓜", "傻瓜"]),
        # Scripts without spaces: in the midst of other letters.
        ("あのばかめ", ["ばか"]),
        ("เขาเป็นควายจริง", ["ควาย"]),
        ("ລາວເປັນຄວາຍແທ້", ["ຄວາຍ"]),
        ("គាត់ឆ្កួតណាស់", ["ឆ្កួត"]),
        ("သူကခွေးပါ", ["ခွေး"]),
        # However it is spelled, what is masked is the text as it stands.
        ("ＦＯＯＬ!", ["ＦＯＯＬ"]),
        ("a fo\u00adol here", ["fo\u00adol"]),
        ("Scheisse, SCHEISSE, scheiße", ["Scheisse", "SCHEISSE", "scheiße"]),
        ("ты осе\u0308л, осел", ["осе\u0308л", "осел"]),
        ("لكن أَحْمَق هنا", ["أَحْمَق"]),
        ("लफंगा लफ\u093cंगा", ["लफंगा", "लफ\u093cंगा"]),
        ("นี่คํานํานะ", ["คํานํา"]),
        ("<b>fool</b> & co", ["fool"]),
        ("", []),
    ],
)
def test_listed_words_of_every_language(text, words):
    assert masked(text) == words


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*"abfol \u0301\u00ad\u200b\ufe0fßﬁ傻瓜وأ\u064eควำ\u0e4d\u0e32ｶﾞ́", "fool", "أحمق", "осёл"]))
)
@example(["ﬁ", "\u00ad", "fool"])
def test_whatever_a_word_list_finds_is_masked_and_the_text_is_kept(parts):
    text = "".join(parts).strip()
    listed = WordlistScorer(WORDS, everywhere=True).found(text, "en")
    # Words that cannot be told apart in the text, as those of one ligature, are under one mask.
    assert bool(masked(text)) == bool(listed)
    assert len(masked(text)) <= len(listed)


def test_without_a_list_all_of_a_text_is_masked():
    assert masked("She is kind.", None) == ["She is kind."]
    assert mask(None)("  ") == ""
    assert masked("She is kind.", {}) == []


def test_the_cover_keeps_the_first_character_only():
    assert ">f•••<" in mask(WORDS)("fool")
    assert ">मू•<" in mask(WORDS)("मूर्ख") or ">मू••<" in mask(WORDS)("मूर्ख")
