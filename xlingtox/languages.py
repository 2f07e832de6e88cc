"""The 17 languages of the paper: their codes, in the order in which every table and figure lists them."""

from collections.abc import Iterable
from types import MappingProxyType

NAMES = MappingProxyType(
    {
        "en": "English",
        "es": "Spanish",
        "fr": "French",
        "de": "German",
        "pt": "Portuguese",
        "it": "Italian",
        "nl": "Dutch",
        "sv": "Swedish",
        "id": "Indonesian",
        "pl": "Polish",
        "cs": "Czech",
        "ru": "Russian",
        "zh": "Chinese",
        "ja": "Japanese",
        "ko": "Korean",
        "hi": "Hindi",
        "ar": "Arabic",
    }
)
"""Language code (ISO 639-1) to English name; iteration order is the house's order of languages."""

CODES: tuple[str, ...] = tuple(NAMES)
"""The 17 codes, English first."""


def name(code: str) -> str:
    """The language's English name; the code itself where it is not among the 17."""
    return NAMES.get(code, code)


def check(languages: str | Iterable[str]) -> tuple[str, ...]:
    """Return `languages` as a tuple of known codes, in the given order.

    Raises:
        ValueError: a code is not one of the 17; the message lists them.
    """
    codes = (languages,) if isinstance(languages, str) else tuple(languages)
    unknown = [code for code in codes if code not in NAMES]
    if unknown:
        known = ", ".join(sorted(NAMES))
        raise ValueError(f"unknown language {', '.join(map(repr, unknown))}: expected one of {known}")
    return codes


def in_order(languages: Iterable[str]) -> tuple[str, ...]:
    """Distinct codes in the house's order; codes that are not among the 17 follow, sorted."""
    given = set(languages)
    return tuple(c for c in CODES if c in given) + tuple(sorted(given - set(CODES)))
