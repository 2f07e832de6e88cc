"""What a reader sees of a text: whether anything at all, and whether two texts look alike."""

from unicodedata import category, normalize

_LOOKS_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U0001d159")
"""Fillers and blanks that Unicode counts as letters, marks or symbols."""

_UNSEEN = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me"))

_JOINERS = frozenset("\u200c\u200d")
"""Format characters that spelling needs, as in Persian, Hindi and emoji."""


def visible(text: str) -> bool:
    """Whether there is anything to see: a mark (an accent, a variation selector) has to stand on something."""
    return any(each not in _LOOKS_EMPTY and category(each) not in _UNSEEN for each in text)


def appearance(text: str) -> str:
    """The text in one spelling: accents composed, without format characters, and without blanks around it."""
    shown = (each for each in normalize("NFC", text) if category(each) != "Cf" or each in _JOINERS)
    return "".join(shown).strip()
