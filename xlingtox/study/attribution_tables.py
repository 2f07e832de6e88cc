"""Tables about where tuning acts: by layer beside the sources, by group, by language, and the strongest components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xlingtox import languages
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.html.escaping import escaped
from xlingtox.html.tables import language_name, number, percent, scrolling
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.study import patches
from xlingtox.study.parts import AttributionSummary
from xlingtox.study.results import StudyResults

_ACTIVATIONS = ("neurons", "heads")
"""The kinds that are shown layer by layer on their own. All others are weights that tuning changed, or embeddings."""


def by_kind(summary: AttributionSummary) -> str:
    """Return a table with a row for each kind of component: what all of its kind carry, by the integrated estimate."""
    exact, sums = _exact(summary), dict[str, float]()
    for row in _rows_of_all(summary):
        sums[row["component"]] = sums.get(row["component"], 0.0) + row["integrated"]
    rows = [
        [escaped(kind.replace("_", " ")), number(change, signed=True), percent(_share(change, exact), digits=1)]
        for kind, change in sorted(sums.items(), key=lambda item: -abs(item[1]))
    ]
    columns = ["Kind of component", "Change", "Share of the effect"]
    return scrolling("To what tuning’s effect is attributed", columns, rows) if rows else ""


def by_layer(results: StudyResults) -> str:
    """Return a table with a row for each layer: its sources, the neurons that attribution finds, and their shares."""
    summary = results.attribution
    if summary is None:
        return ""
    exact, sums = _exact(summary), dict[tuple[str, int], float]()
    for row in _rows_of_all(summary):
        place = row["component"] if row["component"] in _ACTIVATIONS else "rest", row["layer"]
        sums[place] = sums.get(place, 0.0) + row["integrated"]
    kinds = [kind for kind in (*_ACTIVATIONS, "rest") if any(kind == known for known, _ in sums)]
    sets = (results.sources, summary.neurons, summary.neurons & results.sources)
    counts = [{layer: len(indices) for layer, (indices, _) in one.by_layer().items()} for one in sets]
    rows = [
        [
            str(layer) if ("neurons", layer) in sums else "behind the last",
            *(str(count.get(layer, 0)) for count in counts),
            *(percent(_share(sums.get((kind, layer), 0.0), exact), digits=1) for kind in kinds),
        ]
        for layer in sorted({layer for _, layer in sums})
    ]
    named = {"neurons": "All neurons", "heads": "All heads", "rest": "Changed weights"}
    columns = ["Layer", "Sources", "Found by attribution", "Both", *(named[kind] for kind in kinds)]
    return scrolling("Where toxicity lives, and where tuning acts, layer by layer", columns, rows) if rows else ""


def _rows_of_all(summary: AttributionSummary) -> list[Mapping[str, Any]]:
    return [row for row in summary.by_layer if row["language"] == "all"]


def _exact(summary: AttributionSummary) -> float:
    return float(summary.row().get("exact", math.nan))


def of_groups(effect: PatchEffect, sound: PatchEffect | None) -> str:
    """Return a table with a row for each group: what it carries when it is patched, and what its random neurons do."""
    shares, groups = patches.shares_of(effect), effect.groups
    moved = patches.moved_by(effect)
    moved_sound = {} if sound is None else patches.moved_by(sound)
    rows = [
        [
            escaped(group),
            _with_interval(shares[group]),
            "–" if chance is None else _with_interval(shares[chance]),
            number(moved[group], signed=True),
            number(moved_sound[group], signed=True) if group in moved_sound else "–",
        ]
        for group, chance in groups.items()
    ]
    whole = [number(patches.change_of(one), signed=True) if one else "–" for one in (effect, sound)]
    rows.append(["the tuned model", percent(1.0), "–", *whole])
    columns = ["Patched", "Share of the effect (95 % interval)", escaped(effect.control)]
    columns += ["Change, toxic text", "Change, sound text"]
    return scrolling("What groups carry of tuning’s effect, patched into the model before", columns, rows)


def by_language(effect: PatchEffect, sound: PatchEffect | None) -> str:
    """Return a table with a row for each language: its prompts, tuning's effect, and what each group carries of it."""
    codes = languages.in_order(effect.languages)
    groups, frame = list(effect.groups), effect.to_frame()
    of_sound = {} if sound is None else {code: patches.change_of(sound, language=code) for code in sound.languages}
    rows = []
    for code in codes:
        of_language = frame[frame["language"] == code].set_index("group")
        any_group = of_language.iloc[0]
        rows.append(
            [
                language_name(code),
                str(effect.languages.count(code)),
                number(float(any_group["tuned"] - any_group["base"]), 2, signed=True),
                number(of_sound[code], 2, signed=True) if code in of_sound else "–",
                *(percent(float(of_language.loc[group, "share"]), digits=1) for group in groups),
            ]
        )
    columns = ["Language", "Prompts", "Change, toxic text", "Change, sound text", *map(escaped, groups)]
    return scrolling("Where tuning acts, language by language", columns, rows, codes)


def of_strongest(summary: AttributionSummary, sources: NeuronSet, *, most: int = 20) -> str:
    """Return a table of the strongest neurons and heads, with their estimates, and whether a neuron is a source."""
    is_source = set(sources)
    rows = [
        [f"{layer}.{index}", "neuron", number(score, signed=True), "yes" if (layer, index) in is_source else "no"]
        for (layer, index), score in _first(summary.neurons, most)
    ]
    rows += [
        [f"{layer}.{index}", "head", number(score, signed=True), "–"]
        for (layer, index), score in _first(summary.heads, most)
    ]
    columns = ["Layer and index", "Kind", "Estimate", "A source?"]
    return scrolling("The strongest components, by the linear estimate", columns, rows) if rows else ""


def _first(neurons: NeuronSet, most: int) -> Sequence[tuple[tuple[int, int], float]]:
    return list(zip(neurons, neurons.scores, strict=True))[:most]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _with_interval(share: patches.Share) -> str:
    value, low, high = share
    ends = f"<br><small>{percent(low, digits=1)} to {percent(high, digits=1)}</small>" if math.isfinite(low) else ""
    return percent(value, digits=1) + ends
