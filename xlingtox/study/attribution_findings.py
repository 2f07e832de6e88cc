"""The finding about where tuning acts: what the sources carry of its effect, and what other groups carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xlingtox.html.tables import number, percent
from xlingtox.study import claims, patches
from xlingtox.study.finding import Finding, stress
from xlingtox.study.results import StudyResults
from xlingtox.text import seen

TITLE = "Do the sources carry tuning’s effect?"
"""The question that the finding answers."""


def acting(results: StudyResults) -> list[Finding]:
    """Say how much of tuning's effect on toxic continuations the sources carry, next to other groups."""
    effect, summary = results.patched, results.attribution
    if effect is None or summary is None or patches.SOURCES not in effect.groups:
        return []
    verdict, shares = claims.verdict_on(results.verdicts, claims.CARRIED), patches.shares_of(effect)
    numbers = [f"log-probability of toxic continuations {number(patches.change_of(effect), 2, signed=True)}"]
    if results.patched_sound is not None:
        numbers.append(f"of sound ones {number(patches.change_of(results.patched_sound), 2, signed=True)}")
    if chance := effect.groups[patches.SOURCES]:
        numbers.append(f"random neurons {percent(shares[chance][0], digits=1)}")
    numbers += [f"{name} {percent(shares[name][0])}" for name in (patches.NEURONS, patches.HEADS) if name in shares]
    n_shared = len(summary.neurons & results.sources)
    details = [
        seen(verdict.reason) if verdict else "",
        f"Attribution ranks all neurons on other prompts: {n_shared} of its {len(summary.neurons)} strongest are "
        f"sources. Groups are patched on {len(effect.languages)} prompts, each with one toxic continuation that the "
        "model before wrote.",
        completeness(summary.row()),
    ]
    words = "Tuning does not change how likely toxic text is."
    if math.isfinite(shares[patches.SOURCES][0]):
        words = f"{stress(percent(shares[patches.SOURCES][0], digits=1))} of it."
        if patches.FOUND in shares:
            carried = stress(percent(shares[patches.FOUND][0], digits=1))
            words = f"{words[:-1]}; as many neurons by attribution carry {carried}."
    return [Finding.of(TITLE, words, verdict=verdict, numbers=numbers, details=details)]


def completeness(row: Mapping[str, Any]) -> str:
    """Say how nearly the estimates add up to the whole effect; "" where that is not known."""
    exact, patched, integrated, remainder = (
        float(row.get(name, math.nan)) for name in ("exact", "patched", "integrated", "remainder")
    )
    if not math.isfinite(exact + patched + integrated + remainder):
        return ""
    return (
        f"Where it is attributed, tuning’s effect is {number(exact, 2, signed=True)}. Patched all together, the "
        f"components make {number(patched, 2, signed=True)}; their estimates add up to "
        f"{number(integrated, 2, signed=True)}. The remainder is {number(remainder, 3, signed=True)}."
    )
