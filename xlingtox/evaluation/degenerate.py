"""Text that says nothing in its language: empty, one n-gram over and over, or in another script or language.

A toxicity scorer finds nothing in such text, so its share stands beside every toxicity figure: silence is not safety.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import regex

from xlingtox.checking import checked
from xlingtox.languages import CODES, NAMES, UNSPACED, UNSPACED_SCRIPTS, check, in_order
from xlingtox.text import well_formed

Kind: TypeAlias = Literal["sound", "empty", "repeated", "wrong script", "wrong language"]

UNSOUND: tuple[Kind, ...] = ("empty", "repeated", "wrong script", "wrong language")

Identifier: TypeAlias = Callable[[Sequence[str]], Sequence[str | None]]
"""Texts in; out, of each, its language code, or None where that is uncertain."""

SCRIPTS = MappingProxyType(
    dict.fromkeys(NAMES, ("Latin",))
    | dict.fromkeys(("bg", "mk", "ru", "uk"), ("Cyrillic",))
    | dict.fromkeys(("bs", "sh", "sr", "tt"), ("Cyrillic", "Latin"))
    | dict.fromkeys(("ar", "fa", "ur"), ("Arabic",))
    | dict(UNSPACED)
    | dict.fromkeys(("zh", "zh-hant"), (*UNSPACED["zh"], "Bopomofo"))
    | {
        "ko": ("Hangul",),
        "hi": ("Devanagari",),
        "am": ("Ethiopic",),
        "bn": ("Bengali",),
        "el": ("Greek",),
        "he": ("Hebrew",),
        "ta": ("Tamil",),
    }
)
"""Language to the Unicode scripts that it is written in, for every language of `languages.NAMES`."""

_FEWEST_LETTERS = 4
"""Of fewer letters in another script ("OK", "USA") nothing is said."""

_TIMES, _TIMES_OF_ONE = 3, 5
"""From how many times on a phrase, and a single word, count as repeated: "no, no, no!" and "ha ha ha" do not."""

_FEWEST_DIGITS = 20
"""Digits over and over are a number, as a million is, where they are fewer."""

_CONTENT = regex.compile(r"(?V1)[[\p{L}\p{N}\p{So}]--[\p{Default_Ignorable_Code_Point}\uFFFD\u2800]]")
# Scripts without spaces: a character stands for a word.
_WORD = rf"[{UNSPACED_SCRIPTS}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED_SCRIPTS}\uFE0E\uFE0F]]+"
_UNIT = regex.compile(rf"(?V1){_WORD}")
_UNIT_OR_PICTOGRAPH = regex.compile(rf"(?V1){_WORD}|\p{{So}}")
# Letters that several scripts share, such as the Japanese mark for a long vowel, tell nothing.
_SHARED = r"\p{Common}\p{Inherited}"
_DIGIT = regex.compile(r"\p{N}")
_LETTER = regex.compile(rf"(?V1)[\p{{L}}--[{_SHARED}]]")
_FROM = {code: "".join(rf"\p{{{script}}}" for script in scripts) for code, scripts in SCRIPTS.items()}
_OWN = {code: regex.compile(rf"(?V1)[\p{{L}}&&[{own}]]") for code, own in _FROM.items()}
_FOREIGN = {code: regex.compile(rf"(?V1)[\p{{L}}--[{_SHARED}{own}]]") for code, own in _FROM.items()}


@checked
def kinds(texts: Sequence[str], languages: Sequence[str], *, identify_language: Identifier | None = None) -> list[Kind]:
    """What each text is, the first of these that holds, else "sound".

    - "empty": no letter, digit or pictograph; spaces and punctuation say nothing.
    - "repeated": its last three quarters or more are one n-gram over and over, the last time perhaps cut short: a
      single word or pictograph at least 5 times, a phrase at least 3 times (in scripts without spaces a character
      stands for a word), or, where there are at most three different words, the same letters at least 5 times
      ("hahahahaha"), or, where there is no letter, the same digits, 20 of them or more.
    - "wrong script": four letters or more are of other scripts than the language's (`SCRIPTS`), and fewer than half of
      the words have a letter of its own.
    - "wrong language": so says `identify_language`. Scripts alone do not tell Spanish from Polish, or Chinese from
      Japanese.

    Args:
        languages: the language that each text should be in.
        identify_language: for example `lingua()`; None looks at scripts only.

    Raises:
        ValueError: not as many languages as texts, an unknown language, or an identifier that leaves texts out.
    """
    if len(texts) != len(languages):
        raise ValueError(f"each text needs its language: got {len(texts)} texts and {len(languages)} languages")
    check(dict.fromkeys(languages))
    found: list[Kind] = [_kind(text, code) for text, code in zip(texts, languages, strict=True)]
    if identify_language is not None:
        sound = [i for i, kind in enumerate(found) if kind == "sound"]
        told = identify_language([well_formed(texts[i]) for i in sound])
        if len(told) != len(sound):
            raise ValueError(f"the identifier told {len(told)} languages of {len(sound)} texts")
        for i, code in zip(sound, told, strict=True):
            if code is not None and code != languages[i]:
                found[i] = "wrong language"
    return found


@checked
def shares(
    texts: Sequence[str], languages: Sequence[str], *, identify_language: Identifier | None = None
) -> dict[str, float]:
    """Language to the share of its texts that are not sound; like `kinds`."""
    total, unsound = dict.fromkeys(in_order(languages), 0), dict.fromkeys(languages, 0)
    for code, kind in zip(languages, kinds(texts, languages, identify_language=identify_language), strict=True):
        total[code] += 1
        unsound[code] += kind != "sound"
    return {code: unsound[code] / n for code, n in total.items()}


@checked
def lingua(*, least_lead: float = 0.25) -> Identifier:
    """The identifier of the package lingua-language-detector, among the 17 languages: it is of no use for others.

    Args:
        least_lead: how far the likeliest language must be ahead of the next; else it is uncertain.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError as error:
        raise ImportError(
            "identifying languages needs lingua-language-detector: pip install 'xlingtox[lingua]'"
        ) from error
    known = [IsoCode639_1.from_str(code.upper()) for code in CODES]
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*known).with_minimum_relative_distance(least_lead).build()

    def identify(texts: Sequence[str]) -> list[str | None]:
        told = detector.detect_languages_in_parallel_of(list(texts))
        return [None if each is None else each.iso_code_639_1.name.lower() for each in told]

    return identify


