"""Say how much memory and disk each stage of a study takes, from the sizes of its model, tables and settings."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from xlingtox.checking import checked
from xlingtox.frontiers.strengths import N_STRENGTHS
from xlingtox.study.costs import Shape, adapter_parameters, checkpoint_bytes, optimizer_numbers
from xlingtox.study.frontier_settings import NEEDS_TUNED, FrontierSettings
from xlingtox.study.plan import samples_of_promoted
from xlingtox.study.settings import Settings
from xlingtox.study.side_effects_settings import SideEffectsSettings
from xlingtox.study.sizes import Sizes
from xlingtox.tuning import Recipe

_MOST_ROWS, _READ_AT_ONCE = 512, 64
"""The largest batches: of texts that are written, and of texts that are read."""

_SHARE = 0.5
"""A batch is made to fit into this share of the free memory."""

_FOR_WEIGHTS = 0.8
"""The weights of two models may take this share of a device's memory; batches need the rest."""

_WITH_GRADIENTS = 3
"""A row takes about so many times the memory when gradients are asked for."""

_MOST_KEPT = 2**30
"""Activations of every step are kept up to this many bytes."""

_BYTES_A_TOKEN = 5
"""About as many bytes does a token of text take in a file, also in scripts of three bytes a letter."""

_BYTES_A_SCORE = 120
"""A score takes so many bytes in the file of scores, with the digest of its text."""


@checked
def row_bytes(shape: Shape, positions: int, *, predicted: int = 1) -> int:
    """Estimate the memory of one row of a batch, as `HookedLM.row_bytes` does for a loaded model."""
    numbers = positions * (2 * shape.n_layers * shape.d_model + 4 * shape.d_mlp + 8 * shape.d_model)
    return numbers * shape.number_bytes + 24 * predicted * shape.n_vocab


@checked
def stage_memory(
    shape: Shape, sizes: Sizes, settings: Settings, *, stages: Sequence[str], recipe: Recipe, free: int | None = None
) -> dict[str, int]:
    """Estimate the peak memory of each stage in bytes, with the weights and without Python and torch themselves.

    One model is in memory at a time, and two for attribution. Batches shrink to what is free, so that a stage can do
    with little more than its weights; the estimate is of full batches. On a GPU it is the GPU's memory; see
    `host_memory` for the rest.

    Args:
        free: the bytes that are free for batches; None for as many as they can use.

    Example:
        >>> costs, space = xt.study.costs, xt.study.space
        >>> sizes = xt.study.sizes.Sizes(prompts={"en": 10}, prompt_tokens=12.0, longest=20)
        >>> memory = space.stage_memory(
        ...     costs.Shape.of(lm), sizes, xt.study.Settings(), stages=["promoted"], recipe=xt.tuning.MINI)
        >>> memory["promoted"] > costs.Shape.of(lm).weight_bytes
        True
    """
    positions = sizes.longest + settings.max_new_tokens
    fit = _MOST_KEPT * 1024 if free is None else int(_SHARE * free)
    writing = min(_MOST_ROWS * row_bytes(shape, positions), fit)
    reading = min(_READ_AT_ONCE * row_bytes(shape, positions, predicted=positions), fit)
    peaks = {
        "localize": max(writing, reading),
        "promoted": writing,
        "intervene": max(writing, reading),
        "amplify": max(writing, reading),
        "retrieve": reading,
        # An adapter is merged into the base as it was given, which is in memory then.
        "tune": max(0, tuning_bytes(shape, sizes, recipe) - shape.weight_bytes),
        "compare": max(writing, reading),
        "side_effects": max(writing, reading),
        # Both models are in memory, and one keeps what its gradients need.
        "attribute": tuned_bytes(shape) + min(_WITH_GRADIENTS * reading, fit),
        # The tuned model is there for the fits, and a third that lies between both while that one's text is written.
        "frontier": (2 * tuned_bytes(shape) if _frontier_has_tuned(settings, stages) else 0)
        + min(_WITH_GRADIENTS * reading, fit),
    }
    held = host_memory(shape, sizes, settings, stages=stages) if shape.device == "cpu" else {}
    return {
        name: shape.weight_bytes + peaks[name] + held.get(name, 0) if name in peaks else held.get(name, 0)
        for name in stages
    }


