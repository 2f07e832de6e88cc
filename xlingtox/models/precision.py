"""Number types on a processor: in which of them a model is computed where nobody said."""

from __future__ import annotations

import functools
import logging
import sys

import torch

_LOG = logging.getLogger(__name__)


def computed_in(stored: torch.dtype, device: str | torch.device, name: str) -> torch.dtype:
    """Return the dtype in which weights are held on a device, where none was asked for, and warn where it is another.

    A GPU computes 16 bits quickly. A processor computes float16 slowly everywhere; bfloat16 is quicker than float32
    where it has instructions for it, and slower where it has none.

    Args:
        name: of the model, for the warning.
    """
    if torch.device(device).type != "cpu" or stored not in (torch.float16, torch.bfloat16):
        return stored
    if stored == torch.bfloat16 and multiplies_bfloat16():
        return stored
    why = "which no processor computes quickly" if stored == torch.float16 else "for which this processor has no unit"
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
    """Whether the processor has instructions for products in bfloat16, and torch a library that uses them.

    The processor is looked at, not timed: a busy machine would otherwise decide which numbers come out.
    """
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if sys.platform == "darwin" or not onednn:
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return any(bool(known.get(unit)) for unit in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
