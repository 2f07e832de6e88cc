"""Helpers on strings: text as a reader sees it, text that fits one line of a log, and a search for listed words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from unicodedata import category, normalize

import regex

from xlingtox.languages import UNSPACED_SCRIPTS

_LOOKS_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U0001d159")
"""Characters that show nothing, although Unicode counts them as letters, marks or symbols."""

_INVISIBLE = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me"))
"""Unicode categories of characters that show nothing when they stand alone."""

_JOINERS = frozenset("\u200c\u200d")
"""Invisible characters that belong to the spelling, for example in Persian, in Hindi and in emoji."""

_LONGEST_NAME = 200
"""The largest number of characters that `in_line` shows in full. Of a longer text it leaves out the middle."""

# Characters that must not reach a page: control characters (except tab and line ends), lone surrogates, and marks that
# change the direction of the text around them.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_SURROGATE = re.compile("[\ud800-\udfff]")

RULES = 3
"""The version of `Matcher`'s rules. Raise it with every change of what matches, because stored scores depend on it."""

_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED_SCRIPTS}]]"
# A listed word that begins with a letter must not follow a letter, and one that ends with a letter must not be followed
# by one. Words in scripts without spaces, and symbols, may begin and end anywhere. Korean writes particles and the
# copula onto words, also onto foreign ones: so Hangul may follow any word, and any letter may follow a Korean word.
_BEGIN = rf"(?:(?!{_LETTER})|(?<!{_LETTER}))"
_END = rf"(?:(?<![{_LETTER}--[\p{{Hangul}}]])|(?![{_LETTER}--[\p{{Hangul}}]]))"

# Unicode normalisation sorts the marks on a letter, in time that grows with the square of their number. No language
# puts more than thirty on one letter (UAX #15-D4), so the rest is dropped first.
_PILED = regex.compile(r"(?<=\p{M}{30})\p{M}+")
# Presentation forms: ligatures, Hebrew and Arabic letters shaped for their place in a word, full and half width.
_FORMS = regex.compile(r"[\uFB00-\uFDFF\uFE70-\uFEFC\uFF01-\uFF9F]+")
# Invisible characters: those that allow or forbid a line break inside a word, and variation selectors after a symbol.
_IGNORED = regex.compile(
    rf"(?V1)(?<={_LETTER}|[{UNSPACED_SCRIPTS}])[\u00AD\u200B\u2060\uFEFF]+(?=\w)|(?<=\S)[\uFE0E\uFE0F]+"
)
# A vowel of Thai and Lao that is written as its two halves, perhaps with a tone mark between them.
_HALVES = regex.compile(r"\u0E4D([\u0E48-\u0E4B]*)\u0E32|\u0ECD([\u0EC8-\u0ECB]*)\u0EB2")
# Marks that writers may leave out. We remove them only after a letter, so that no word becomes empty.
_OPTIONAL = regex.compile(
    r"(?<=\p{Arabic})[\u064B-\u0652\u0670\u0640]+"  # vowel signs, tatweel
    r"|(?<=\p{Hebrew})[\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7]+"  # points, cantillation
    r"|(?<=\p{Devanagari})\u093C"  # nukta
    r"|(?<=\u094D)[\u200C\u200D]"  # joiners after a virama
    r"|(?<=\p{Cyrillic})\u0301"  # stress
)
# The end of a sentence in any script that marks it, and the quotes, brackets, emphasis and blanks that may follow.
_SENTENCE_END = regex.compile(r"[\p{Sentence_Terminal}…][\p{Pe}\p{Pf}\p{Pi}\"'*_\p{Cf}\p{Mn}\s]*\Z")
# Letters that writers often use for each other.
_SAME = str.maketrans("أإآٱёЁँ’ʼάέήίόύώΐΰΆΈΉΊΌΎΏ", "ااااеЕं''αεηιουωϊϋΑΕΗΙΟΥΩ")

_CHUNK = regex.compile(r"\s+|\S+")
# What a reader sees as one letter. The second half of a Thai or Lao vowel belongs to it.
_CLUSTER = regex.compile(r"\X(?<=[\u0E4D\u0ECD][\u0E48-\u0E4B\u0EC8-\u0ECB]*)[\u0E32\u0EB2]|\X")


def visible(text: str) -> bool:
    """Return whether a reader can see anything in the text.

    A mark alone (an accent, a variation selector) does not count: it has to stand on something.

    Example:
        >>> from xlingtox.text import visible
        >>> visible("a"), visible(" \\u200b")  # a zero-width space
        (True, False)
    """
    return any(char not in _LOOKS_EMPTY and category(char) not in _INVISIBLE for char in text)


def appearance(text: str) -> str:
    """Return the text in one spelling, so that texts that look alike are equal.

    Accents are composed; invisible format characters and surrounding blanks are removed.

    Example:
        >>> from xlingtox.text import appearance
        >>> appearance(" cafe\\u0301 ") == "caf\\xe9"
        True
    """
    composed = normalize("NFC", text)
    return "".join(char for char in composed if category(char) != "Cf" or char in _JOINERS).strip()


def ends_a_sentence(text: str) -> bool:
    """Return whether a text ends with the end of a sentence, in any script that marks it.

    Closing quotes and brackets may follow the mark. Thai and Lao mark no ends, so that their texts never pass.

    Example:
        >>> from xlingtox.text import ends_a_sentence
        >>> ends_a_sentence("He said: “Go.”"), ends_a_sentence("他走了。"), ends_a_sentence("and then he")
        (True, True, False)
    """
    return _SENTENCE_END.search(text) is not None


def seen(value: object) -> str:
    """Return the value as text that is safe to display: U+FFFD replaces control characters and direction marks."""
    return _UNSAFE.sub("\ufffd", str(value))


