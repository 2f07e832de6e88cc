"""A model whose weights lie between those of two others, or beyond one of them."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from xlingtox.models.hooked import HookedLM
from xlingtox.models.loading import Loaded

_LARGE = 2**28
"""Weights of so many bytes are not left to Python, which frees a model that nobody holds some time later."""


def interpolated(base: HookedLM, tuned: HookedLM, share: float) -> HookedLM:
    """Return a new model with the weights `base + share * (tuned - base)`, in the dtype and on the device of the base.

    The weights of share 0 are exactly the base's, and those of share 1 exactly the tuned model's. The new model takes
    the memory of one more copy of the weights.

    Raises:
        ValueError: `check_interpolable` says that there is no such model.

    Example:
        >>> from xlingtox.models.interpolated import interpolated
        >>> interpolated(lm, lm, 0.5).fingerprint() == lm.fingerprint()
        True
    """
    check_interpolable(base, tuned)
    if base.weight_bytes >= _LARGE:
        # The bridge of an earlier model refers to itself, so its weights stay until these circles are collected.
        gc.collect()
    model, targets = base.unwrapped(), tuned.plain_weights()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_between(weight, targets[name].to(weight.device), share))
    name = f"{base.name} + {share:g} ({tuned.name} - {base.name})"
    return HookedLM.over(Loaded(model, base.tokenizer, name, stored_dtype=base.stored_dtype, chat=base.chat))


def check_interpolable(base: HookedLM, tuned: HookedLM) -> None:
    """Raise ValueError unless each weight of one model has a weight of the same name and shape in the other."""
    for lm in (base, tuned):
        if lm.quantised:
            raise ValueError(f"{lm.name} is quantised, and its weights cannot be interpolated: load it without bits=")
        lm.check_unwrappable()
        lm.check_unedited("is not in its weights")
    base.check_alike(tuned)
    shapes, others = ({name: weight.shape for name, weight in lm.plain_weights().items()} for lm in (base, tuned))
    if shapes == others:
        return
    unlike = [name for name in {**shapes, **others} if shapes.get(name) != others.get(name)]
    sizes = " and ".join(
        "missing" if shape is None else " x ".join(map(str, shape))
        for shape in (shapes.get(unlike[0]), others.get(unlike[0]))
    )
    raise ValueError(
        f"{tuned.name} was not tuned from {base.name}: {len(unlike)} of their weights differ in shape, such as "
        f"{unlike[0]} ({sizes})"
    )


def _between(weight: Tensor, target: Tensor, share: float) -> Tensor:
    """Interpolate in 32 bits or more. Both ends are exact, down to the sign of a zero."""
    if share in (0, 1):
        return target if share else weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.lerp(weight.to(wide), target.to(wide), share)
