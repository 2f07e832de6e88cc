"""Score texts with word lists: a text is as toxic as the most severe listed word in it."""

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
    """A scorer that returns the severity of the most severe listed word in a text, and 0.0 for a text without one.

    Words that are listed without a severity have 1.0. The scorer is exact and quick, but knows nothing of context.

    Take it as the floor: any list covers its language, and a better judge must beat it. Beside another judge it tells
    whether a model stopped insulting, or only dropped the words. `validate` says how good it is, and `blind_spots`
    which ways of writing escape it.

    Case, full width and half width do not matter. Nor do marks that writers may leave out: Arabic vowel signs and the
    hamza of an alef, Hebrew points, the Devanagari nukta, Russian stress and the dots of ё, the Greek tonos. A mark
    that makes a different letter does matter: `lache` is not `lâche`. In German words ß and ss are the same.

    In scripts with spaces between words, only whole words match. In scripts without (Chinese, Japanese, Thai), a listed
    word matches anywhere in the text; so do symbols. A Korean word matches as the beginning of a word, because
    particles are written onto it.

    The revision is the first twelve hex digits of a SHA-256 of all words, their severities and these rules.

    Example:
        >>> scorer = xt.scoring.WordlistScorer({"en": ["fool"], "es": ["tonto"]})
        >>> scorer.score(["What a Fool!", "un amigo"], ["en", "es"])
        array([1., 0.])
        >>> scorer.found("What a Fool!", "en")
        ['Fool']
        >>> xt.scoring.WordlistScorer({"en": {"rascal": 0.2, "traitor": 1.0}}).score(["You rascal!"], ["en"])
        array([0.2])
    """

    @checked
    def __init__(
        self,
        words: Mapping[str, Sequence[str] | Mapping[str, float]],
        *,
        everywhere: bool = False,
        name: str = "wordlist",
    ) -> None:
        """
        Args:
            words: each language's toxic words, or its toxic words with their severities in (0, 1]. An entry may be
                several words with spaces between them.
            everywhere: look for the words of every language in every text, because speakers switch between languages.
                Use it only if no listed word is harmless in another language.
            name: the scorer's name in results.

        Raises:
            ValueError: no list, an unknown language or one without words, a blank word, or a severity outside (0, 1].
        """
        if not words:
            raise ValueError("there is no word list: expected words={'en': [...], ...}")
        check(words, among=SCORED)
        severities: dict[str, dict[str, float]] = {}
        for language, listed in words.items():
            if not listed or any(not word.strip() for word in listed):
                raise ValueError(f"the word list of {language!r} is empty or has a blank word")
            with_severity = listed if isinstance(listed, Mapping) else dict.fromkeys(listed, 1.0)
            for word, severity in with_severity.items():
                if not 0 < severity <= 1:
                    raise ValueError(
                        f"the severity of {word!r} is {severity}: expected a number above 0, and at most 1"
                    )
            severities[language] = _most_severe([(entry(word, language), s) for word, s in with_severity.items()])
        if everywhere:
            together = _most_severe([pair for listed in severities.values() for pair in listed.items()])
            severities = dict.fromkeys(severities, together)
        lists = {id(listed): _SeverityList(listed) for listed in severities.values()}
        self._lists = {language: lists[id(listed)] for language, listed in severities.items()}
        entries = {
            language: sorted(listed) if set(listed.values()) == {1.0} else sorted(listed.items())
            for language, listed in severities.items()
        }
        # ASCII escapes can write lone surrogates too.
        rules = json.dumps([RULES, entries], sort_keys=True)
        revision = hashlib.sha256(rules.encode("ascii")).hexdigest()[:12]
        super().__init__(name, revision, frozenset(severities))

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return for each text the severity of its most severe listed word, or 0.0.

        Raises:
            UncoveredLanguage: a language without a list.
        """
        check_scorable(self, texts, languages)
        pairs = zip(texts, languages, strict=True)
        return np.array([self._lists[language].score(text) for text, language in pairs], dtype=np.float64)

    @checked
    def found(self, text: str, language: str) -> list[str]:
        """Return the listed words in a text from left to right, the longest one at each place.

        The words come as the text writes them, without optional marks.

        Raises:
            UncoveredLanguage: a language without a list.
        """
        check_scorable(self, [text], [language])
        return self._lists[language].matcher.words(text)


class _SeverityList:
    """One list of words with their severities, and the search for them."""

    def __init__(self, severities: Mapping[str, float]) -> None:
        self.matcher = Matcher(severities)
        self._severities = severities
        self._by_spelling = _most_severe([(_spelling(word), severity) for word, severity in severities.items()])

    def score(self, text: str) -> float:
        return max(map(self._severity, self.matcher.words(text)), default=0.0)

    def _severity(self, match: str) -> float:
        """Return the severity of the word that a match is a spelling of, such as "FOOL" of "fool"."""
        spelling = _spelling(match)
        if spelling not in self._by_spelling:
            # A rare spelling that only the search itself can tell.
            matching = (word for word in self._severities if Matcher([word]).words(match) == [match])
            self._by_spelling[spelling] = max(self._severities[word] for word in matching)
        return self._by_spelling[spelling]


def _spelling(word: str) -> str:
    """Return a word without what the search does not mind: case, ß for ss, and how wide a blank is."""
    return " ".join(word.casefold().split())


def _most_severe(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return each word once, with the greatest of its severities."""
    severities: dict[str, float] = {}
    for word, severity in pairs:
        severities[word] = max(severity, severities.get(word, 0.0))
    return severities
