"""Identify the language of the miniature's texts, by the words that each language has."""

from collections.abc import Sequence
from functools import cache

import regex

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.mini import world

_GLUED = frozenset({*languages.UNSPACED, "ko"}).intersection(languages.CODES)
"""Languages that write no spaces between words, or between a word and its particles."""

_LEAST_LEAD = 0.1
"""The best language must cover this share of all letters more than the next one does."""

_LETTER = regex.compile(r"\p{L}")
_EAST_ASIAN = regex.compile(rf"[{languages.UNSPACED_SCRIPTS}\p{{Hangul}}]")
_WORD = regex.compile(r"[\p{L}\p{M}]+")


@checked
def identify_language(texts: Sequence[str]) -> list[str | None]:
    """Return the language of each text; None where that is uncertain.

    The language is the one whose words cover most of the letters. They must cover half of all letters, and a tenth more
    than the next language's words do, because many names and some loan words are spelt alike. `compare` and other calls
    take this function as `identify_language`.

    Example:
        >>> xt.mini.identify_language(["He is kind.", "Er ist freundlich.", "Peter"])
        ['en', 'de', None]
    """
    return [_language_of(text) for text in texts]


def _language_of(text: str) -> str | None:
    folded = text.casefold()
    covered = dict.fromkeys(languages.CODES, 0)
    for word in _WORD.findall(folded):
        for code in _languages_by_word().get(word, ()):
            covered[code] += _letters(word)
    if _EAST_ASIAN.search(folded):
        for code in _GLUED:
            covered[code] = sum(map(_letters, _word_pattern(code).findall(folded)))
    total = _letters(folded)
    second, first = sorted(covered, key=covered.__getitem__)[-2:]
    if 2 * covered[first] < max(total, 1) or covered[first] - covered[second] < _LEAST_LEAD * total:
        return None
    return first


def _letters(text: str) -> int:
    return len(_LETTER.findall(text))


def _words(code: str) -> set[str]:
    return {word for text in world.lexicon(code).texts() for word in _WORD.findall(text.casefold())}


@cache
def _languages_by_word() -> dict[str, list[str]]:
    """Return each word of the languages with spaces, and the languages that have it."""
    languages_of: dict[str, list[str]] = {}
    for code in languages.CODES:
        for word in _words(code) if code not in _GLUED else ():
            languages_of.setdefault(word, []).append(code)
    return languages_of


@cache
def _word_pattern(code: str) -> regex.Pattern[str]:
    """Return a pattern that finds the words of a language without spaces, the longest first."""
    return regex.compile("|".join(sorted(map(regex.escape, _words(code)), key=lambda word: (-len(word), word))))
