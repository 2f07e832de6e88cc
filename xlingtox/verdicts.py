"""Verdict: a claim about a model, whether the evidence supports it, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xlingtox.checking import checked


@checked
@dataclass(frozen=True)
class Verdict:
    """A claim, with a verdict on it and the reason in a sentence.

    Attributes:
        claim: what may be the case, as a sentence.
        verdict: "found" where the claim stands beside its controls, "weak" where only a part of the evidence supports
            it, and "not found" otherwise. "Not found" does not mean that the contrary was shown.
        reason: the numbers behind the verdict, as a sentence.

    Example:
        >>> from xlingtox.verdicts import Verdict
        >>> Verdict("The sources fall.", "weak", "They fall in 3 of 17 languages.").verdict
        'weak'
    """

    claim: str
    verdict: Literal["found", "weak", "not found"]
    reason: str
