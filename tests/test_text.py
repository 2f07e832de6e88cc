"""Text as a reader sees it, and lines for logs."""

import pytest

from xlingtox.text import appearance, visible


@pytest.mark.parametrize(
    "text",
    [
        *("", " \n", "\x00", "\u200b", "\u3164", "\u00ad", "\u2062", "\u200e\u200f", "\ufe0f", "\u180b"),
        *("\U000e0100", "\u0301", "\U0001d159", "\U00016fe4", "\u115f\u1160"),
    ],
)
def test_nothing_to_see(text):
    assert not visible(text)


@pytest.mark.parametrize("text", ["a", "e\u0301", "।", "👩‍👧", "❤\ufe0f", "กำ", "می‌خواهم", "\ufffd", "\U0001fae9"])
def test_something_to_see(text):
    assert visible(text)
    assert appearance(f" {text}\u200b") == appearance(text)


def test_two_spellings_look_alike_and_joiners_are_spelling():
    assert appearance(" cafe\u0301\u200b") == appearance("caf\xe9 ")
    assert appearance("می‌خواهم") != appearance("میخواهم")
