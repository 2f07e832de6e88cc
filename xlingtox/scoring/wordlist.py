"""WordlistScorer: a text is toxic if it holds a listed word."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.languages import SCORED, check
from xlingtox.scoring.protocol import Described, check_scorable
from xlingtox.text import RULES, Matcher, entry


class WordlistScorer(Described):
    """1.0 for a text with a listed word, else 0.0.

    Case is ignored, and so are full and half width, and marks that a script leaves out as often as it writes them:
    Arabic vowel signs and the hamza of an alef, Hebrew points, the Devanagari nukta, Russian stress and the dots of ё,
    the Greek tonos. A mark that makes another letter counts: `lache` is not `lâche`. In German words ß and ss are the
    same.

    Words match whole where their script has spaces between words, and as any part of the text where it has none
    (Chinese, Japanese, Thai), as symbols do; Korean ones match as the beginning of a word, because particles are
    written onto them.
    The revision is twelve hex digits of all words.
    """

    @checked
    def __init__(self, words: Mapping[str, Sequence[str]], *, everywhere: bool = False, name: str = "wordlist") -> None:
        """
        Args:
            words: language to its toxic words; a word may be several, with spaces.
            everywhere: look for the words of every language in every text, as code-switching asks for. Only for lists
                in which no word is harmless in another language.

        Raises:
            ValueError: no list, an unknown language or one without words, or a blank word.
        """
        if not words:
            raise ValueError("there is no word list: expected words={'en': [...], ...}")
        check(words, among=SCORED)
        for language, listed in words.items():
            if not listed or any(not word.strip() for word in listed):
                raise ValueError(f"the word list of {language!r} is empty or has a blank word")
        own = {language: frozenset(entry(word, language) for word in listed) for language, listed in words.items()}
        if everywhere:
            own = dict.fromkeys(own, frozenset().union(*own.values()))
        matchers = {listed: Matcher(listed) for listed in set(own.values())}
        self._matchers = {language: matchers[listed] for language, listed in own.items()}
        # As ASCII, which writes lone surrogates too.
        rules = json.dumps([RULES, {language: sorted(listed) for language, listed in own.items()}], sort_keys=True)
        revision = hashlib.sha256(rules.encode("ascii")).hexdigest()[:12]
        super().__init__(name, revision, frozenset(own))

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Raises ValueError for a language without a list."""
        check_scorable(self, texts, languages)
        pairs = zip(texts, languages, strict=True)
        found = [self._matchers[language].search(text) for text, language in pairs]
        return np.array(found, dtype=np.float64)

    @checked
    def found(self, text: str, language: str) -> list[str]:
        """The listed words in a text, from the left, the longest one at each place; without optional marks."""
        check_scorable(self, [text], [language])
        return self._matchers[language].words(text)
