"""Toxic words, shown only to those who ask: a page carries them masked, and its script uncovers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from unicodedata import normalize

import regex

from xlingtox.escaping import escaped

# As in a word list's search: scripts without spaces do not continue a word, and Korean writes particles onto it.
_BEFORE = r"(?<![[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}]])"
_AFTER = r"(?![[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]])"


def mask(toxic_words: Mapping[str, Iterable[str]] | None) -> Callable[[str], str]:
    """A function from a text to HTML in which listed words, of every language, are masked.

    A word that stands alone is masked from half its length on: tokens are often the beginnings of words. Without a
    list, nothing is known of the words, and all of a text is masked.
    """
    if toxic_words is None:
        return lambda text: _masked(text.strip()) if text.strip() else ""
    listed = {normalize("NFC", word.strip()).casefold() for words in toxic_words.values() for word in words} - {""}
    longest_first = sorted(listed, key=lambda word: (-len(word), word))
    union = "|".join(map(regex.escape, longest_first)) or r"(?!)"
    pattern = regex.compile(f"{_BEFORE}(?:{union}){_AFTER}", regex.IGNORECASE | regex.VERSION1)
    beginnings = {word[:n] for word in listed for n in range((len(word) + 1) // 2, len(word) + 1)}

    def shown(text: str) -> str:
        plain = normalize("NFC", text.strip())
        if plain.casefold() in beginnings:
            return _masked(plain)
        parts, at = [], 0
        for found in pattern.finditer(plain):
            parts += [escaped(plain[at : found.start()]), _masked(found[0])]
            at = found.end()
        return "".join([*parts, escaped(plain[at:])])

    return shown


def _masked(text: str) -> str:
    """The first letter stays, so that one word can be told from another."""
    (first, *others) = regex.findall(r"\X", text)
    cover = escaped(first) + "•" * min(len(others), 12)
    return f'<span class="masked" data-text="{escaped(text)}">{cover}</span>'
