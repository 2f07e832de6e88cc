"""Weights of 8 and 4 bits: quantised by bitsandbytes while a checkpoint is read, or stored that way in it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import torch
import transformers
from torch import nn

Bits = Literal[4, 8]


def quantisation_options(bits: Bits | None, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the options that make transformers quantise weights to `bits` bits. For None there are none.

    Raises:
        ValueError: `bits` is another number, or bitsandbytes is missing.
    """
    if bits is None:
        return {}
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits!r}: expected 4 or 8")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(f"{bits}-bit weights need the package bitsandbytes: pip install 'xlingtox[quantised]'")
    # QLoRA's settings (Dettmers et al. 2023). The library's defaults are another 4-bit number type, and float32.
    config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype or (torch.bfloat16 if torch.cuda.is_available() else torch.float32),
    )
    return {"quantization_config": config}


def stored_bits(config: Any) -> str | None:
    """Return how a checkpoint's weights are quantised, in words, from its configuration; None if they are not."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    for bits in (4, 8):
        if settings.get(f"load_in_{bits}bit") or settings.get(f"_load_in_{bits}bit"):
            return f"{bits} bits"
    method = settings.get("quant_method", "an unknown way")
    return f"{getattr(method, 'value', method)}"


def check_stored(config: Any, bits: Bits | None, source: str, adapter: Any = None) -> None:
    """Raise ValueError if a checkpoint holds quantised weights and cannot serve what is asked of it.

    Transformers would silently ignore another number of bits. Merging would round an adapter.
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


def check_some_quantised(model: Any, bits: Bits | None, source: str) -> None:
    """Raise ValueError if bits were asked for and no weight is quantised. Transformers would not say so."""
    if bits is None or any(not weight.is_floating_point() for weight in model.parameters()):
        return
    raise ValueError(f"bits={bits} quantises no weight of {source} ({type(model).__name__}): load it without bits")


def keep_weights_as_read(model: Any) -> Any:
    """Make 4-bit layers keep their weights as they were read, in place, and return the model.

    On a CPU with AVX-512 BF16, bitsandbytes would pack the weights again at the first pass in evaluation mode. That
    rounds their scales once more, and stops all gradients through these layers, even in training.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            # If the weights were packed again already, this puts them back.
            module.state_dict()
    return model


@contextlib.contextmanager
def falcon_layers_as_linear(config: Any, bits: Bits | None) -> Iterator[None]:
    """Build Falcon's models from PyTorch's linear layers, which compute the same as Falcon's and can be quantised."""
    if bits is None or config.model_type != "falcon":
        yield
        return
    from transformers.models.falcon import modeling_falcon

    module: Any = modeling_falcon
    before, module.FalconLinear = module.FalconLinear, nn.Linear
    try:
        yield
    finally:
        module.FalconLinear = before
