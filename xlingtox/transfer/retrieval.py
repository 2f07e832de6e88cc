"""Bilingual sentence retrieval by layer, and how well it foretells the transfer of English tuning."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.measures import RETRIEVAL, SHARES
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.states import mean_states
from xlingtox.transfer.nearest import scored
from xlingtox.transfer.parallel import Parallel, n_duplicates, sentence_pairs, translations
from xlingtox.transfer.prediction import (
    Interval,
    Observed,
    Transfer,
    check_enough,
    relate,
    shared,
    tokens_per_character,
)

__all__ = [
    "BestLayer",
    "Parallel",
    "Retrieval",
    "bilingual_retrieval",
    "embed",
    "predict_from_retrieval",
    "predict_transfer",
    "sentence_pairs",
]

_LOG = logging.getLogger(__name__)

_MOST_BYTES = 2**28
"""Of the states that are held of several languages at once; one language may take more."""


@checked
def embed(
    lm: HookedLM, sentences: Sequence[str], *, batch_size: int = 64, progress: bool = True
) -> Float[Tensor, "layer sentence d_model"]:
    """Each sentence's mean over its tokens of the residual stream: `[0]` at the embedding's output, `[n]` at the n-th
    block's, the last before the final norm (paper, section 5). Float32, on the CPU, in one pass.

    Raises:
        ValueError: no sentences, a sentence without tokens, or a state that is not finite.
    """
    states = mean_states(lm, sentences, range(lm.n_layers + 1), batch_size=batch_size, progress=progress)
    _check_finite(states, "these sentences")
    return states


def _check_finite(states: Float[Tensor, "layer sentence d_model"], of: str) -> None:
    """A NaN is nearer to nothing and farther from nothing: compared, it would pass for a perfect score."""
    wrong = (~states.isfinite().all(-1)).nonzero()
    if len(wrong):
        layer, sentence = wrong[0].tolist()
        raise ValueError(
            f"the state of sentence {sentence} of {of} at layer {layer} is NaN or infinite (and {len(wrong) - 1} more "
            "states): load the model in bfloat16 or float32, or look for a broken weight or edit"
        )


@checked
@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well translations are found, sentence by sentence.

    Attributes:
        pivot: the language that the others are compared with.
        scores: language to the value of each of `measures.RETRIEVAL`, layer (0: the embedding's output, n: the n-th
            block's) and
            sentence.
        ties: language to the number, by layer, of the two searches of each sentence in which a wrong one is as near as
            the right one; they count as missed.
        duplicates: language to the number of pairs that have a side in common with another one. To find a sentence
            that some pair has as the translation is no mistake.
        model: which model read them, and under which edit; None where that is not known.
    """

    pivot: str
    scores: Mapping[str, Float[np.ndarray, "measure layer sentence"]]
    ties: Mapping[str, tuple[int, ...]]
    duplicates: Mapping[str, int]
    model: Identity | None = None

    def __eq__(self, other: object) -> bool:
        """Whether all is the same, to the last bit of the scores."""
        if not isinstance(other, Retrieval):
            return NotImplemented
        rest = ("pivot", "ties", "duplicates", "model")
        return (
            all(getattr(self, name) == getattr(other, name) for name in rest)
            and self.scores.keys() == other.scores.keys()
            and all(np.array_equal(own, other.scores[code], equal_nan=True) for code, own in self.scores.items())
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def n_sentences(self) -> dict[str, int]:
        """Language to pairs that were compared; chance is one over this."""
        return {code: own.shape[-1] for code, own in self.scores.items()}

    @checked
    def by_layer(self, measure: str = "top1") -> dict[str, tuple[float, ...]]:
        """Language to the mean over sentences, by layer."""
        place = _place(measure)
        return {code: tuple(own[place].mean(-1).tolist()) for code, own in self.scores.items()}

    @checked
    def mean(self, measure: str = "top1") -> dict[str, float]:
        """Language to the mean over the blocks, the embedding's output left out (paper, section 5)."""
        place = _place(measure)
        return {code: float(own[place, 1:].mean()) for code, own in self.scores.items()}

    @checked
    def intervals(self, measure: str = "top1", *, level: float = 0.95) -> dict[str, Interval]:
        """Bootstrap intervals of `mean`, over sentences.

        Of a share, no end is nearer to 0 or 1 than that of no hit, or of nothing but hits. With a handful of either a
        bootstrap still covers less than it says: 95 % intervals of one layer and one way hold a true share of 2 % of
        200 sentences 91 times of 100, one of 3 % 93 times, and others of up to a half 95 times or more.
        """
        place = _place(measure)
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: expected a share between 0 and 1")
        found = {code: _interval(own[place, 1:].mean(0), measure in SHARES, level) for code, own in self.scores.items()}
        return {code: (float(low), float(high)) for code, (low, high) in found.items()}

    @checked
    def best_layer(self, measure: str = "top1", *, seed: int = 0) -> BestLayer:
        """The block that does best, on average over languages, on half of the sentences, and how it does on the other
        half: a maximum over layers, taken and told on the same sentences, would flatter.

        Languages with equally many sentences are split alike. In multi-parallel data the i-th sentences of all of them
        are translations of each other, and what one has chosen must not be told of another.
        """
        place = _place(measure)
        orders = {n: np.random.default_rng(seed).permutation(n) for n in set(self.n_sentences.values())}
        halves = {code: np.split(orders[n], [n // 2]) for code, n in self.n_sentences.items()}
        chosen_on = [own[place, 1:, halves[code][0]].mean(0) for code, own in self.scores.items()]
        layer = int(np.mean(chosen_on, axis=0).argmax()) + 1
        rest = {code: own[place, layer, halves[code][1]] for code, own in self.scores.items()}
        spans = {code: _interval(own, measure in SHARES) for code, own in rest.items()}
        return BestLayer(
            layer,
            {code: float(own.mean()) for code, own in rest.items()},
            {code: (float(low), float(high)) for code, (low, high) in spans.items()},
        )

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, layer`, every measure with `_low` and `_high` (95 %, bootstrap over sentences), `ties,
        duplicates, sentences`.
        """
        shares = np.isin(list(RETRIEVAL), SHARES)[:, None]
        frames = []
        for code, own in self.scores.items():
            low, high = _interval(own, shares)
            columns: dict[str, Any] = {}
            for place, measure in enumerate(RETRIEVAL):
                columns |= {measure: own[place].mean(-1), f"{measure}_low": low[place], f"{measure}_high": high[place]}
            columns |= {"ties": self.ties[code], "duplicates": self.duplicates[code], "sentences": own.shape[-1]}
            frames.append(pd.DataFrame({"language": code, "layer": range(own.shape[1])} | columns))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["language", "layer"])

    def __repr__(self) -> str:
        if not self.scores:
            return f"Retrieval({self.pivot} and no other language)"
        means = sorted(self.mean().items(), key=lambda each: -each[1])
        ends = ", ".join(f"{code} {value:.3f}" for code, value in dict([means[0], means[-1]]).items())
        layers = next(iter(self.scores.values())).shape[1]
        return f"Retrieval({self.pivot} and {len(means)} languages, {layers} layers; top-1 over blocks: {ends})"

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with what is no tensor in its metadata."""
        about = {name: value for name, value in vars(self).items() if name != "scores"}
        about |= {"measures": list(RETRIEVAL), "model": self.model and dataclasses.asdict(self.model)}
        files.write_tensors(path, {code: torch.tensor(scores) for code, scores in self.scores.items()}, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Retrieval:
        """Raises ValueError: the file holds no retrieval, or one by a version with other measures."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "retrieval"):
            if tuple(about["measures"]) != tuple(RETRIEVAL):
                raise ValueError(f"it has the measures {', '.join(about['measures'])}, not {', '.join(RETRIEVAL)}")
            return cls(
                about["pivot"],
                {code: tensors[code].numpy() for code in about["duplicates"]},
                {code: tuple(own) for code, own in about["ties"].items()},
                about["duplicates"],
                about["model"] and Identity(**about["model"]),
            )


@checked
@dataclass(frozen=True)
class BestLayer:
    """A block chosen on one half of the sentences, with its means and 95 % intervals by language on the other."""

    layer: int
    means: Mapping[str, float]
    intervals: Mapping[str, Interval]


def _place(measure: str) -> int:
    if measure not in RETRIEVAL:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(RETRIEVAL)}")
    return list(RETRIEVAL).index(measure)


def _interval(
    values: Float[np.ndarray, "*rows sentence"],
    share: bool | Bool[np.ndarray, "*rows"],
    level: float = 0.95,
    n_resamples: int = 1000,
) -> tuple[Float[np.ndarray, "*rows"], Float[np.ndarray, "*rows"]]:
    """Percentile bootstrap of the mean over sentences, the same resamples for every row.

    Where no sentence differs from another a bootstrap has no width: a `share` of 0 or 1 gets the exact binomial bounds
    (Clopper and Pearson 1934), and no other share is bounded more closely than these, so that a hit more never lowers
    an end.
    """
    n, tail = values.shape[-1], (1 - level) / 2
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    low, high = np.quantile(values @ (counts.T / n), [tail, 1 - tail], axis=-1)
    bound = tail ** (1 / n)
    return np.where(share, np.minimum(low, bound), low), np.where(share, np.maximum(high, 1 - bound), high)


@checked
def bilingual_retrieval(
    lm: HookedLM,
    parallel: Parallel,
    *,
    pivot: str = "en",
    n_neighbours: int = 10,
    batch_size: int = 64,
    progress: bool = True,
) -> Retrieval:
    """Look for each sentence's translation among all of its language, by cosine of mean-pooled states, in every layer.

    - `top1_from_pivot`, `top1_to_pivot`, and `top1`, their mean: whether the nearest sentence is the translation
      (paper, section 5).
    - `mean_reciprocal_rank`: one over the rank of the translation, mean of both ways.
    - `csls_top1`: as `top1`, by 2 cos(x, y) less the mean cosine of x, and that of y, to its `n_neighbours` nearest on
      the other side: sentences that are near to all are pushed back (Conneau et al. 2018, section 2.3).
    - `margin`: cosine of the translation less that of its nearest rival, mean of both ways.
    - `aligned_cosine`: cosine of sentence and translation, which the paper's code prints in place of an accuracy.

    Cosines are in float64. Of large models one language's states are held at a time, beside the pivot's.

    Args:
        parallel: in either form of `sentence_pairs`.
        n_neighbours: 10 as published, or all sentences if there are fewer.

    Raises:
        ValueError: what `sentence_pairs` refuses, a state that is not finite, or `n_neighbours` or `batch_size`
            below 1.
    """
    for name, value in (("n_neighbours", n_neighbours), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}: expected at least 1")
    pairs = sentence_pairs(parallel, pivot=pivot)
    sides: list[list[str]] = []
    new, last = {}, None
    for code, (own, other) in pairs.items():
        new[code], last = own != last, own  # one column may be the pivot of every language
        sides += [own, other] if new[code] else [other]
    states = _embedded(lm, sides, batch_size, progress)
    scores, ties, duplicates = {}, {}, {}
    for code, (own, other) in pairs.items():
        if new[code]:
            first = next(states).clone()
            _check_finite(first, pivot)
        second = next(states)
        _check_finite(second, code)
        right = translations(own, other)
        layers = [scored(a, b, right, n_neighbours) for a, b in zip(first, second, strict=True)]
        scores[code] = np.stack([each for each, _ in layers], 1)
        ties[code] = tuple(tied for _, tied in layers)
        duplicates[code] = n_duplicates(own, other)
    return Retrieval(pivot, scores, ties, duplicates, lm.identity())


def _embedded(
    lm: HookedLM, sides: Sequence[list[str]], batch_size: int, progress: bool
) -> Iterator[Float[Tensor, "layer sentence d_model"]]:
    """The states of each side in turn; small ones are read together, as there are more of like length among them."""
    waiting = list(sides)
    while waiting:
        group = [waiting.pop(0)]
        room = _MOST_BYTES // (4 * (lm.n_layers + 1) * lm.d_model)
        while waiting and sum(map(len, group)) + len(waiting[0]) <= room:
            group.append(waiting.pop(0))
        every = [text for side in group for text in side]
        read = mean_states(lm, every, range(lm.n_layers + 1), batch_size=batch_size, progress=progress)
        yield from torch.split(read, [len(side) for side in group], dim=1)
        del read


@checked
def predict_transfer(
    lm: HookedLM,
    parallel: Parallel,
    observed: Observed,
    *,
    measure: str = "emt",
    pivot: str = "en",
    predictors: Mapping[str, Mapping[str, float]] | None = None,
    progress: bool = True,
    source_language: str = "en",
) -> Transfer:
    """Retrieval of the model before tuning, against the observed drops (paper, Figure 4).

    The authors' mean cosine and `tokens_per_character` are set against the drops beside it.

    Args:
        lm: the model before tuning.
        parallel: in either form of `sentence_pairs`; languages that were not compared are foretold. Give equally many
            sentences of each language: among more of them a translation is harder to find.
        observed: a comparison, or language to the relative drop in `measure`, such as those of a paper.
        predictors: name to values by language, of anything else that is known before tuning, such as
            `transfer.active_share` and `transfer.promoted_share`.
        source_language: the language that was tuned on. It is no point, whatever the pivot is: nothing had to be
            transferred.

    Raises:
        ValueError: what `bilingual_retrieval` refuses, a comparison of another model than `lm`, or fewer than three
            languages with a drop and a predictor.
    """
    pairs = sentence_pairs(parallel, pivot=pivot)
    texts = {code: other for code, (_, other) in pairs.items() if code != source_language}
    _check_same(lm.identity(), observed)
    drops = shared(dict.fromkeys(texts, 0.0), observed, measure)
    for name, values in {"retrieval": dict.fromkeys(texts, 0.0), **(predictors or {})}.items():
        check_enough(name, values, drops)
    cut = tokens_per_character(lm, texts)
    return predict_from_retrieval(
        bilingual_retrieval(lm, parallel, pivot=pivot, progress=progress),
        observed,
        measure=measure,
        predictors={"tokens_per_character": cut, **(predictors or {})},
        tuned=source_language,
    )


@checked
def predict_from_retrieval(
    found: Retrieval,
    observed: Observed,
    *,
    measure: str = "emt",
    predictors: Mapping[str, Mapping[str, float]] | None = None,
    tuned: str = "en",
) -> Transfer:
    """Retrieval that was measured before, its mean cosine and other predictors against the drops; see `relate`.

    Languages of which unequally many sentences were compared are told in a warning: chance, and accuracy with it, falls
    with their number.

    Raises:
        ValueError: what `relate` refuses, or a comparison of another model than the one that was measured.
    """
    _check_same(found.model, observed)
    means, cosines = (
        {code: value for code, value in found.mean(name).items() if code != tuned}
        for name in ("top1", "aligned_cosine")
    )
    counts = {code: n for code, n in found.n_sentences.items() if code in means}
    if len(set(counts.values())) > 1:
        _LOG.warning(
            "accuracies among unequally many sentences are not comparable (%s): give equally many of each language",
            ", ".join(f"{n} in {code}" for code, n in counts.items()),
        )
    return relate(
        means,
        observed,
        measure=measure,
        intervals=found.intervals(),
        others={"aligned_cosine": cosines, **(predictors or {})},
    )


def _check_same(model: Identity | None, observed: Observed) -> None:
    """Retrieval after tuning is no prediction; weights in another precision are another model too."""
    before = observed.models[0] if isinstance(observed, Comparison) and observed.models else None
    if model is not None and before is not None and not model.is_same(before):
        raise ValueError(
            f"the comparison's model before tuning is {before} ({before.dtype}, fingerprint {before.fingerprint}) "
            f"and retrieval is of {model} ({model.dtype}, {model.fingerprint}): give the model before tuning"
        )
