"""The other opinion: plain Hugging Face models, PyTorch hooks and numpy; nothing here knows xlingtox."""

import contextlib
import math
from collections.abc import Callable, Iterator

import families
import numpy as np
import torch
from torch import Tensor


def block(model, layer: int):
    return families.block(model, model.config.model_type, layer)


def down(model, layer: int):
    """The MLP's down-projection."""
    return families.down(model, model.config.model_type, layer)


def values(model, layer: int) -> Tensor:
    """What each neuron writes, [d_mlp, d_model]."""
    return families.values(model, model.config.model_type, layer)


def keys(model, layer: int) -> Tensor:
    """What each neuron reads, [d_mlp, d_model]; the gate's rows in a gated MLP."""
    return families.keys(model, model.config.model_type, layer)


@torch.no_grad()
def forward(model, ids: Tensor, mask: Tensor | None = None, **wanted):
    """One uncached pass, with the positions that left padding needs (BLOOM has none)."""
    mask = torch.ones_like(ids) if mask is None else mask.long()
    places = {} if model.config.model_type == "bloom" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **places, **wanted)


@contextlib.contextmanager
def hooked(handles) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def watching(model, layers) -> Iterator[dict[int, Tensor]]:
    """Layer to the input of its down-projection in the latest pass."""
    seen: dict[int, Tensor] = {}

    def watch(layer: int):
        return lambda _, args: seen.__setitem__(layer, args[0].detach().clone())

    with hooked([down(model, layer).register_forward_pre_hook(watch(layer)) for layer in layers]):
        yield seen


@contextlib.contextmanager
def editing(model, neurons, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply `change` to these neurons' columns of the down-projections' input."""

    def edit(layer: int):
        columns = [index for own, index in neurons if own == layer]

        def before(_, args):
            value = args[0].clone()
            value[..., columns] = change(value[..., columns])
            return (value,)

        return before

    layers = {layer for layer, _ in neurons}
    with hooked([down(model, layer).register_forward_pre_hook(edit(layer)) for layer in layers]):
        yield


def states(model, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Residual stream: the embedding's output, then each block's; the last is before the final norm."""
    last: list[Tensor] = []

    def keep(_, args, out):
        last.append(out[0] if isinstance(out, tuple) else out)

    with hooked([block(model, model.config.num_hidden_layers - 1).register_forward_hook(keep)]):
        hidden = forward(model, ids, mask, output_hidden_states=True).hidden_states
    return [*hidden[:-1], last[0]]


def greedy(model, ids: list[int], n_new: int, end: int | None = None) -> tuple[list[int], list[dict[int, Tensor]]]:
    """Continue one prompt, alone and without a cache: new tokens, and each pass's neurons at its last position."""
    layers = range(model.config.num_hidden_layers)
    new: list[int] = []
    passes = []
    with watching(model, layers) as seen:
        while len(new) < n_new and (not new or new[-1] != end):
            logits = forward(model, torch.tensor([[*ids, *new]])).logits
            passes.append({layer: seen[layer][0, -1] for layer in layers})
            new.append(int(logits[0, -1].argmax()))
    return new, passes


def nucleus(logits: Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Exact probabilities: the fewest likeliest tokens that hold `top_p` of the mass, renormalised."""
    scaled = logits.double().numpy() / temperature
    chance = np.exp(scaled - scaled.max())
    chance /= chance.sum()
    order = np.argsort(-chance, kind="stable")
    before = np.cumsum(chance[order]) - chance[order]
    kept = order[before < top_p]
    out = np.zeros_like(chance)
    out[kept] = chance[kept] / chance[kept].sum()
    return out


@torch.no_grad()
def conditional_perplexity(model, tokenizer, prompt: str, text: str) -> float | None:
    """From Hugging Face's own logits of one text alone, token by token; None where there is nothing to count."""
    given, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    begin = 0
    while begin < min(len(given), len(ids)) and given[begin] == ids[begin]:
        begin += 1
    begin = max(begin, 1)
    if not text.strip() or begin == len(ids):
        return None
    chances = forward(model, torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return math.exp(-sum(float(chances[i - 1, ids[i]]) for i in range(begin, len(ids))) / (len(ids) - begin))
