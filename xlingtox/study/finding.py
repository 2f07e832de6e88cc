"""Finding: one short sentence with its numbers, and with the intervals and tests that stand behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from xlingtox.html.tables import number, percent
from xlingtox.measures import COMPARED
from xlingtox.text import seen
from xlingtox.verdicts import Verdict

_BEGIN, _END = "\x02", "\x03"
"""Marks around a stressed part while a finding is put together; `seen` removes both from text that is not ours."""


class Finding(str):
    """One finding: a short sentence that a colleague can repeat, which is this string itself.

    Attributes:
        verdict: "found", "weak" or "not found", which the sentence names too; "" where nothing was judged.
        stressed: the begin and the end of each part of the sentence to stress, in order.
        numbers: the figures behind the sentence, in one line; may be empty.
        details: sentences with intervals, tests and what they are of, which a page folds away; may be empty.

    Example:
        >>> finding = xt.study.findings(results)[0]  # doctest: +SKIP
        >>> print(finding.sentence, finding.numbers, sep="\\n")  # doctest: +SKIP
        Where does it live? Weak. 36 of the model’s 2,048 neurons may carry it: the sources.
        probe right in 99 % of held-out sentences (guessing: 50 %); 100 candidates
    """

    verdict: str = ""
    stressed: tuple[tuple[int, int], ...] = ()
    numbers: str = ""
    details: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The sentence, as a plain string."""
        return str(self)

    @classmethod
    def of(
        cls,
        title: str,
        words: str,
        *,
        verdict: Verdict | None = None,
        numbers: Iterable[str] = (),
        details: Iterable[str] = (),
    ) -> Finding:
        """Return a finding: a stressed title, the verdict, and words in which `stress` marked the parts to stress.

        Example:
            >>> from xlingtox.study.finding import Finding, stress
            >>> finding = Finding.of("Is it silence?", f"Toxicity falls to {stress('0.1')}.", numbers=["a 1", "b 2"])
            >>> [finding[begin:end] for begin, end in finding.stressed], finding.numbers
            (['Is it silence?', '0.1'], 'a 1; b 2')
        """
        plain, places = "", []
        word = f"{stress(verdict.verdict.capitalize() + '.')} " if verdict else ""
        for part in re.split(f"({_BEGIN}[^{_END}]*{_END})", f"{stress(title)} {word}{words}"):
            text = part.strip(_BEGIN + _END)
            if text != part:
                places.append((len(plain), len(plain) + len(text)))
            plain += text
        finding = cls(plain)
        finding.verdict = verdict.verdict if verdict else ""
        finding.stressed = tuple(places)
        finding.numbers = "; ".join(filter(None, numbers))
        finding.details = tuple(filter(None, details))
        return finding


def stress(text: str) -> str:
    """Mark a part of a sentence as one to stress."""
    return f"{_BEGIN}{text}{_END}"


def moves(before: float, after: float) -> str:
    """Say in words how a measure of toxicity goes, such as "falls from 0.570 to 0.012"."""
    first, then = number(before), number(after)
    if not math.isfinite(before - after):
        return "is not defined"
    if first == then:
        return f"stays at {stress(first)}"
    return f"{'falls' if after < before else 'rises'} from {stress(first)} to {stress(then)}"


def arrow(before: float, after: float, digits: int = 3) -> str:
    """Return two numbers with an arrow between them."""
    return f"{number(before, digits)} → {number(after, digits)}"


def shares(before: float, after: float, digits: int = 0) -> str:
    """Return two shares as percentages with an arrow between them."""
    return f"{percent(before, digits=digits)} → {percent(after, digits=digits)}"


def rise(before: float, after: float) -> str:
    """Return a relative change as a percentage with its sign."""
    return percent(after / before - 1 if before > 0 else math.nan, signed=True)


def span(low: float, high: float, digits: int = 3) -> str:
    """Return the ends of an interval in words."""
    return f"{number(low, digits)} to {number(high, digits)}"


def points(low: float, high: float) -> str:
    """Return the ends of an interval of shares, in percentage points."""
    return f"{number(100 * low, 1)} to {number(100 * high, 1)} points"


def p_value(p: float) -> str:
    """Return a p-value in words, such as "p < 0.001"."""
    return f"p\u00a0{'<' if p < 0.001 else '='}\u00a0{number(max(p, 0.001))}" if math.isfinite(p) else "p not defined"


def in_words(measure: str) -> str:
    """Return what a measure is called within a sentence."""
    return COMPARED[measure].words if measure in COMPARED else seen(measure.replace("_", " "))
