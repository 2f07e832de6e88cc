"""Score texts with word lists: a text is toxic if it holds a listed word."""

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
    """A scorer that returns 1.0 for a text with a listed word, and 0.0 for any other text.

    It is exact and quick, but knows nothing of context.

    Case, full width and half width do not matter. Nor do marks that writers may leave out: Arabic vowel signs and the
    hamza of an alef, Hebrew points, the Devanagari nukta, Russian stress and the dots of ё, the Greek tonos. A mark
    that makes a different letter does matter: `lache` is not `lâche`. In German words ß and ss are the same.

    In scripts with spaces between words, only whole words match. In scripts without (Chinese, Japanese, Thai), a listed
    word matches anywhere in the text; so do symbols. A Korean word matches as the beginning of a word, because
    particles are written onto it.

    The revision is the first twelve hex digits of a SHA-256 of all words and of these rules.

    Example:
        >>> scorer = xt.scoring.WordlistScorer({"en": ["fool"], "es": ["tonto"]})
        >>> scorer.score(["What a Fool!", "un amigo"], ["en", "es"])
        array([1., 0.])
        >>> scorer.found("What a Fool!", "en")
        ['Fool']
    """

    @checked
    def __init__(self, words: Mapping[str, Sequence[str]], *, everywhere: bool = False, name: str = "wordlist") -> None:
        """
        Args:
            words: each language's toxic words. An entry may be several words with spaces between them.
            everywhere: look for the words of every language in every text, because speakers switch between languages.
                Use it only if no listed word is harmless in another language.
            name: the scorer's name in results.

        Raises:
            ValueError: no list, an unknown language or one without words, or a blank word.
        """
        if not words:
            raise ValueError("there is no word list: expected words={'en': [...], ...}")
        check(words, among=SCORED)
        for language, listed in words.items():
            if not listed or any(not word.strip() for word in listed):
                raise ValueError(f"the word list of {language!r} is empty or has a blank word")
        entries = {language: frozenset(entry(word, language) for word in listed) for language, listed in words.items()}
        if everywhere:
            entries = dict.fromkeys(entries, frozenset().union(*entries.values()))
        matchers = {listed: Matcher(listed) for listed in set(entries.values())}
        self._matchers = {language: matchers[listed] for language, listed in entries.items()}
        # ASCII escapes can write lone surrogates too.
        rules = json.dumps([RULES, {language: sorted(listed) for language, listed in entries.items()}], sort_keys=True)
        revision = hashlib.sha256(rules.encode("ascii")).hexdigest()[:12]
        super().__init__(name, revision, frozenset(entries))

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return 1.0 or 0.0 for each text.

        Raises:
            UncoveredLanguage: a language without a list.
        """
        check_scorable(self, texts, languages)
        pairs = zip(texts, languages, strict=True)
        matches = [self._matchers[language].search(text) for text, language in pairs]
        return np.array(matches, dtype=np.float64)

    @checked
    def found(self, text: str, language: str) -> list[str]:
        """Return the listed words in a text from left to right, the longest one at each place.

        The words come as the text writes them, without optional marks.

        Raises:
            UncoveredLanguage: a language without a list.
        """
        check_scorable(self, [text], [language])
        return self._matchers[language].words(text)
