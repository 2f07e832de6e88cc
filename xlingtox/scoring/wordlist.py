"""WordlistScorer: a text is toxic if it holds a listed word."""

from collections.abc import Mapping, Sequence
from unicodedata import normalize

import numpy as np
import regex
from jaxtyping import Float

from xlingtox.scoring.protocol import require_covered

_UNSPACED = frozenset({"zh", "ja", "th"})
_SUFFIXING = frozenset({"ko"})
# Scripts without spaces do not continue a word of another script: an insult may stand right beside them.
_LETTER = r"[[\p{L}\p{M}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]]"


class WordlistScorer:
    """1.0 for a text with a listed word, else 0.0; case is ignored.

    Words match whole; as any part of the text in languages written without spaces (zh, ja, th), and as the beginning
    of a word in Korean, whose particles and copula are written onto it.
    """

    def __init__(self, words: Mapping[str, Sequence[str]], everywhere: bool = False, name: str = "wordlist") -> None:
        """
        Args:
            words: language to its toxic words.
            everywhere: look for the words of every language in every text, as code-switching asks for. Only for lists
                in which no word is harmless in another language.

        Raises:
            ValueError: a language without words, or a blank word.
        """
        for language, listed in words.items():
            if not listed or any(not word.strip() for word in listed):
                raise ValueError(f"the word list of {language!r} is empty or has a blank word")
        own = {language: _pattern(language, listed) for language, listed in words.items()}
        if everywhere:
            union = "|".join(own.values())
            own = dict.fromkeys(own, union)
        compiled = {pattern: regex.compile(pattern, regex.IGNORECASE | regex.VERSION1) for pattern in set(own.values())}
        self._patterns = {language: compiled[pattern] for language, pattern in own.items()}
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def languages(self) -> frozenset[str]:
        return frozenset(self._patterns)

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Raises ValueError for a language without a list."""
        require_covered(self, languages)
        patterns = (self._patterns[language] for language in languages)
        found = [own.search(normalize("NFC", text)) is not None for text, own in zip(texts, patterns, strict=True)]
        return np.array(found, dtype=np.float64)


def _pattern(language: str, words: Sequence[str]) -> str:
    longest_first = sorted({normalize("NFC", word.strip()) for word in words}, key=lambda word: (-len(word), word))
    any_of = "(?:" + "|".join(regex.escape(word) for word in longest_first) + ")"
    if language in _UNSPACED:
        return any_of
    if language in _SUFFIXING:
        return rf"(?<!{_LETTER}){any_of}"
    return rf"(?<!{_LETTER}){any_of}(?!{_LETTER})"
