"""The loss of texts under a model, summed over the tokens that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.edits.interventions import Intervention
from xlingtox.edits.under import Plan, results_under
from xlingtox.models.batches import NUMBERS, Batches
from xlingtox.models.batching import MOST_TEXTS, by_length, rows_that_fit
from xlingtox.models.hooked import HookedLM
from xlingtox.progress import bar

_CONVERTED = 2**18
"""Convert this many logits to float64 at a time: a few rows of a large vocabulary fit a processor's cache."""


class Row(NamedTuple):
    """One text: its language, its tokens, and the position of the first token whose loss counts."""

    language: str
    ids: Sequence[int]
    begin: int


@torch.no_grad()
def text_losses(lm: HookedLM, rows: Sequence[Row], batch_size: int | None, progress: bool) -> Float[np.ndarray, "row"]:
    """Sum the loss (nats) of each row's tokens that count, given all tokens before them."""
    lengths, losses = [len(row.ids) for row in rows], np.zeros(len(rows))
    batches, longest = Batches("texts", "losses", [lm]), max(lengths)
    together = batch_size or batches.size(longest, lambda: min(MOST_TEXTS, rows_that_fit(lm, longest, longest)))
    with bar("perplexity", total=len(rows), unit="text", progress=progress) as shown:

        def keep(batch: list[int], of_batch: Float[np.ndarray, "row"]) -> None:
            losses[batch] = of_batch
            shown.update(len(batch))

        batches.each(
            by_length(lengths),
            together,
            lambda batch: _batch_losses(lm, [rows[i] for i in batch]),
            keep,
            about=lambda batch: [rows[i] for i in batch],
            codec=NUMBERS,
        )
    return losses


def text_losses_under(
    lm: HookedLM, edits: Sequence[Intervention], rows: Sequence[Row], *, progress: bool
) -> list[Float[np.ndarray, "row"]]:
    """Return `text_losses` under each edit. Several edits share a batch where that is faster."""
    with bar("perplexity", total=len(rows) * len(edits), unit="text", progress=progress) as shown:

        def together(n_edits: int) -> list[Float[np.ndarray, "row"]]:
            numbers = [edit for edit in range(n_edits) for _ in rows]
            return np.split(_batch_losses(lm, [*rows] * n_edits, edits=numbers), n_edits)

        return results_under(
            lm,
            edits,
            lambda: text_losses(lm, rows, None, progress=False),
            together,
            plan=Plan.of(lm, len(rows), max(len(row.ids) for row in rows), whole=True),
            batches=lambda: Batches("texts", "losses", [lm]),
            about=rows,
            codec=NUMBERS,
            done=lambda n_edits: shown.update(len(rows) * n_edits),
        )


def _batch_losses(lm: HookedLM, rows: Sequence[Row], *, edits: Sequence[int] | None = None) -> Float[np.ndarray, "row"]:
    """Return the summed losses of one batch, in float64, with rows under the edits of these numbers."""
    ids, mask = lm.pad([row.ids for row in rows])
    counted = counted_columns([len(row.ids) - row.begin for row in rows]).to(lm.device)
    most = counted.shape[1]
    logits = lm.logits(ids, mask, languages=[row.language for row in rows], edits=edits, last=most + 1)[:, :-1]
    loss = nats(logits, ids[:, -most:])
    return loss.where(counted, 0.0).sum(1).cpu().numpy()


def counted_columns(counts: Sequence[int]) -> Bool[Tensor, "row pos"]:
    """Return the mask of the last tokens of each row, in as many columns as the largest count.

    Rows are padded on the left, so that all end in the last column.

    Args:
        counts: how many tokens count at the end of each row.

    Example:
        >>> from xlingtox.evaluation.text_losses import counted_columns
        >>> counted_columns([1, 2]).tolist()
        [[False, True], [True, True]]
    """
    return torch.arange(max(counts), 0, -1) <= torch.tensor(counts)[:, None]


def nats(logits: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos"]:
    """Return minus the log-probability of each token, in float64.

    A sum over a vocabulary of 256,000 in float32 is off by up to 4e-4 nats, so that the sum is taken in float64. Its
    terms are computed in float32, five times as fast, which moves a result by about 1e-8. Chunks of positions stay in
    the cache.
    """
    flat, targets = logits.flatten(0, 1), tokens.flatten()
    chunk = max(1, (_CONVERTED if logits.device.type == "cpu" else 64 * _CONVERTED) // logits.shape[-1])
    parts = [
        _log_sum_exp(part.float()) - part.gather(-1, ids[:, None]).squeeze(-1).double()
        for part, ids in zip(torch.split(flat, chunk), torch.split(targets, chunk), strict=True)
    ]
    return torch.cat(parts).view(tokens.shape)


def _log_sum_exp(logits: Float[Tensor, "pos vocab"]) -> Float[Tensor, "pos"]:
    """Return the logarithm of the sum of exponentials of each row, in float64."""
    most = logits.amax(-1, keepdim=True)
    return (logits - most).exp_().sum(-1, dtype=torch.float64).log() + most.squeeze(-1).double()
