"""The doses of a study, as `results.json` keeps them, put together to dose responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from xlingtox.evaluation.dose import Dose
from xlingtox.evaluation.dose_response import DoseResponse


class Keys(NamedTuple):
    """The keys of `results.json` under which a dose response stands: its doses, its control, and what they share."""

    doses: str
    control: str
    shared: str


ON_TOXIC = Keys("intervention", "control", "intervention_dosing")
ON_NEUTRAL = Keys("amplification", "amplification_control", "amplification_dosing")
"""The doses after toxic and after neutral prompts."""

_SHARED = ("unit", "match", "n_neurons", "n_random", "n_constant")
"""The attributes of a dose response that are kept besides its doses."""


def content_of(response: DoseResponse, keys: Keys) -> dict[str, Any]:
    """Return what `results.json` keeps of a dose response."""
    doses, control = ([dataclasses.asdict(dose) for dose in rows] for rows in (response.doses, response.control))
    shared = {name: getattr(response, name) for name in _SHARED}
    return {keys.doses: doses, keys.control: control, keys.shared: shared}


def response_of(content: Mapping[str, Any], keys: Keys) -> DoseResponse:
    """Return the dose response under these keys.

    In results of earlier versions, nothing says what the doses share: they were added to activations.
    """
    doses, control = (tuple(map(Dose.of, content.get(key) or ())) for key in (keys.doses, keys.control))
    shared = {name: content[keys.shared][name] for name in _SHARED} if keys.shared in content else {}
    return DoseResponse(doses, control, **shared)
