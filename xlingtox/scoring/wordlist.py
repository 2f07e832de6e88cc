"""WordlistScorer: a text is toxic if it holds a listed word."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from unicodedata import normalize

import numpy as np
import regex
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.languages import SCORED, check
from xlingtox.scoring.protocol import Described, require_scorable

_RULES = 3
"""Part of the revision: counts the changes of what matches."""

# Scripts without spaces between words; of U+30FC, which lengthens kana, Unicode says that it has no script.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]"
# A word that begins with a letter begins where it has no letter before it, and ends likewise. Words of scripts without
# spaces, and symbols, begin and end anywhere; Korean particles and copula are written onto words, foreign ones too.
_BEGIN = rf"(?:(?!{_LETTER})|(?<!{_LETTER}))"
_END = rf"(?:(?<![{_LETTER}--[\p{{Hangul}}]])|(?![{_LETTER}--[\p{{Hangul}}]]))"

# Sorting a long run of marks takes time by its square: more than thirty on a letter are in no language (UAX #15-D4).
_PILED = regex.compile(r"(?<=\p{M}{30})\p{M}+")
# Ligatures, Hebrew and Arabic letters by their place in a word, full and half width.
_FORMS = regex.compile(r"[\uFB00-\uFDFF\uFE70-\uFEFC\uFF01-\uFF9F]+")
# What is not to be seen: within words, where a line or a page may break; after a symbol, which picture it is to be.
_UNSEEN = regex.compile(rf"(?V1)(?<={_LETTER}|[{_UNSPACED}])[\u00AD\u200B\u2060\uFEFF]+(?=\w)|(?<=\S)[\uFE0E\uFE0F]+")
# A vowel of Thai and Lao that is written as its two halves, with a tone between them or not.
_HALVES = regex.compile(r"\u0E4D([\u0E48-\u0E4B]*)\u0E32|\u0ECD([\u0EC8-\u0ECB]*)\u0EB2")
# Marks that may be left out in writing. They go only after a letter, so that nothing becomes empty.
_OPTIONAL = regex.compile(
    r"(?<=\p{Arabic})[\u064B-\u0652\u0670\u0640]+"  # vowel signs, tatweel
    r"|(?<=\p{Hebrew})[\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7]+"  # points, cantillation
    r"|(?<=\p{Devanagari})\u093C"  # nukta
    r"|(?<=\u094D)[\u200C\u200D]"  # joiners after a virama
    r"|(?<=\p{Cyrillic})\u0301"  # stress
)
_SAME = str.maketrans("أإآٱёЁँ’ʼάέήίόύώΐΰΆΈΉΊΌΎΏ", "ااااеЕं''αεηιουωϊϋΑΕΗΙΟΥΩ")


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
    def __init__(self, words: Mapping[str, Sequence[str]], everywhere: bool = False, name: str = "wordlist") -> None:
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
        check(words, SCORED)
        for language, listed in words.items():
            if not listed or any(not word.strip() for word in listed):
                raise ValueError(f"the word list of {language!r} is empty or has a blank word")
        own = {language: frozenset(_entry(word, language) for word in listed) for language, listed in words.items()}
        if everywhere:
            own = dict.fromkeys(own, frozenset().union(*own.values()))
        compiled = {listed: _compiled(listed) for listed in set(own.values())}
        self._patterns = {language: compiled[listed] for language, listed in own.items()}
        # As ASCII, which writes lone surrogates too.
        rules = json.dumps([_RULES, {language: sorted(listed) for language, listed in own.items()}], sort_keys=True)
        revision = hashlib.sha256(rules.encode("ascii")).hexdigest()[:12]
        super().__init__(name, revision, frozenset(own))

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Raises ValueError for a language without a list."""
        require_scorable(self, texts, languages)
        pairs = zip(texts, languages, strict=True)
        found = [self._patterns[language].search(_folded(text)) is not None for text, language in pairs]
        return np.array(found, dtype=np.float64)

    @checked
    def found(self, text: str, language: str) -> list[str]:
        """The listed words in a text, from the left, the longest one at each place; without optional marks."""
        require_scorable(self, [text], [language])
        return [match.group() for match in self._patterns[language].finditer(_folded(text))]


def _folded(text: str) -> str:
    """A text as it is compared, up to case."""
    if text.isascii():
        return text
    plain = _FORMS.sub(lambda run: normalize("NFKC", run.group()), _UNSEEN.sub("", _PILED.sub("", text)))
    whole = _HALVES.sub(_joined, plain)
    return _OPTIONAL.sub("", normalize("NFC", whole)).translate(_SAME)


def _joined(halves: regex.Match) -> str:
    thai, lao = halves.groups()
    return f"{lao}\u0eb3" if thai is None else f"{thai}\u0e33"


def _entry(word: str, language: str) -> str:
    """A listed word as it is compared; ß stands for itself and for ss."""
    folded = _folded(word.strip()).replace("ẞ", "ß")
    return regex.sub("ss", "ß", folded, flags=regex.IGNORECASE) if language == "de" else folded


def _compiled(words: frozenset[str]) -> regex.Pattern:
    # The engine takes the first alternative that fits.
    longest_first = sorted(words, key=lambda word: (-len(word) - word.count("ß"), word))
    any_of = "|".join(r"\s+".join(map(_alternatives, regex.split(r"\s+", word))) for word in longest_first)
    # Without full case folding, by which "ass" would be found in "aß".
    return regex.compile(f"{_BEGIN}(?-f:{any_of}){_END}", regex.IGNORECASE | regex.VERSION1)


def _alternatives(part: str) -> str:
    return regex.escape(part).replace("ß", "(?:ß|ss)")
