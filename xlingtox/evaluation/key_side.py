"""The key side of dual multilinguality: neurons that fire before toxic text in one language, do they in others?"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from xlingtox.evaluation.beside_chance import Measured, at_least, at_once, draw_places, in_languages, places_of
from xlingtox.evaluation.dual_result import AtOnce, Firing, InLanguage, no_at_once, no_row
from xlingtox.evaluation.firing import Half, Sums, equally_active, prompt_means
from xlingtox.evaluation.intervals import unpaired_changes
from xlingtox.evaluation.named_sets import ALL
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.greedy import Written
from xlingtox.neurons.neuron_set import NeuronSet

_UNBOUNDED = (-math.inf, math.inf)

_STANDARD_ERRORS = 2.0
"""A neuron is chosen where its mean before toxic text is so many standard errors above that before neutral text."""

Texts = tuple[list[Written], list[Written]]
"""What a model wrote after toxic and after neutral prompts."""


@dataclass(frozen=True)
class Chosen:
    """The neurons of a set that fire before toxic text, and their random sets.

    Attributes:
        columns: the columns of the neurons among all that are read.
        random: those of each random set of neurons that are as active.
        firing: those of each random set of neurons that fire before toxic text too.
    """

    columns: Int[np.ndarray, "neuron"]
    random: Int[np.ndarray, "draw neuron"]
    firing: Int[np.ndarray, "draw neuron"]

    def beside_chance(self, n_neurons: int) -> Float[np.ndarray, "neuron"]:
        """Return the weight of each neuron that is read in the set's mean less the mean of its random sets."""
        weights = -np.bincount(self.random.ravel(), minlength=n_neurons) / self.random.size
        weights[self.columns] += 1 / len(self.columns)
        return weights


@dataclass(frozen=True)
class KeySide:
    """The activations that the key side reads.

    Attributes:
        neurons: all neurons of the layers in which some set has one, layer by layer.
    """

    neurons: NeuronSet
    max_new_tokens: int
    progress: bool

    def choose(
        self,
        lm: HookedLM,
        sets: Mapping[str, NeuronSet],
        draws: Mapping[str, Int[np.ndarray, "draw neuron"]],
        toxic: Half,
        neutral: Half,
        *,
        seed: int,
    ) -> tuple[dict[str, Firing], dict[str, Chosen]]:
        """Choose the neurons of each set that fire before toxic text, and draw random neurons that are as active.

        Args:
            draws: the places of random neurons, of which the same is asked.
        """
        sums = (Sums(), Sums())
        for half, of_kind in zip((toxic, neutral), sums, strict=True):
            self._read(lm, half, of_kind.add)
        fires = _fires(*sums)
        places, means = places_of(self.neurons, lm), (sums[0].mean + sums[1].mean) / 2
        read_layers = self.neurons.by_layer()
        by_layer = {layer: means[rows] for layer, (_, rows) in read_layers.items()}
        firing, chosen = {}, {}
        for name, neurons in sets.items():
            firing_here = neurons.where(fires[np.searchsorted(places, places_of(neurons, lm))])
            random = fires[np.searchsorted(places, draws[name])].sum(1).astype(np.float64)
            low, high = np.quantile(random, [0.025, 0.975])
            firing[name] = Firing(
                NeuronSet.of(firing_here.neurons, scores=firing_here.scores),
                of=len(neurons),
                chance=float(random.mean()),
                chance_low=float(low),
                chance_high=float(high),
                p=float(at_least(random[:, None], np.array([float(len(firing_here))]))[0]),
            )
            if len(firing_here):
                drawn = equally_active(firing_here, neurons, by_layer, d_mlp=lm.d_mlp, n=len(draws[name]), seed=seed)
                pools = {layer: np.flatnonzero(fires[rows]) for layer, (_, rows) in read_layers.items()}
                also = draw_places(firing_here, lm, n=len(draws[name]), seed=seed, pools=pools)
                columns = (np.searchsorted(places, of) for of in (places_of(firing_here, lm), drawn, also))
                chosen[name] = Chosen(*columns)
        return firing, chosen

    def test(
        self,
        model: str,
        lm: HookedLM,
        chosen: Mapping[str, Chosen],
        names: list[str],
        toxic: Half,
        neutral: Half,
        *,
        texts: Texts | None,
        seed: int,
    ) -> tuple[list[InLanguage], list[AtOnce], Texts]:
        """Compare how active the chosen neurons are before toxic and before neutral text, in each language.

        Args:
            model: the name of the model in the tables.
            names: the names of all sets. Some may have no neuron that was chosen.
            texts: what another model wrote; None where this model writes.
        """
        weights = np.stack(
            [
                chosen[name].beside_chance(len(self.neurons)) if name in chosen else np.zeros(len(self.neurons))
                for name in names
            ],
            axis=1,
        )
        kinds = [
            self._read_tests(lm, half, weights, None if texts is None else texts[i])
            for i, half in enumerate((toxic, neutral))
        ]
        codes = list(toxic.rows())
        gaps = np.stack([kinds[0].sums[code].mean - kinds[1].sums[code].mean for code in codes])
        rows, once = [], []
        for i, name in enumerate(names):
            if name not in chosen:
                rows += [no_row(name, model, "key", code) for code in (*codes, ALL)]
                once += [no_at_once(name, model, "key", len(codes), control=kind) for kind in ("random", "firing")]
                continue
            ids = tuple(kind.meanings for kind in (kinds[1], kinds[0]))
            by_language, overall = unpaired_changes(
                kinds[1].values(i),
                kinds[0].values(i),
                bounds=_UNBOUNDED,
                meanings=None if ids[0] is None or ids[1] is None else (ids[0], ids[1]),
                seed=seed,
            )
            changes = [*(by_language[code] for code in codes), overall]
            measured = _measured(gaps, chosen[name].columns, chosen[name].random)
            rows += in_languages(
                measured,
                codes,
                intervals=[(change.low, change.high) for change in changes],
                p_of_prompts=[change.p_value for change in changes],
                neurons=name,
                model=model,
                side="key",
            )
            once.append(at_once(measured, neurons=name, model=model, side="key"))
            beside_firing = _measured(gaps, chosen[name].columns, chosen[name].firing)
            once.append(at_once(beside_firing, neurons=name, model=model, side="key", control="firing"))
        return rows, once, (kinds[0].written, kinds[1].written)

    def _read(
        self,
        lm: HookedLM,
        half: Half,
        use: Callable[[list[int], Float[np.ndarray, "prompt neuron"]], None],
        written: list[Written] | None = None,
    ) -> list[Written]:
        return prompt_means(
            lm,
            half.prompts,
            self.neurons,
            max_new_tokens=self.max_new_tokens,
            progress=self.progress,
            use=use,
            written=written,
        )

    def _read_tests(
        self,
        lm: HookedLM,
        half: Half,
        weights: Float[np.ndarray, "neuron set"],
        written: list[Written] | None,
    ) -> _Tested:
        """Read the prompts of one kind, and keep what is needed of them."""
        sums = {code: Sums() for code in half.rows()}
        values = np.zeros((len(half.prompts), weights.shape[1]))
        codes = np.array([prompt.language for prompt in half.prompts])

        def use(places: list[int], means: Float[np.ndarray, "prompt neuron"]) -> None:
            values[places] = means @ weights
            for code in dict.fromkeys(codes[places].tolist()):
                sums[code].add(places, means[codes[places] == code])

        return _Tested(half, sums, values, self._read(lm, half, use, written))


