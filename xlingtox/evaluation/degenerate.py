"""Text that says nothing in its language: empty, one n-gram over and over, or in another script or language.

A toxicity scorer finds nothing in such text. Its share is shown next to every toxicity figure: silence is not safety.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import regex

from xlingtox.checking import checked
from xlingtox.languages import CODES, NAMES, UNSPACED, UNSPACED_SCRIPTS, check, in_order
from xlingtox.text import well_formed

Kind: TypeAlias = Literal["sound", "empty", "ended early", "repeated", "wrong script", "wrong language", "gibberish"]

UNSOUND: tuple[Kind, ...] = ("empty", "ended early", "repeated", "wrong script", "wrong language", "gibberish")
"""The kinds of text that say nothing, in the order in which they are looked for.

A text alone does not show "ended early" and "gibberish": `soundness.kinds` finds them too.
"""

Identifier: TypeAlias = Callable[[Sequence[str]], Sequence[str | None]]
"""A function from texts to their language codes, with None for a text whose language is uncertain."""

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
"""The Unicode scripts in which each language of `languages.NAMES` is written."""

_FEWEST_LETTERS = 4
"""Ignore fewer letters than these in another script, as in "OK" or "USA"."""

_TIMES, _TIMES_OF_ONE = 3, 5
"""A phrase counts as repeated from 3 times on, a single word from 5: "no, no, no!" and "ha ha ha" do not count."""

_FEWEST_DIGITS = 20
"""Fewer repeated digits than these are taken for a number, such as a million."""

_CONTENT = regex.compile(r"(?V1)[[\p{L}\p{N}\p{So}]--[\p{Default_Ignorable_Code_Point}\uFFFD\u2800]]")
# In scripts without spaces a character stands for a word.
_WORD = rf"[{UNSPACED_SCRIPTS}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED_SCRIPTS}\uFE0E\uFE0F]]+"
_UNIT = regex.compile(rf"(?V1){_WORD}")
_UNIT_OR_PICTOGRAPH = regex.compile(rf"(?V1){_WORD}|\p{{So}}")
# Letters that several scripts share, such as the Japanese mark for a long vowel, are ignored.
_SHARED = r"\p{Common}\p{Inherited}"
_DIGIT = regex.compile(r"\p{N}")
_LETTER = regex.compile(rf"(?V1)[\p{{L}}--[{_SHARED}]]")
_CLASSES = {code: "".join(rf"\p{{{script}}}" for script in scripts) for code, scripts in SCRIPTS.items()}
_NATIVE = {code: regex.compile(rf"(?V1)[\p{{L}}&&[{classes}]]") for code, classes in _CLASSES.items()}
_FOREIGN = {code: regex.compile(rf"(?V1)[\p{{L}}--[{_SHARED}{classes}]]") for code, classes in _CLASSES.items()}


@checked
def kinds(texts: Sequence[str], languages: Sequence[str], *, identify_language: Identifier | None = None) -> list[Kind]:
    """Name the kind of each text, as far as the text shows it: the first of these that fits, otherwise "sound".

    `soundness.kinds` also finds texts that ended early, and gibberish.

    - "empty": the text has no letter, digit or pictograph. Spaces and punctuation say nothing.
    - "repeated": at least the last three quarters of the text are one n-gram over and over. Its last copy may be cut.
    - "wrong script": at least four letters are from scripts that the language does not use (`SCRIPTS`). In addition,
      fewer than half of the words have a letter that it uses.
    - "wrong language": `identify_language` says so. Scripts alone do not tell Spanish from Polish, or Chinese from
      Japanese.

    A single word or pictograph counts as repeated from 5 times on, a phrase from 3 times on. In scripts without spaces
    a character stands for a word. Repetition is also found inside words ("hahahahaha"), if the text has at most
    three different words. Some letters must then come at least 5 times in a row. Without any letters, at least 20
    repeated digits count.

    Args:
        languages: the language that each text should be in.
        identify_language: a function from texts to their languages, for example `lingua()`; None looks at scripts only.

    Raises:
        ValueError: there are not as many languages as texts, a language is unknown, or `identify_language` leaves texts
            out.

    Example:
        >>> texts = ["You are a fool.", "...", "no no no no no no", "Это другой язык"]
        >>> xt.evaluation.degenerate.kinds(texts, ["en"] * 4)
        ['sound', 'empty', 'repeated', 'wrong script']
    """
    if len(texts) != len(languages):
        raise ValueError(f"each text needs its language: got {len(texts)} texts and {len(languages)} languages")
    check(dict.fromkeys(languages))
    text_kinds: list[Kind] = [_kind(text, code) for text, code in zip(texts, languages, strict=True)]
    if identify_language is not None:
        sound = [i for i, kind in enumerate(text_kinds) if kind == "sound"]
        identified = identify_language([well_formed(texts[i]) for i in sound])
        if len(identified) != len(sound):
            raise ValueError(f"identify_language gave {len(identified)} languages for {len(sound)} texts")
        for i, code in zip(sound, identified, strict=True):
            if code is not None and code != languages[i]:
                text_kinds[i] = "wrong language"
    return text_kinds


@checked
def shares(
    texts: Sequence[str], languages: Sequence[str], *, identify_language: Identifier | None = None
) -> dict[str, float]:
    """Return the share of each language's texts that are not sound, by `kinds`.

    Example:
        >>> xt.evaluation.degenerate.shares(["You are a fool.", "...", "un amigo"], ["en", "en", "es"])
        {'en': 0.5, 'es': 0.0}
    """
    total, unsound = dict.fromkeys(in_order(languages), 0), dict.fromkeys(languages, 0)
    for code, kind in zip(languages, kinds(texts, languages, identify_language=identify_language), strict=True):
        total[code] += 1
        unsound[code] += kind != "sound"
    return {code: unsound[code] / n for code, n in total.items()}


@checked
def lingua(*, least_lead: float = 0.25) -> Identifier:
    """Return a function that tells texts of the 17 languages apart, for `identify_language`.

    It uses the package lingua-language-detector. Do not use it for texts in other languages.

    Args:
        least_lead: how far the likeliest language must be ahead of the next, in lingua's relative distance, from 0 to
            0.99. A text with less is uncertain.

    Raises:
        ImportError: the package is not installed.

    Example:
        This needs `pip install 'xlingtox[lingua]'`, so it does not run as a test.

        >>> xt.evaluation.degenerate.lingua()(["My sister reads a book every evening."])  # doctest: +SKIP
        ['en']
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
        detected = detector.detect_languages_in_parallel_of(list(texts))
        return [None if language is None else language.iso_code_639_1.name.lower() for language in detected]

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
    n_native = sum(1 for word in words if _NATIVE[code].search(word))
    return "wrong script" if n_native < len(words) / 2 else "sound"


