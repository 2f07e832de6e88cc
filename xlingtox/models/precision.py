"""Dtypes of weights: the one that the user asks for, or one that the device computes quickly."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

import torch

_LOG = logging.getLogger(__name__)

_ROTARY = ("inv_freq", "embed_positions")
"""The ends of the names of buffers that hold rotary frequencies."""


def computed_in(stored: torch.dtype, device: str | torch.device, name: str) -> torch.dtype:
    """Return the dtype in which a device holds stored weights if the user asks for none. Warn if it is another.

    A GPU computes 16 bits quickly. Every CPU computes float16 slowly. A CPU computes bfloat16 faster than float32 if it
    has instructions for it, and slower if it has none.

    Args:
        name: the model's name, for the warning.
    """
    if torch.device(device).type != "cpu" or stored not in (torch.float16, torch.bfloat16):
        return stored
    if stored == torch.bfloat16 and multiplies_bfloat16():
        return stored
    why = "which no CPU computes quickly" if stored == torch.float16 else "for which this CPU has no unit"
    _LOG.warning(
        "%s is stored in %s, %s: it is computed in float32, in twice the memory. dtype=%s keeps it as it is stored",
        name,
        str(stored).removeprefix("torch."),
        why,
        stored,
    )
    return torch.float32


@functools.cache
def multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for products in bfloat16, and torch has a library that uses them.

    No time is measured, because then results would depend on how busy the machine is.
    """
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if sys.platform == "darwin" or not onednn:
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return any(bool(known.get(unit)) for unit in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_dtype(dtype: Any) -> None:
    """Raise ValueError unless weights can be cast to this dtype."""
    if dtype is None or (dtype.is_floating_point and dtype.itemsize > 1):
        return
    raise ValueError(f"dtype is {dtype!r}: expected torch.float32, torch.bfloat16 or torch.float16, or None as stored")


def as_computed(model: Any, dtype: torch.dtype | None, name: str) -> tuple[Any, torch.dtype]:
    """Return the model, cast if need be, and the dtype that the user asked for, or else the stored one.

    If the user asks for none, the model is cast to a dtype that its device computes quickly. Quantised weights stay.
    """
    stored: torch.dtype = model.dtype
    if dtype is not None:
        return cast(model, dtype), dtype
    if getattr(model, "is_quantized", False):
        return model, stored
    return cast(model, computed_in(stored, model.device, name)), stored


def cast(model: Any, dtype: torch.dtype | None) -> Any:
    """Return the model in `dtype`, except for its rotary frequencies.

    Rounding the frequencies would turn far positions by a wrong angle, off by whole radians. Transformers spares them
    too when it reads weights.
    """
    if dtype is None or dtype == model.dtype:
        return model
    frequencies = {name: buffer for name, buffer in model.named_buffers() if name.endswith(_ROTARY)}
    model = model.to(dtype)
    for name, buffer in frequencies.items():
        module, _, buffer_name = name.rpartition(".")
        model.get_submodule(module)._buffers[buffer_name] = buffer
    return model
