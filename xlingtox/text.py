"""Helpers on strings: what a reader sees of a text, how it stands in one line, and listed words inside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from unicodedata import category, normalize

import regex

from xlingtox.languages import UNSPACED_SCRIPTS

_LOOKS_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U0001d159")
"""Fillers and blanks that Unicode counts as letters, marks or symbols."""

_INVISIBLE = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me"))

_JOINERS = frozenset("\u200c\u200d")
"""Format characters that spelling needs, as in Persian, Hindi and emoji."""

_LONGEST_NAME = 200

# Not for display: control characters but tab and line ends, lone surrogates, and what reorders the words beside it.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_SURROGATE = re.compile("[\ud800-\udfff]")

RULES = 3
"""Counts the changes of what matches, for those who keep results."""

_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED_SCRIPTS}]]"
# A word that begins with a letter begins where it has no letter before it, and ends likewise. Words of scripts without
# spaces, and symbols, begin and end anywhere; Korean particles and copula are written onto words, foreign ones too.
_BEGIN = rf"(?:(?!{_LETTER})|(?<!{_LETTER}))"
_END = rf"(?:(?<![{_LETTER}--[\p{{Hangul}}]])|(?![{_LETTER}--[\p{{Hangul}}]]))"

# Sorting a long run of marks takes time by its square: more than thirty on a letter are in no language (UAX #15-D4).
_PILED = regex.compile(r"(?<=\p{M}{30})\p{M}+")
# Ligatures, Hebrew and Arabic letters by their place in a word, full and half width.
_FORMS = regex.compile(r"[\uFB00-\uFDFF\uFE70-\uFEFC\uFF01-\uFF9F]+")
# What is not to be seen: within words, where a line or a page may break; after a symbol, which picture it is to be.
_IGNORED = regex.compile(
    rf"(?V1)(?<={_LETTER}|[{UNSPACED_SCRIPTS}])[\u00AD\u200B\u2060\uFEFF]+(?=\w)|(?<=\S)[\uFE0E\uFE0F]+"
)
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

_CHUNK = regex.compile(r"\s+|\S+")
# What is seen as one letter; where a vowel is written as two halves, with its second half.
_CLUSTER = regex.compile(r"\X(?<=[\u0E4D\u0ECD][\u0E48-\u0E4B\u0EC8-\u0ECB]*)[\u0E32\u0EB2]|\X")


def visible(text: str) -> bool:
    """Whether there is anything to see: a mark (an accent, a variation selector) has to stand on something."""
    return any(each not in _LOOKS_EMPTY and category(each) not in _INVISIBLE for each in text)


def appearance(text: str) -> str:
    """The text in one spelling: accents composed, without format characters, and without blanks around it."""
    shown = (each for each in normalize("NFC", text) if category(each) != "Cf" or each in _JOINERS)
    return "".join(shown).strip()


def seen(value: object) -> str:
    """Without what is not for display."""
    return _UNSEEN.sub("\ufffd", str(value))


def in_line(value: object) -> str:
    """Text from outside, such as a file's name, for one line of a log or a message.

    What cannot be printed is written as its escape, so that a name with a line end forges no line; the middle of a long
    text is left out.
    """
    text = str(value)
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME // 2]}…{text[-_LONGEST_NAME // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of another library says, or the error's kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def well_formed(text: str) -> str:
    """Text that can be encoded: surrogate pairs joined, lone ones (as half an emoji in JSON) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


class Matcher:
    """Finds the words of one list: whole ones in scripts with spaces, and in scripts without them anywhere.

    Korean words are found as beginnings, because particles are written onto them; symbols are found anywhere.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """
        Args:
            entries: listed words, as `entry` gives them.
        """
        # The engine takes the first alternative that fits.
        longest_first = sorted(set(entries), key=lambda word: (-len(word) - word.count("ß"), word))
        any_of = "|".join(r"\s+".join(map(_alternatives, regex.split(r"\s+", word))) for word in longest_first)
        # Without full case folding, by which "ass" would be found in "aß".
        self._pattern = regex.compile(f"{_BEGIN}(?-f:{any_of or '(?!)'}){_END}", regex.IGNORECASE | regex.VERSION1)

    def search(self, text: str) -> bool:
        """Return whether the text holds a listed word."""
        return self._pattern.search(_folded(text)) is not None

    def words(self, text: str) -> list[str]:
        """Return the listed words in a text, from the left, the longest one at each place; without optional marks."""
        return [match.group() for match in self._pattern.finditer(_folded(text))]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where `words` stand in the text as it was given: begins and ends, which do not overlap."""
        pieces = list(_pieces(text))
        matches = self._pattern.finditer("".join(folded for _, folded in pieces))
        wanted = next(matches, None)
        spans: list[tuple[int, int]] = []
        at = folded_at = 0
        for piece, folded in pieces:
            end, folded_end = at + len(piece), folded_at + len(folded)
            while wanted is not None and wanted.end() <= folded_at:
                wanted = next(matches, None)
            if wanted is not None and max(wanted.start(), folded_at) < min(wanted.end(), folded_end):
                # A match that began before this piece has its span already.
                if wanted.start() < folded_at:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((at, end))
            at, folded_at = end, folded_end
        return spans


def entry(word: str, language: str) -> str:
    """Return a listed word as it is compared; in German, ß stands for itself and for ss."""
    folded = _folded(word.strip()).replace("ẞ", "ß")
    return regex.sub("ss", "ß", folded, flags=regex.IGNORECASE) if language == "de" else folded


def _folded(text: str) -> str:
    """A text as it is compared, up to case."""
    if text.isascii():
        return text
    plain = _FORMS.sub(lambda run: normalize("NFKC", run.group()), _IGNORED.sub("", _PILED.sub("", text)))
    whole = _HALVES.sub(_joined, plain)
    return _OPTIONAL.sub("", normalize("NFC", whole)).translate(_SAME)


def _joined(halves: regex.Match) -> str:
    thai, lao = halves.groups()
    return f"{lao}\u0eb3" if thai is None else f"{thai}\u0e33"


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Parts of a text, each with what `_folded` makes of it: characters, else what is seen as one, else a run of them.

    A piece is as long as it must be so that the folded pieces are the folded text.
    """
    runs = [(run, _folded(run)) for run in _CHUNK.findall(text)]
    if "".join(folded for _, folded in runs) != _folded(text):
        runs = [(text, _folded(text))]
    for run, folded in runs:
        if run == folded:
            yield from zip(run, folded, strict=True)
            continue
        clusters = [(cluster, _folded(cluster)) for cluster in _CLUSTER.findall(run)]
        yield from clusters if "".join(part for _, part in clusters) == folded else [(run, folded)]


def _alternatives(part: str) -> str:
    return regex.escape(part).replace("ß", "(?:ß|ss)")