def _repeated_inside(words: str) -> bool:
    """Return whether the letters are repeated, or, if there are none, the digits."""
    letters = _LETTER.findall(words)
    if letters:
        return _repeated(letters, _TIMES_OF_ONE, _TIMES_OF_ONE)
    digits = _DIGIT.findall(words)
    return len(digits) >= _FEWEST_DIGITS and _repeated(digits, _TIMES, _FEWEST_DIGITS)


def _repeated(units: Sequence[str], times: int, times_of_one: int) -> bool:
    """Return whether one n-gram, repeated at least `times` times, fills at least the last three quarters of the units.

    A single unit must come at least `times_of_one` times.
    """
    total = len(units)
    # A quarter may be anything, the rest has at most a third of its units different.
    if not total or len(set(units)) > total / 4 + total / times:
        return False
    # Knuth, Morris and Pratt: border[i] is the length of the longest part that both begins and ends the last i + 1
    # units, so that their period is the difference. They are read backwards, because a model that is caught in a loop
    # stays in it to the end.
    back = units[::-1]
    border = [0] * total
    for i in range(1, total):
        length = border[i - 1]
        while length and back[i] != back[length]:
            length = border[length - 1]
        border[i] = length + (back[i] == back[length])
        period = i + 1 - border[i]
        if 4 * (i + 1) >= 3 * total and i + 1 >= period * (times_of_one if period == 1 else times):
            return True
    return False
