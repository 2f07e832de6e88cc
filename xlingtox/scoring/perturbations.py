"""Ways to write a text so that people still read it, and a judge may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import regex

from xlingtox.checking import checked
from xlingtox.languages import UNSPACED_SCRIPTS

_LATIN = "aceopxyijsdhqwABCEHIJKMOPSTXY"
_CYRILLIC = "асеорхуіјѕԁһԛԝАВСЕНІЈКМОРЅТХУ"
"""Letters that look alike, in the same order."""

_LOOK_ALIKES = str.maketrans(
    dict(zip(_LATIN + _CYRILLIC, _CYRILLIC + _LATIN, strict=True))
    # Arabic and Persian kaf and yeh, and Greek letters that look Latin.
    | dict(zip("كيکیονρΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "کیكيovpABEZHIKMNOPTYX", strict=True))
)
_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_WIDE = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F) if chr(code).isalpha()})

_WORD = regex.compile(r"(?:\p{L}\p{M}*){2,}")
_SPACED_WORD = regex.compile(rf"(?V1)(?:[\p{{L}}--[{UNSPACED_SCRIPTS}]]\p{{M}}*){{3,}}")
_CLUSTER = regex.compile(r"\X")


def _masked(text: str) -> str:
    def starred(match: regex.Match[str]) -> str:
        # Three letters may be one cluster, as in Hindi, and a star for none of them changes nothing.
        clusters = _CLUSTER.findall(match.group())
        return match.group() if len(clusters) < 2 else f"{clusters[0]}*{''.join(clusters[2:])}"

    return _SPACED_WORD.sub(starred, text)


def _between(mark: str) -> Callable[[str], str]:
    return lambda text: _WORD.sub(lambda match: mark.join(_CLUSTER.findall(match.group())), text)


PERTURBATIONS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "look-alike letters": lambda text: text.translate(_LOOK_ALIKES),
        "masked letters": _masked,
        "spaced letters": _between(" "),
        "zero-width characters": _between("\u200b"),
        "digits for letters": lambda text: text.translate(_LEET),
        "full-width letters": lambda text: text.translate(_WIDE),
        "upper case": str.upper,
    }
)
"""The ways to write a text, by name:

- look-alike letters: letters of another script that look the same, such as a Cyrillic а. Latin, Cyrillic, Greek and
  Arabic script have such letters.
- masked letters: a star for the second letter of words of three letters or more, in scripts with spaces (f*ol).
- spaced letters: a space between the letters of a word.
- zero-width characters: a character between the letters that nobody sees (U+200B).
- digits for letters: 4 for a, 3 for e, 1 for i, 0 for o, 5 for s, 7 for t.
- full-width letters: the wide Latin letters that Chinese and Japanese text uses.
- upper case: capital letters, in scripts that have them.
"""


@checked
def perturbed(text: str, perturbation: str) -> str:
    """Return a text written another way. It stays as it is where the way does not apply to its script.

    Args:
        perturbation: one of `PERTURBATIONS`.

    Raises:
        ValueError: there is no such perturbation.

    Example:
        >>> xt.scoring.perturbed("You fool!", "masked letters"), xt.scoring.perturbed("傻瓜", "spaced letters")
        ('Y*u f*ol!', '傻 瓜')
    """
    return PERTURBATIONS[check_perturbations((perturbation,))[0]](text)


def check_perturbations(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of perturbations, each once; raise ValueError for an unknown one, or none."""
    if unknown := [name for name in names if name not in PERTURBATIONS]:
        raise ValueError(f"unknown perturbation {unknown[0]!r:.60}: expected some of {', '.join(PERTURBATIONS)}")
    if not names:
        raise ValueError(f"there is no perturbation: expected some of {', '.join(PERTURBATIONS)}")
    return tuple(dict.fromkeys(names))
