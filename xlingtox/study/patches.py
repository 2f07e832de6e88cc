"""The patches of a study: the groups that are patched, and how `results.json` keeps what they carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from xlingtox.evaluation.patch_effect import PatchEffect

Share: TypeAlias = tuple[float, float, float]
"""A share with both ends of its 95 % interval."""

SOURCES, FOUND, NEURONS, HEADS = "sources", "by attribution", "all neurons", "all heads"
"""The groups: the paper's sources, as many neurons that attribution finds, all neurons, and all attention heads."""

MEASURE = "log_probability"
"""The measure of each run: the log-probability of given continuations."""


def content_of(effect: PatchEffect) -> dict[str, Any]:
    """Return what `results.json` keeps of an effect of patching: the values of each run, prompt by prompt."""
    runs = {run: np.asarray(values[MEASURE]).tolist() for run, values in effect.runs.items()}
    return {"languages": list(effect.languages), "runs": runs, "match": effect.match}


def effect_of(content: Mapping[str, Any] | None) -> PatchEffect | None:
    """Return the effect of patching that `content_of` wrote; None where there is none.

    Raises:
        ValueError: a run has another number of values than there are prompts.
    """
    if _is_missing(content):
        return None
    assert content is not None
    codes = tuple(content["languages"])
    runs = {run: {MEASURE: np.array(values, dtype=float)} for run, values in content["runs"].items()}
    if wrong := [run for run, values in runs.items() if values[MEASURE].shape != (len(codes),)]:
        raise ValueError(f"the run {wrong[0]!r} has not one value for each of {len(codes)} prompts")
    for run in ("base", "tuned"):
        if run not in runs:
            raise KeyError(run)
    match = content.get("match")
    return PatchEffect(codes, runs, match=None if _is_missing(match) else match)


def shares_of(effect: PatchEffect, *, language: str = "all") -> dict[str, Share]:
    """Return the share of tuning's effect that each run carries, of a group or its random neurons, by its name."""
    return {run: share for (_, run), share in effect.shares(language=language).items()}


def change_of(effect: PatchEffect, *, language: str = "all") -> float:
    """Return how far tuning moves the log-probability, in one language or in the mean over languages."""
    table = effect.to_frame(n_resamples=1)
    row = table[table["language"] == language].iloc[0]
    return float(row["tuned"] - row["base"])


def moved_by(effect: PatchEffect) -> dict[str, float]:
    """Return how far each run moves the log-probability in the mean over languages, by its name."""
    table = effect.to_frame(n_resamples=1)
    rows = table[table["language"] == "all"]
    return {run: float(moved) for run, moved in zip(rows["group"], rows["patched"] - rows["base"], strict=True)}


def _is_missing(value: Any) -> bool:
    return value is None or value == {} or (isinstance(value, float) and math.isnan(value))
