"""Mean states of the residual stream, one vector for each text and layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox.checking import checked
from xlingtox.models.batching import over_texts
from xlingtox.models.hooked import HookedLM


@checked
def mean_states(
    lm: HookedLM, texts: Sequence[str], layers: Sequence[int], *, batch_size: int | None = None, progress: bool = True
) -> Float[Tensor, "layer text d_model"]:
    """Mean over each text's tokens of the residual stream at `layers` (0: the embedding's output, n: the n-th block's).

    `lm.n_layers + 1` stands for the state after the final norm.

    One pass, texts of like length together; each state is averaged where it arises and not kept. Of a text longer than
    the model's context only the beginning is read. Float32, on the CPU.

    Raises:
        ValueError: no texts, or one without tokens.
    """
    out, last = torch.empty(len(layers), len(texts), lm.d_model), lm.n_layers
    with tqdm(total=len(texts), desc="reading states", unit="text", disable=not progress, leave=False) as bar:

        def read(rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]) -> None:
            weight = (mask / mask.sum(1, keepdim=True)).unsqueeze(1)
            means: dict[int, Tensor] = {}

            def keep(layer: int, state: Tensor) -> None:
                means[layer] = (weight.to(state.device) @ state.float()).squeeze(1)
                if layer == last and last + 1 in layers:
                    keep(last + 1, lm.after_final_norm(state))

            hooks = {min(layer, last): partial(keep, min(layer, last)) for layer in layers}
            with lm.hooks(residual=hooks, edit=None):
                lm.logits(ids, mask, last_only=True)
            # Copied after the pass: a copy within it would make a GPU wait at every layer.
            for place, layer in enumerate(layers):
                out[place, rows] = means[layer].cpu()
            bar.update(len(rows))

        over_texts(lm, texts, batch_size, read)
    return out