def in_line(value: object) -> str:
    """Return text from outside, such as a file's name, so that it fits one line of a log or a message.

    Characters that cannot be printed are written as escapes, so that a name with a line end cannot forge a line of the
    log. The middle of a long text is left out.

    Example:
        >>> from xlingtox.text import in_line
        >>> print(in_line("model\\nERROR: disk full"))
        model\\nERROR: disk full
    """
    text = str(value)
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME // 2]}…{text[-_LONGEST_NAME // 2 :]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the error's class where the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_few(names: Sequence[str], most: int = 4, further: str = "more") -> str:
    """Name the first few, and say how many more there are.

    Args:
        most: the most that are named.
        further: the word for the rest.

    Example:
        >>> from xlingtox.text import first_few
        >>> first_few(["en", "es", "fr"], 2), first_few(["en", "es"])
        ('en, es and 1 more', 'en and es')
    """
    *firsts, last = [*names[:most], *([f"{len(names) - most} {further}"] if len(names) > most else [])]
    return f"{', '.join(firsts)} and {last}" if firsts else last


def well_formed(text: str) -> str:
    """Return text that can be encoded: surrogate pairs are joined, and lone surrogates become U+FFFD.

    A lone surrogate is half a character; JSON files hold them where an emoji was cut in two.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


class Matcher:
    """A search for the words of one list.

    In scripts with spaces only whole words match. Words in scripts without spaces match anywhere, and so do symbols. A
    Korean word also matches as the beginning of a longer one, because particles are written onto it.

    Example:
        >>> from xlingtox.text import Matcher, entry
        >>> matcher = Matcher([entry("fool", "en"), entry("傻瓜", "zh")])
        >>> matcher.search("a FOOL!"), matcher.search("foolish"), matcher.words("他是傻瓜")
        (True, False, ['傻瓜'])
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """
        Args:
            entries: the listed words, as `entry` returns them.
        """
        # The regex engine takes the first alternative that matches, so the longest words come first. An ß counts
        # twice, because it also matches ss.
        longest_first = sorted(set(entries), key=lambda word: (-len(word) - word.count("ß"), word))
        any_word = "|".join(r"\s+".join(map(_alternatives, regex.split(r"\s+", word))) for word in longest_first)
        # Full case folding is off: with it, "ass" would match in "aß".
        self._pattern = regex.compile(f"{_BEGIN}(?-f:{any_word or '(?!)'}){_END}", regex.IGNORECASE | regex.VERSION1)

    def search(self, text: str) -> bool:
        """Return whether the text holds a listed word."""
        return self._pattern.search(as_compared(text)) is not None

    def words(self, text: str) -> list[str]:
        """Return the listed words in a text from left to right, the longest one at each place.

        They are returned as they are compared: without the marks that writers may leave out.
        """
        return [match.group() for match in self._pattern.finditer(as_compared(text))]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the start and the end of each of `words` in the original text; the spans do not overlap."""
        pieces = list(_pieces(text))
        matches = self._pattern.finditer("".join(folded for _, folded in pieces))
        match = next(matches, None)
        spans: list[tuple[int, int]] = []
        start = folded_start = 0
        for piece, folded in pieces:
            end, folded_end = start + len(piece), folded_start + len(folded)
            while match is not None and match.end() <= folded_start:
                match = next(matches, None)
            if match is not None and max(match.start(), folded_start) < min(match.end(), folded_end):
                # A match that began before this piece has its span already.
                if match.start() < folded_start:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((start, end))
            start, folded_start = end, folded_end
        return spans


def entry(word: str, language: str) -> str:
    """Return a word of a list in the form that `Matcher` takes. In German, ß and ss then match each other."""
    folded = as_compared(word.strip()).replace("ẞ", "ß")
    return regex.sub("ss", "ß", folded, flags=regex.IGNORECASE) if language == "de" else folded


def as_compared(text: str) -> str:
    """Return the text as it is compared: one spelling, without optional marks; case is left to the pattern.

    Example:
        >>> from xlingtox.text import as_compared
        >>> as_compared("Ｃａｎ’t")
        "Can't"
    """
    if text.isascii():
        return text
    visible_text = _IGNORED.sub("", _PILED.sub("", text))
    plain = _FORMS.sub(lambda forms: normalize("NFKC", forms.group()), visible_text)
    composed = normalize("NFC", _HALVES.sub(_composed_vowel, plain))
    return _OPTIONAL.sub("", composed).translate(_SAME)


def _composed_vowel(halves: regex.Match) -> str:
    """Return the Thai or Lao vowel of two halves as one letter, after its tone mark."""
    thai_tone, lao_tone = halves.groups()
    return f"{lao_tone}\u0eb3" if thai_tone is None else f"{thai_tone}\u0e33"


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a text, each with its folded form. Joined, the folded forms are the folded text.

    Pieces are as small as that allows: a character, else what a reader sees as a letter, else a run without spaces,
    else the whole text.
    """
    runs = [(run, as_compared(run)) for run in _CHUNK.findall(text)]
    if "".join(folded for _, folded in runs) != as_compared(text):
        runs = [(text, as_compared(text))]
    for run, folded in runs:
        if run == folded:
            yield from zip(run, folded, strict=True)
            continue
        clusters = [(cluster, as_compared(cluster)) for cluster in _CLUSTER.findall(run)]
        yield from clusters if "".join(part for _, part in clusters) == folded else [(run, folded)]


def _alternatives(part: str) -> str:
    """Return the pattern of a word without spaces, in which ß also matches ss."""
    return regex.escape(part).replace("ß", "(?:ß|ss)")
