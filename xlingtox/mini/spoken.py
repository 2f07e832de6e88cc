"""Which language of the miniature's world a text is in, by the words that each has: there are no others."""

from collections.abc import Sequence
from functools import cache

import regex

from xlingtox import languages
from xlingtox.mini import world

_GLUED = frozenset({"zh", "ja", "ko"})
"""Languages that write words, or words and particles, together."""

_LEAST_LEAD = 0.1
_LETTER = regex.compile(r"\p{L}")
_WORD = regex.compile(r"[\p{L}\p{M}]+")


def identify(texts: Sequence[str]) -> list[str | None]:
    """Of each text, its language; None where that is uncertain. An `identify` for `degenerate.kinds` and the like.

    It is the language whose words cover most of the letters, if that is half of them or more, and a tenth of all more
    than the next language covers: many names and some loan words are spelt alike.
    """
    return [_language_of(text) for text in texts]


def _language_of(text: str) -> str | None:
    folded = text.casefold()
    total = len(_LETTER.findall(folded))
    covered = {
        code: sum(len(_LETTER.findall(part)) for part in _known(code).findall(folded)) for code in languages.CODES
    }
    second, first = sorted(covered, key=covered.__getitem__)[-2:]
    if 2 * covered[first] < max(total, 1) or covered[first] - covered[second] < _LEAST_LEAD * total:
        return None
    return first


@cache
def _known(code: str) -> regex.Pattern[str]:
    """Finds a language's words, longest first."""
    words = {word for text in world.lexicon(code).texts() for word in _WORD.findall(text.casefold())}
    union = "|".join(sorted(map(regex.escape, words), key=lambda word: (-len(word), word)))
    return regex.compile(f"(?:{union})" if code in _GLUED else rf"(?<![\p{{L}}\p{{M}}])(?:{union})(?![\p{{L}}\p{{M}}])")
