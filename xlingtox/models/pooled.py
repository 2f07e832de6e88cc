"""Pooled activations: one vector for each text and place, the highest, the mean or the last over the text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.models import places as sizes
from xlingtox.models.backend import Hook
from xlingtox.models.batches import Batches
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place
from xlingtox.progress import bar

Pool = Literal["max", "mean", "last"]
"""What stands for a text's tokens: the highest of each column, their mean, or the last token."""


@checked
def read_pooled(
    lm: HookedLM,
    texts: Sequence[str],
    places: Sequence[Place],
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[Place, Float[Tensor, "text column"]]:
    """Read the activations of some places, pooled over the tokens of each text.

    All places are read in one pass, and activations are pooled during the pass, so long texts need little memory.

    Args:
        texts: the texts to read. Of a text that is longer than the model's context, only the beginning is read.
        places: pairs of a site and a layer.
        pool: "max" takes the highest activation of each column over the tokens, "mean" their mean, "last" that of the
            last token.
        batch_size: texts in one pass. By default as many as the free memory allows, at most 64.

    Returns:
        the pooled activations of each place, in float32 on the CPU, in the order of `places`.

    Raises:
        ValueError: there are no texts or no places, a text has no tokens, or the model has no such place.

    Example:
        >>> from xlingtox.models.pooled import read_pooled
        >>> highest = read_pooled(lm, ["the cat", "la casa"], [("neurons", 0), ("heads", 3)], progress=False)
        >>> highest["neurons", 0].shape
        torch.Size([2, 512])
    """
    if not places:
        raise ValueError("there are no places to read: give pairs such as ('neurons', 0)")
    pooled = {place: torch.empty(len(texts), sizes.n_columns(lm, place)) for place in places}

    def read(
        rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
    ) -> dict[Place, Float[Tensor, "row column"]]:
        of_batch: dict[Place, Tensor] = {}

        def reader(place: Place) -> Hook:
            def read_place(value: Tensor) -> None:
                of_batch[place] = _pooled(value.float(), mask.to(value.device), pool)

            return read_place

        with lm.hooks(at={place: reader(place) for place in pooled}, edit=None):
            lm.logits(ids, mask, last=1)
        # Copied after the pass: a copy within it would make a GPU wait at every layer.
        return {place: of_batch[place].cpu() for place in pooled}

    with bar("reading activations", total=len(texts), unit="text", progress=progress) as shown:

        def keep(rows: list[int], of_batch: dict[Place, Float[Tensor, "row column"]]) -> None:
            for place, values in of_batch.items():
                pooled[place][rows] = values
            shown.update(len(rows))

        Batches(None, "pooled activations", [lm]).each_text(texts, batch_size, read, keep)
    return pooled


def _pooled(
    value: Float[Tensor, "row pos column"], mask: Bool[Tensor, "row pos"], pool: Pool
) -> Float[Tensor, "row column"]:
    """Pool activations over each row's tokens. Rows are padded on the left, so that the last position is a token."""
    if pool == "last":
        return value[:, -1].clone()
    if pool == "max":
        return value.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    return ((mask / mask.sum(1, keepdim=True)).unsqueeze(1) @ value).squeeze(1)
