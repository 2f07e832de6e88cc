"""Weights of 8 and 4 bits: asked of bitsandbytes while a checkpoint is read, or stored in it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import torch
import transformers
from torch import nn

Bits = Literal[4, 8]


def quantised(bits: Bits | None, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return what transformers is told to read weights in so many bits.

    Raises:
        ValueError: another number of bits, or bitsandbytes is missing.
    """
    if bits is None:
        return {}
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits!r}: expected 4 or 8")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"{bits}-bit weights need the package bitsandbytes: pip install bitsandbytes")
    # As QLoRA has it (Dettmers et al. 2023); the library's own defaults are another 4-bit number, and float32.
    config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype or (torch.bfloat16 if torch.cuda.is_available() else torch.float32),
    )
    return {"quantization_config": config}


def stored_bits(config: Any) -> str | None:
    """Return how a checkpoint's weights are packed, in words, from its configuration; None where they are not."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    told = stored if isinstance(stored, dict) else stored.to_dict()
    for bits in (4, 8):
        if told.get(f"load_in_{bits}bit") or told.get(f"_load_in_{bits}bit"):
            return f"{bits} bits"
    method = told.get("quant_method", "an unknown way")
    return f"{getattr(method, 'value', method)}"


def check_stored(config: Any, bits: Bits | None, source: str, adapter: Any = None) -> None:
    """Raise ValueError where a checkpoint holds packed weights, and others are asked for or an adapter is to be merged.

    Transformers would overlook the one; the other would round the adapter.
    """
    stored = stored_bits(config)
    if stored is None:
        return
    if bits is not None and stored != f"{bits} bits":
        raise ValueError(
            f"bits={bits} is asked of {source}, whose weights are stored in {stored}: load it without bits, or give "
            "the checkpoint that it was made from"
        )
    if adapter is not None:
        raise ValueError(
            f"an adapter is not merged into weights that are stored in {stored}, which would round it: give the "
            "checkpoint that they were made from, load(base, adapter=...)"
        )


def check_taken(model: Any, bits: Bits | None, source: str) -> None:
    """Raise ValueError where bits were asked for and no weight is packed: transformers says nothing then."""
    if bits is None or any(not weight.is_floating_point() for weight in model.parameters()):
        return
    raise ValueError(f"bits={bits} packs no weight of {source} ({type(model).__name__}): load it without bits")


def steady(model: Any) -> Any:
    """Return the model with 4-bit layers that keep their weights as they were read.

    Where a processor has AVX-512 BF16, bitsandbytes packs them anew at the first pass in evaluation mode. It rounds
    their scales once more, and from then on no gradient passes through these layers, also in training.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            # Weights that were packed anew already are put back where they are saved.
            module.state_dict()
    return model


@contextlib.contextmanager
def ordinary_layers(config: Any, bits: Bits | None) -> Iterator[None]:
    """Let Falcon's linear layers be built as PyTorch's, which they equal: transformers packs no others."""
    if bits is None or config.model_type != "falcon":
        yield
        return
    from transformers.models.falcon import modeling_falcon

    made: Any = modeling_falcon
    before, made.FalconLinear = made.FalconLinear, nn.Linear
    try:
        yield
    finally:
        made.FalconLinear = before
