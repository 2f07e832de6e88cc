"""Plain PyTorch hooks behind the norms of a Hugging Face model; nothing here knows xlingtox."""

import contextlib

import numpy as np
import torch

NORMS = {
    "gpt2": ("transformer.h.{}", {"ln1": "ln_1", "ln2": "ln_2"}),
    "llama": ("model.layers.{}", {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}),
    "cohere": ("model.layers.{}", {"ln1": "input_layernorm"}),
}
"""Family to the path of a block, and the names of its norms."""


def norm(model, family, place):
    block, names = NORMS[family]
    return model.get_submodule(f"{block.format(place[1])}.{names[place[0]]}")


@contextlib.contextmanager
def mapped(model, family, maps):
    """Let `gain * x + shift` leave each norm in place of `x`; `maps` gives both for a site and a layer."""
    handles = [
        norm(model, family, place).register_forward_hook(
            lambda module, args, out, gain=gain, shift=shift: (
                out * torch.as_tensor(gain, dtype=out.dtype) + torch.as_tensor(shift, dtype=out.dtype)
            )
        )
        for place, (gain, shift) in maps.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def means(model, family, place, rows):
    """Return what leaves a norm, averaged over the tokens of each row, `[row, column]`."""
    taken = []
    handle = norm(model, family, place).register_forward_hook(lambda module, args, out: taken.append(out[0].mean(0)))
    with torch.no_grad():
        for ids in rows:
            model(input_ids=torch.tensor([ids]))
    handle.remove()
    return np.stack([value.numpy().astype(np.float64) for value in taken])
