"""Read how active all neurons of some layers are before toxic and before neutral text, prompt by prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from xlingtox import data, languages
from xlingtox.data import Prompt, Prompts, as_prompts
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_together
from xlingtox.neurons.drawing import draw
from xlingtox.neurons.greedy import Written
from xlingtox.neurons.neuron_set import NeuronSet

_AT_ONCE = 2**28
"""The most bytes of activations that are held at once."""

_FEWEST = 4
"""The fewest prompts of each kind in the source language: two that choose, and two that test."""


@dataclass(frozen=True)
class Half:
    """Prompts of one kind that choose neurons or test them.

    Attributes:
        meanings: which prompts are translations of each other; None where no table says so.
    """

    prompts: list[Prompt]
    meanings: list[Hashable] | None

    def rows(self) -> dict[str, Int[np.ndarray, "prompt"]]:
        """Return the places of the prompts of each language."""
        codes = np.array([prompt.language for prompt in self.prompts])
        return {str(code): np.flatnonzero(codes == code) for code in languages.in_order(codes.tolist())}


def halves(prompts: Prompts, lm: HookedLM, *, source_language: str, kind: str, seed: int) -> tuple[Half, Half]:
    """Split prompts into those that choose neurons and those that test them.

    Half of the prompts in the source language choose, drawn at random. All others test, in every language, but no
    translation of a prompt that chose.

    Raises:
        ValueError: fewer than four prompts in the source language, or a language is left with fewer than two.
    """
    listed = as_prompts(prompts, tokenizer=lm.tokenizer)
    by_code = data.meanings(prompts)
    ids: list[Hashable] | None = None
    if by_code is not None:
        iterators = {code: iter(codes) for code, codes in by_code.items()}
        ids = [next(iterators[prompt.language]) for prompt in listed]
    places = [i for i, prompt in enumerate(listed) if prompt.language == source_language]
    if len(places) < _FEWEST:
        raise ValueError(
            f"{len(places)} {kind} prompts in {source_language!r}: expected at least {_FEWEST}, because half of them "
            "choose neurons and the others test them"
        )
    choosing = set(random.Random(f"halves {seed}").sample(places, len(places) // 2))
    met = set() if ids is None else {ids[i] for i in choosing}
    testing = [i for i in range(len(listed)) if i not in choosing and (ids is None or ids[i] not in met)]
    first, second = (
        Half([listed[i] for i in chosen], None if ids is None else [ids[i] for i in chosen])
        for chosen in (sorted(choosing), testing)
    )
    for code in dict.fromkeys(prompt.language for prompt in listed):
        if (n := sum(prompt.language == code for prompt in second.prompts)) < 2:
            raise ValueError(
                f"{n} {kind} prompts in {code!r} are left to test neurons, besides translations of those that choose "
                "them: expected at least 2"
            )
    return first, second


@dataclass
class Sums:
    """Sums of the mean activations of prompts: of each neuron, and of its squares."""

    n: int = 0
    sums: Float[np.ndarray, "neuron"] = field(default_factory=lambda: np.zeros(0))
    squares: Float[np.ndarray, "neuron"] = field(default_factory=lambda: np.zeros(0))

    def add(self, _places: list[int], means: Float[np.ndarray, "prompt neuron"]) -> None:
        """Add the means of some prompts, as `prompt_means` hands them on."""
        if not self.n:
            self.sums = self.squares = np.zeros(means.shape[1])
        self.n += len(means)
        self.sums, self.squares = self.sums + means.sum(0), self.squares + (means**2).sum(0)

    @property
    def mean(self) -> Float[np.ndarray, "neuron"]:
        """The mean over prompts."""
        return self.sums / max(1, self.n)

    @property
    def error(self) -> Float[np.ndarray, "neuron"]:
        """The variance of the mean over prompts."""
        variance = (self.squares - self.n * self.mean**2).clip(min=0) / max(1, self.n - 1)
        return variance / max(1, self.n)


def prompt_means(
    lm: HookedLM,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    *,
    max_new_tokens: int,
    progress: bool,
    use: Callable[[list[int], Float[np.ndarray, "prompt neuron"]], None],
    written: list[Written] | None = None,
) -> list[Written]:
    """Hand on the mean activation of each neuron over the steps of each prompt, a few prompts at a time.

    Args:
        use: takes the places of some prompts, and their means. Prompts of which no step counts are left out.
        written: the continuations of another model that are read, as this function returned them.

    Returns:
        the continuations, part by part.
    """
    size = max(1, _AT_ONCE // (4 * max_new_tokens * len(neurons)))
    parts = []
    for i, start in enumerate(range(0, len(prompts), size)):
        places = list(range(start, min(len(prompts), start + size)))
        [activations], wrote = collect_together(
            lm,
            [prompts[place] for place in places],
            [neurons],
            max_new_tokens=max_new_tokens,
            progress=progress,
            writer=None if written is None else written[i],
        )
        steps = activations.mask.sum(1)
        counted = steps > 0
        means = (activations.values.sum(1)[counted].double() / steps[counted, None]).numpy()
        use([place for place, keep in zip(places, counted.tolist(), strict=True) if keep], means)
        parts.append(wrote)
    return parts


def equally_active(
    chosen: NeuronSet,
    apart: NeuronSet,
    means: Mapping[int, Float[np.ndarray, "d_mlp"]],
    *,
    d_mlp: int,
    n: int,
    seed: int,
) -> Int[np.ndarray, "draw neuron"]:
    """Draw n sets of neurons that are as active as `chosen`, in the same layers, as places (`layer * d_mlp + index`).

    Args:
        apart: a set of which no neuron is drawn, as long as a layer has enough others.
        means: the mean activation of every neuron of each layer.
    """
    drawn = []
    for layer, (indices, _) in sorted(chosen.by_layer().items()):
        taken = set(apart.by_layer().get(layer, ([], []))[0])
        pools = (sorted(set(range(d_mlp)) - set(out)) for out in (taken, indices, ()))
        pool = next(pool for pool in pools if len(pool) >= len(indices))
        rng = random.Random(f"equally active {seed}, layer {layer}")
        drawn.append([[layer * d_mlp + i for i in draw(indices, pool, rng, means=means[layer])] for _ in range(n)])
    return np.concatenate([np.array(layer_draws, dtype=np.int64) for layer_draws in drawn], axis=1)