@dataclass(frozen=True)
class _Tested:
    """Prompts of one kind as a model read them.

    Attributes:
        sums: by language, the sums of each neuron's mean activations.
        by_set: for each prompt and set, its mean less that of its random sets.
        written: the continuations that were read.
    """

    half: Half
    sums: Mapping[str, Sums]
    by_set: Float[np.ndarray, "prompt set"]
    written: list[Written]

    def values(self, i: int) -> dict[str, Float[np.ndarray, "prompt"]]:
        """Return the numbers of one set by language."""
        return {code: self.by_set[rows, i] for code, rows in self.half.rows().items()}

    @property
    def meanings(self) -> dict[str, list[Hashable]] | None:
        """Return the meanings of the prompts by language."""
        ids = self.half.meanings
        return None if ids is None else {code: [ids[row] for row in rows] for code, rows in self.half.rows().items()}


def _fires(toxic: Sums, neutral: Sums) -> Bool[np.ndarray, "neuron"]:
    """Return which neurons are more active before toxic text, by at least two standard errors."""
    gap = toxic.mean - neutral.mean
    return (gap > 0) & (gap >= _STANDARD_ERRORS * np.sqrt(toxic.error + neutral.error))


def _measured(
    gaps: Float[np.ndarray, "language neuron"],
    columns: Int[np.ndarray, "neuron"],
    random: Int[np.ndarray, "draw neuron"],
) -> Measured:
    """Return how much more active the neurons are before toxic text, and in how many languages one of them is."""
    more = (gaps > 0).sum(0).astype(np.float64)
    return Measured(
        gaps[:, columns].mean(1),
        np.stack([of_language[random].mean(1) for of_language in gaps], axis=1),
        float(more[columns].mean()),
        more[random].mean(1),
    )
