"""Masking of toxic words: a page shows them covered, and its script uncovers them for readers who ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import regex

from xlingtox.html.escaping import escaped
from xlingtox.text import Matcher, entry


def mask(toxic_words: Mapping[str, Iterable[str]] | None) -> Callable[[str], str]:
    """Return a function from a text to HTML in which the listed words of every language are masked.

    It finds words as `WordlistScorer` does: whole words in scripts with spaces, and anywhere in scripts without them.
    Without a list we do not know which words are toxic, so the whole text is masked.

    Example:
        >>> from xlingtox.html.masking import mask
        >>> mask({"en": ["fool"]})("You fool!")
        'You <span class="masked" data-text="fool">f•••</span>!'
    """
    if toxic_words is None:
        return lambda text: _masked(text.strip()) if text.strip() else ""
    matcher = Matcher(entry(word, code) for code, words in toxic_words.items() for word in words if word.strip())

    def masked_text(text: str) -> str:
        plain = text.strip()
        pieces, done = [], 0
        for start, end in matcher.spans(plain):
            pieces += [escaped(plain[done:start]), _masked(plain[start:end])]
            done = end
        return "".join([*pieces, escaped(plain[done:])])

    return masked_text


def _masked(text: str) -> str:
    """Return a word as HTML that shows only its first letter, so that readers can tell words apart."""
    first, *rest = regex.findall(r"\X", text)
    cover = escaped(first) + "•" * min(len(rest), 12)
    return f'<span class="masked" data-text="{escaped(text)}">{cover}</span>'
