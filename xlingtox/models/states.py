"""Mean states of the residual stream: one vector for each text and layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.models.batches import Batches
from xlingtox.models.hooked import HookedLM
from xlingtox.progress import bar


@checked
def mean_states(
    lm: HookedLM, texts: Sequence[str], layers: Sequence[int], *, batch_size: int | None = None, progress: bool = True
) -> Float[Tensor, "layer text d_model"]:
    """Average the residual stream over the tokens of each text, at some layers.

    A mean state stands for a whole text, for a probe or for retrieval. All layers are read in one pass, and states are
    averaged during the pass, so long texts need little memory.

    Args:
        texts: the texts to read. Of a text that is longer than the model's context, only the beginning is read.
        layers: the states to average: 0 is the embedding's output, n the output of the n-th block, and
            `lm.n_layers + 1` the state after the final norm.
        batch_size: texts in one pass. By default as many as the free memory allows, at most 64.

    Returns:
        the mean states, in float32 on the CPU.

    Raises:
        ValueError: there are no texts, or a text has no tokens.

    Example:
        >>> xt.models.mean_states(lm, ["the cat", "la casa"], [0, lm.n_layers], progress=False).shape
        torch.Size([2, 2, 128])
    """
    means, last = torch.empty(len(layers), len(texts), lm.d_model), lm.n_layers

    def read(
        rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "layer row d_model"]:
        weight = (mask / mask.sum(1, keepdim=True)).unsqueeze(1)
        batch_means: dict[int, Tensor] = {}

        def average(layer: int, state: Tensor) -> None:
            batch_means[layer] = (weight.to(state.device) @ state.float()).squeeze(1)
            # The final norm is applied here, because no hook sees its output.
            if layer == last and last + 1 in layers:
                average(last + 1, lm.after_final_norm(state))

        hooks = {min(layer, last): partial(average, min(layer, last)) for layer in layers}
        with lm.hooks(residual=hooks, edit=None):
            lm.logits(ids, mask, last=1)
        # Copied after the pass: a copy within it would make a GPU wait at every layer.
        return torch.stack([batch_means[layer].cpu() for layer in layers])

    with bar("reading states", total=len(texts), unit="text", progress=progress) as shown:

        def keep(rows: list[int], of_batch: Float[Tensor, "layer row d_model"]) -> None:
            means[:, rows] = of_batch
            shown.update(len(rows))

        Batches(None, "states", [lm]).each_text(texts, batch_size, read, keep)
    return means
