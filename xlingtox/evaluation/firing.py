"""Read how active all neurons of some layers are before toxic and before neutral text, prompt by prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from xlingtox import data, languages
from xlingtox.data import Prompt, Prompts
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_together
from xlingtox.neurons.greedy import Written
from xlingtox.neurons.neuron_set import NeuronSet

_AT_ONCE = 2**28
"""The most bytes of activations that are held at once."""

_NEAREST = 5
"""A neuron's match is drawn from so many free neurons, as in `NeuronSet.random_like`."""

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
    listed = lm.as_prompts(prompts)
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
        use: takes the places of some prompts, and their means.
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
        means = activations.values.sum(1).double() / activations.mask.sum(1, keepdim=True)
        use(places, means.numpy())
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

    As in `NeuronSet.random_like`, neurons are taken in random order. Each gets one of the five free neurons whose mean
    activation is nearest to its own, or one that is as near as the fifth.

    Args:
        apart: a set of which no neuron is drawn, as long as a layer has enough others.
        means: the mean activation of every neuron of each layer.
    """
    rng = np.random.default_rng([seed, 5])
    drawn = []
    for layer, (indices, _) in sorted(chosen.by_layer().items()):
        taken = apart.by_layer().get(layer, ([], []))[0]
        pools = (np.setdiff1d(np.arange(d_mlp), out) for out in (taken, indices, []))
        pool = next(pool for pool in pools if len(pool) >= len(indices))
        near = [_nearest(pool, np.abs(means[layer][pool] - means[layer][index]), len(indices)) for index in indices]
        drawn.append(layer * d_mlp + np.stack([_matched(near, rng) for _ in range(n)]))
    return np.concatenate(drawn, axis=1)


def _nearest(
    pool: Int[np.ndarray, "neuron"], distances: Float[np.ndarray, "neuron"], n_drawn: int
) -> tuple[Int[np.ndarray, "near"], Float[np.ndarray, "near"]]:
    """Return the neurons among which the five nearest free ones always are, and how far each is."""
    order = np.argsort(distances, kind="stable")
    # All but one of the drawn neurons may be taken when this neuron's turn comes.
    farthest = distances[order[min(len(order), _NEAREST + n_drawn - 1) - 1]]
    order = order[distances[order] <= farthest]
    return pool[order], distances[order]


def _matched(
    near: Sequence[tuple[Int[np.ndarray, "near"], Float[np.ndarray, "near"]]], rng: np.random.Generator
) -> Int[np.ndarray, "neuron"]:
    """Draw one free neuron for each list of near ones, in random order of the lists."""
    matches = np.full(len(near), -1)
    for place in rng.permutation(len(near)):
        neurons, distances = near[place]
        free = ~np.isin(neurons, matches)
        neurons, distances = neurons[free], distances[free]
        as_near = distances <= distances[min(len(distances), _NEAREST) - 1]
        matches[place] = rng.choice(neurons[as_near])
    return matches