def _frontier_has_tuned(settings: Settings, stages: Sequence[str]) -> bool:
    chosen = (settings.frontier or FrontierSettings()).chosen(tuned="tune" in stages)
    return any(name in NEEDS_TUNED for name in chosen)


@checked
def tuned_bytes(shape: Shape) -> int:
    """Return the bytes of the tuned model's weights, which are not quantised.

    Example:
        >>> xt.study.space.tuned_bytes(xt.study.costs.Shape.of(lm)) == 4 * lm.n_parameters
        True
    """
    return shape.n_parameters * shape.number_bytes


@checked
def both_fit(shape: Shape, total: int) -> bool:
    """Return whether both models fit into the memory of a device, with room for a batch.

    Example:
        >>> xt.study.space.both_fit(xt.study.costs.Shape.of(lm), 2**34)
        True
    """
    return shape.weight_bytes + tuned_bytes(shape) <= _FOR_WEIGHTS * total


@checked
def host_memory(shape: Shape, sizes: Sizes, settings: Settings, *, stages: Sequence[str]) -> dict[str, int]:
    """Estimate the bytes of states, activations and texts, which lie in the machine's own memory beside a GPU too.

    Example:
        >>> costs, space = xt.study.costs, xt.study.space
        >>> sizes = xt.study.sizes.Sizes(labelled=2e6, n_labelled=100_000)
        >>> held = space.host_memory(costs.Shape.of(lm), sizes, xt.study.Settings(), stages=["localize"])
        >>> held["localize"] > 4 * 100_000 * lm.d_model
        True
    """
    n_dose_prompts = sum(min(n, settings.dose_prompts) for n in sizes.prompts.values())
    # All neurons of the layers that hold sources are read, from which random ones are drawn.
    kept = min(_MOST_KEPT, 4 * n_dose_prompts * settings.max_new_tokens * shape.n_layers * shape.d_mlp)
    sentences = 4 * sizes.n_parallel * (shape.n_layers + 1) * shape.d_model
    held = {
        # States in 32 bits, a copy in 64 for the probe, and another while it is fitted.
        "localize": 20 * sizes.n_labelled * shape.d_model,
        "intervene": kept,
        "amplify": kept,
        "retrieve": min(sentences, 2 * sentences // max(1, len(sizes.prompts)) + 2**28),
        "compare": kept,
    }
    return {name: held.get(name, 2**20) for name in stages}


@checked
def tuning_bytes(shape: Shape, sizes: Sizes, recipe: Recipe) -> int:
    """Estimate the memory of tuning: weights, gradients, the optimizer's numbers and one batch.

    All weights are tuned in 32 bits. An adapter leaves the base as it is, or in the bits of the recipe.

    Example:
        >>> costs, space = xt.study.costs, xt.study.space
        >>> space.tuning_bytes(costs.Shape.of(lm), xt.study.sizes.Sizes(), xt.tuning.MINI) > 4 * 4 * lm.n_parameters
        True
    """
    n, lora = shape.n_parameters, recipe.lora
    tuned = adapter_parameters(shape, recipe)
    learning = int(4 * tuned * (2 + optimizer_numbers(recipe.optimizer)))
    if lora is None:
        base = 0
    elif lora.bits is None:
        base = shape.weight_bytes
    else:
        # Embeddings are not quantised.
        embedded = 2 * shape.n_vocab * shape.d_model
        base = int(max(0, n - embedded) * lora.bits / 8) + 2 * embedded
    rows = 2 * recipe.batch_size
    positions = min(recipe.max_length, max(sizes.longest, int(sizes.pair_tokens / 2), 1))
    layers = 1 if recipe.gradient_checkpointing else shape.n_layers
    # What the backward pass needs of each layer: states, queries, keys and values, and three copies of the neurons.
    kept = rows * positions * (layers * (14 * shape.d_model + 4 * shape.d_mlp) + 2 * shape.n_layers * shape.d_model)
    return base + learning + 4 * kept + 4 * min(rows * positions, 1024) * shape.n_vocab


@checked
def stage_disk(
    shape: Shape, sizes: Sizes, settings: Settings, *, stages: Sequence[str], recipe: Recipe
) -> dict[str, tuple[int, int]]:
    """Estimate the disk space of each stage in bytes: what stays, and the most while it runs.

    Example:
        >>> costs, space = xt.study.costs, xt.study.space
        >>> about = costs.Shape.of(lm), xt.study.sizes.Sizes(), xt.study.Settings()
        >>> stays, most = space.stage_disk(*about, stages=["tune"], recipe=xt.tuning.MINI)["tune"]
        >>> stays < most
        True
    """

    def texts(n: int, tokens: float) -> int:
        return int(n * (_BYTES_A_TOKEN * (tokens + settings.max_new_tokens)))

    def doses(prompts: Sequence[int], tokens: float, offsets: Sequence[float] | None, n_random: int) -> int:
        n = sum(min(count, settings.dose_prompts) for count in prompts) * (settings.dose_samples or 1)
        n_doses = settings.n_doses - 1 if offsets is None else len(offsets)
        n_texts = n * (1 + n_doses * (1 + n_random))
        return texts(n_texts, tokens) + _BYTES_A_SCORE * n_texts

    def frontier() -> int:
        few = settings.frontier or FrontierSettings()
        n_responses = 1 + N_STRENGTHS * len(few.chosen(tuned="tune" in stages))
        n_prompts = sum(min(count, few.prompts) for count in sizes.prompts.values())
        n_texts = n_responses * n_prompts * few.n_samples
        # The result holds about a dozen numbers for each prompt, and two for each held-out text.
        kept = 8 * n_responses * (12 * n_prompts + 2 * min(sizes.n_held_out, few.texts * len(sizes.prompts)))
        return texts(n_texts, sizes.prompt_tokens) + _BYTES_A_SCORE * n_texts + 2 * kept

    def side_effects() -> int:
        few = settings.side_effects or SideEffectsSettings()
        n_neutral = sum(sizes.neutral.values()) if few.neutral_prompts else 0
        n_texts = 2 * few.n_samples * (n_neutral + sizes.n_requests)
        # The likelihoods of tasks stay only until the stage is done.
        return texts(n_texts, max(sizes.neutral_tokens, sizes.requests / max(1, sizes.n_requests)))

    n_compared = 2 * sizes.n_prompts * settings.n_samples
    base = shape.weight_bytes if recipe.lora is not None else 0
    adapter = 4 * adapter_parameters(shape, recipe) if recipe.lora is not None else 0
    # Two checkpoints are kept while a third is written.
    while_tuning = 3 * checkpoint_bytes(shape, recipe) + base
    stays = {
        "promoted": texts(samples_of_promoted(settings, stages) * sizes.n_prompts, sizes.prompt_tokens),
        "intervene": doses(list(sizes.prompts.values()), sizes.prompt_tokens, settings.offsets, settings.n_random),
        "amplify": doses(
            list(sizes.neutral.values()), sizes.neutral_tokens, settings.amplifications, settings.n_random_amplified
        ),
        "retrieve": 4 * sizes.n_parallel * (shape.n_layers + 1) * 6,
        "tune": shape.weight_bytes + adapter,
        "compare": texts(n_compared, sizes.prompt_tokens) + _BYTES_A_SCORE * n_compared,
        "attribute": 16 * shape.n_layers * shape.d_mlp * (len(sizes.prompts) + 1) + 2**16,
        "frontier": frontier(),
        "side_effects": side_effects(),
    }
    for_a_while = {
        "tune": while_tuning,
        **dict.fromkeys(("intervene", "amplify", "compare", "frontier", "side_effects"), 2**20),
    }
    return {name: (stays.get(name, 2**16), stays.get(name, 2**16) + for_a_while.get(name, 0)) for name in stages}


def device_memory(device: torch.device) -> int:
    """Return the bytes that a device has in all."""
    if device.type == "cuda":
        return sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return int(psutil.virtual_memory().total)


def free_disk(folder: str | Path) -> int:
    """Return the free bytes of the disk that will hold a folder, which need not exist yet."""
    place = Path(folder).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