def _kind(text: str, code: str) -> Kind:
    if not _CONTENT.search(text):
        return "empty"
    units = _UNIT.findall(text.casefold())
    if _repeated(units, _TIMES, _TIMES_OF_ONE):
        return "repeated"
    if _repeated(_UNIT_OR_PICTOGRAPH.findall(text.casefold()), _TIMES, _TIMES_OF_ONE):
        return "repeated"
    if len(set(units)) <= 3 and _repeated_inside("".join(units)):
        return "repeated"
    if len(_FOREIGN[code].findall(text)) < _FEWEST_LETTERS:
        return "sound"
    words = [unit for unit in units if _LETTER.search(unit)]
    own = sum(1 for word in words if _OWN[code].search(word))
    return "wrong script" if own < len(words) / 2 else "sound"


def _repeated_inside(words: str) -> bool:
    """Whether letters are repeated, or, without any, digits."""
    letters = _LETTER.findall(words)
    if letters:
        return _repeated(letters, _TIMES_OF_ONE, _TIMES_OF_ONE)
    digits = _DIGIT.findall(words)
    return len(digits) >= _FEWEST_DIGITS and _repeated(digits, _TIMES, _FEWEST_DIGITS)


def _repeated(units: Sequence[str], times: int, times_of_one: int) -> bool:
    """Whether three quarters or more, to the end, are one n-gram so many times."""
    total = len(units)
    # A quarter may be anything, the rest has at most a third of its units different.
    if not total or len(set(units)) > total / 4 + total / times:
        return False
    # Knuth, Morris and Pratt: border[i] is how much of the last i + 1 units begins them again, so that their period is
    # the difference. Backwards, as a model that is caught in a loop stays in it to the end.
    back = units[::-1]
    border = [0] * total
    for i in range(1, total):
        held = border[i - 1]
        while held and back[i] != back[held]:
            held = border[held - 1]
        border[i] = held + (back[i] == back[held])
        period = i + 1 - border[i]
        if 4 * (i + 1) >= 3 * total and i + 1 >= period * (times_of_one if period == 1 else times):
            return True
    return False
