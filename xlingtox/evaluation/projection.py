"""Measure how far neurons push the residual stream along a probe's direction, by group and prompt (Yang et al. 2024).

A neuron's push is its mean activation over tokens times the part of its write vector along the direction. Only sums of
groups are kept of each prompt, so that all neurons of a large model can be read on any number of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xlingtox import languages
from xlingtox.evaluation.continuation_rows import WeightedRow
from xlingtox.evaluation.shares import PerPrompt
from xlingtox.evaluation.text_losses import counted_columns
from xlingtox.models.batches import Batches
from xlingtox.models.batching import MOST_TEXTS, by_length, rows_that_fit
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.progress import bar

SIGNS = ("TP", "TN", "AP", "AN")
"""The groups of neurons by their signs: toxic-aligned or anti-toxic value vector, positive or negative activation."""


def pushes(lm: HookedLM, probe: Probe) -> Float[Tensor, "layer d_mlp"]:
    """Return the part of each neuron's write vector along the probe's direction, in float64 on the CPU."""
    probe.check(lm)
    unit = probe.direction.double().cpu() / probe.direction.double().cpu().norm()
    return torch.stack([lm.write_vectors(layer).double().cpu() @ unit for layer in range(lm.n_layers)])


def mean_activations(lm: HookedLM, rows: Sequence[WeightedRow], *, progress: bool) -> Float[Tensor, "layer d_mlp"]:
    """Return the mean activation of every neuron over the tokens that count, in float64.

    It is the mean over the tokens of a text, over the texts of a prompt, over the prompts of a language, and over
    languages. So long texts, and languages with many prompts, weigh no more than others.
    """
    n_prompts = {code: len({row.prompt for row in rows if row.language == code}) for code in _codes(rows)}
    total = torch.zeros(lm.n_layers, lm.d_mlp, dtype=torch.float64)

    def weighed(layer: int, means: Float[Tensor, "row d_mlp"], batch: list[int]) -> Float[Tensor, "d_mlp"]:
        weights = [rows[i].weight / n_prompts[rows[i].language] / len(n_prompts) for i in batch]
        return torch.tensor(weights, dtype=torch.float64) @ means

    def keep(batch: list[int], of_batch: Float[Tensor, "layer d_mlp"]) -> None:
        total.add_(of_batch)

    _read(lm, rows, "mean activations", weighed, keep, progress=progress)
    return total


def signed_groups(
    pushes: Float[Tensor, "layer d_mlp"], means: Float[Tensor, "layer d_mlp"]
) -> dict[str, Bool[Tensor, "layer d_mlp"]]:
    """Return the masks of the groups TP, TN, AP and AN. A push, or a mean activation, of exactly 0 is not positive."""
    toxic, positive = pushes > 0, means > 0
    return {"TP": toxic & positive, "TN": toxic & ~positive, "AP": ~toxic & positive, "AN": ~toxic & ~positive}


def pushed(
    lm: HookedLM,
    rows: Sequence[WeightedRow],
    groups: Mapping[str, NeuronSet],
    probe: Probe,
    *,
    n_prompts: int,
    progress: bool,
) -> dict[str, PerPrompt]:
    """Return how far each group pushes along the probe's direction on each prompt: the sum over its neurons.

    Args:
        rows: the texts that count. A prompt's value is the mean over its texts, and NaN where it has none.
    """
    along = pushes(lm, probe)
    parts = torch.zeros(lm.n_layers, lm.d_mlp, len(groups), dtype=torch.float64)
    for column, neurons in enumerate(groups.values()):
        for layer, (indices, _) in neurons.by_layer().items():
            parts[layer, indices, column] = along[layer, indices]
    values = np.zeros((n_prompts, len(groups)))
    values[sorted(set(range(n_prompts)) - {row.prompt for row in rows})] = np.nan

    def summed(layer: int, means: Float[Tensor, "row d_mlp"], batch: list[int]) -> Float[Tensor, "row group"]:
        return means @ parts[layer]

    def keep(batch: list[int], of_batch: Float[Tensor, "layer row group"]) -> None:
        weights = np.array([rows[i].weight for i in batch])
        np.add.at(values, [rows[i].prompt for i in batch], weights[:, None] * of_batch.sum(0).numpy())

    _read(lm, rows, "pushes", summed, keep, progress=progress)
    return {name: values[:, column] for column, name in enumerate(groups)}


def _codes(rows: Sequence[WeightedRow]) -> tuple[str, ...]:
    return languages.in_order(row.language for row in rows)


@torch.no_grad()
def _read(
    lm: HookedLM,
    rows: Sequence[WeightedRow],
    task: str,
    summarised: Callable[[int, Float[Tensor, "row d_mlp"], list[int]], Tensor],
    keep: Callable[[list[int], Float[Tensor, "layer *any"]], None],
    *,
    progress: bool,
) -> None:
    """Read texts in batches of similar length, and keep a summary of each layer's activations in each batch.

    The positions that count are those that produce the tokens that count, each just before its token.

    Args:
        summarised: a function of a layer, each row's mean activations over the positions that count, and the rows'
            numbers, which returns what is kept of them.
        keep: a function of the rows' numbers and of the summaries of all layers.
    """
    lengths = [len(row.ids) - 1 for row in rows]
    batches, longest = Batches(None, task, [lm]), max(lengths)

    def compute(batch: list[int]) -> Float[Tensor, "layer *any"]:
        ids, mask = lm.pad([rows[i].ids[:-1] for i in batch])
        counted = counted_columns([len(rows[i].ids) - rows[i].begin for i in batch])
        weights, most = (counted / counted.sum(1, keepdim=True)).unsqueeze(1), counted.shape[1]
        summaries: dict[int, Tensor] = {}

        def reader(layer: int) -> Callable[[Tensor], None]:
            def read(value: Tensor) -> None:
                means = (weights.to(value.device) @ value[:, -most:].float()).squeeze(1)
                summaries[layer] = summarised(layer, means.double().cpu(), batch)

            return read

        with lm.hooks(post={layer: reader(layer) for layer in range(lm.n_layers)}, edit=None):
            lm.logits(ids, mask, languages=[rows[i].language for i in batch], last=1)
        return torch.stack([summaries[layer] for layer in range(lm.n_layers)])

    with bar(f"reading {task}", total=len(rows), unit="text", progress=progress) as shown:

        def use(batch: list[int], of_batch: Float[Tensor, "layer *any"]) -> None:
            keep(batch, of_batch)
            shown.update(len(batch))

        size = batches.size(longest, lambda: min(MOST_TEXTS, rows_that_fit(lm, longest)))
        batches.each(by_length(lengths), size, compute, use)
