"""Costs: the seconds of a fit, the seconds of a generated token, and whether a method can be written into weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlingtox import processes
from xlingtox.data import Prompt
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.under import named
from xlingtox.methods.method import Edited
from xlingtox.models import journal
from xlingtox.models.batching import free_bytes
from xlingtox.models.hooked import HookedLM

_N_PROMPTS, _N_NEW, _REPEATS = 8, 16, 3

_COPY = 1.5
"""The memory that baking takes, as a multiple of the weights."""


def kept(about: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """Return what was measured: in a call that is resumed, what was measured first.

    The main process measures for all.

    Args:
        about: all that was measured, in values that JSON can hold.
        measure: a function that returns such values too.
    """
    return processes.from_main(lambda: json.loads(journal.once("texts", about, lambda: json.dumps(measure()).encode())))


def price(lm: HookedLM, edited: Edited, prompts: Sequence[Prompt]) -> tuple[float, str]:
    """Return the `token_seconds` of an edited model, and whether the edit can be `baked`."""
    with named(lm, edited) if isinstance(edited, Intervention) else contextlib.nullcontext():
        identity = (lm if isinstance(edited, Intervention) else edited).identity()
    about = {"task": "price", "model": lm.fingerprint(), "edited": dataclasses.asdict(identity)}
    seconds, reason = kept(about, lambda: (token_seconds(lm, edited, prompts), baked(lm, edited)))
    return float(seconds), str(reason)


def token_seconds(lm: HookedLM, edited: Edited, prompts: Sequence[Prompt]) -> float:
    """Return the seconds a generated token of an edited model, as a multiple of those of the unedited model.

    Both read the same prompts and the same tokens after them, in turn, three times. What they would write does not
    matter, so that a method that falls silent is not called fast. The median of three ratios counts.
    """
    some = [prompt.text for prompt in prompts[:: max(1, len(prompts) // _N_PROMPTS)]][:_N_PROMPTS]
    model = edited if isinstance(edited, HookedLM) else lm
    room = min(lm.n_positions, model.n_positions)
    n_new = min(_N_NEW, room // 2)
    ids, mask = lm.encode(some, max_length=room - n_new)
    _seconds(model, ids, mask, n_new)  # The first pass allocates memory, and is not counted.
    ratios = []
    for _ in range(_REPEATS):
        plain = _seconds(lm, ids, mask, n_new)
        with contextlib.nullcontext() if isinstance(edited, HookedLM) else edited.on(lm):
            ratios.append(_seconds(model, ids, mask, n_new) / plain)
    return float(np.median(ratios))


@torch.no_grad()
def _seconds(lm: HookedLM, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"], n_new: int) -> float:
    """Return how long the model takes to read texts, and then some more tokens one by one."""
    began = time.perf_counter()
    logits, cache = lm.extend(ids, mask)
    for _ in range(n_new):
        mask = torch.cat([mask, mask[:, -1:]], 1)
        logits, cache = lm.extend(ids[:, -1:], mask, cache=cache)
    # Reading a number waits until the device has computed it.
    float(logits[0, 0])
    return time.perf_counter() - began


def baked(lm: HookedLM, edited: Edited) -> str:
    """Return an empty string if an edit can be written into the model's weights, or the reason why it cannot."""
    if isinstance(edited, Intervention):
        if _COPY * lm.weight_bytes > free_bytes(lm.device):
            return f"there is too little memory for a second copy of {lm.name}, in which that would show"
        try:
            edited.bake(lm)
        except ValueError as error:
            return str(error)
        return ""
    standing = edited.standing_edit
    return "" if standing is None else f"{standing} is not in the weights"
