"""Toxic words, shown only to those who ask: a page carries them masked, and its script uncovers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import regex

from xlingtox.html.escaping import escaped
from xlingtox.text import Matcher, entry


def mask(toxic_words: Mapping[str, Iterable[str]] | None) -> Callable[[str], str]:
    """Return a function from a text to HTML in which the listed words of every language are masked.

    Words are found as `WordlistScorer` finds them: whole ones where a script has spaces between words, and anywhere
    where it has none. Without a list, nothing is known of the words, and all of a text is masked.
    """
    if toxic_words is None:
        return lambda text: _masked(text.strip()) if text.strip() else ""
    matcher = Matcher(entry(word, code) for code, words in toxic_words.items() for word in words if word.strip())

    def shown(text: str) -> str:
        plain = text.strip()
        parts, at = [], 0
        for start, end in matcher.spans(plain):
            parts += [escaped(plain[at:start]), _masked(plain[start:end])]
            at = end
        return "".join([*parts, escaped(plain[at:])])

    return shown


def _masked(text: str) -> str:
    """The first letter stays, so that one word can be told from another."""
    (first, *others) = regex.findall(r"\X", text)
    cover = escaped(first) + "•" * min(len(others), 12)
    return f'<span class="masked" data-text="{escaped(text)}">{cover}</span>'
