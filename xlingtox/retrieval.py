"""Bilingual sentence retrieval by layer, and how well it foretells the transfer of English tuning."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Bool, Float
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from xlingtox import languages, strictjson
from xlingtox.comparison import Comparison
from xlingtox.data import parallel_columns, require_columns
from xlingtox.lm import HookedLM, Identity
from xlingtox.probe import mean_states
from xlingtox.transfer import Interval, Transfer, relate, require_enough, shared, tokens_per_character

MEASURES: tuple[str, ...] = (
    "top1",
    "top1_from_pivot",
    "top1_to_pivot",
    "mean_reciprocal_rank",
    "csls_top1",
    "margin",
    "aligned_cosine",
)
"""What is measured of each sentence and its translation; see `accuracy`."""

_SHARES = (*MEASURES[:3], "csls_top1")

_TIE = 1e-7
"""Cosines nearer than this are the same: float32 states tell no more."""

_MOST_BYTES = 2**28
"""Of the states that are held of several languages at once; one language may take more."""

Parallel: TypeAlias = Dataset | Mapping[str, Sequence[str]]


def embed(
    lm: HookedLM, sentences: Sequence[str], batch_size: int = 64, progress: bool = True
) -> Float[Tensor, "layer sentence d_model"]:
    """Each sentence's mean over its tokens of the residual stream: `[0]` at the embedding's output, `[n]` at the n-th
    block's, the last before the final norm (paper, section 5). Float32, on the CPU, in one pass.

    Raises:
        ValueError: no sentences, or one without tokens.
    """
    return mean_states(lm, sentences, range(lm.n_layers + 1), batch_size, progress)


def sentence_pairs(parallel: Parallel, pivot: str = "en") -> dict[str, tuple[list[str], list[str]]]:
    """Language to sentences of the pivot and their translations, in the house's order of languages.

    Args:
        parallel: one column a language, aligned by row; or rows `language, sentence, translation`, where `translation`
            is in the pivot and may differ from language to language (as in Tatoeba).

    Raises:
        ValueError: columns of unequal length, no pivot, no second language, fewer than two pairs of a language, a blank
            sentence, an unknown language, or sentences that nothing tells apart.
    """
    if isinstance(parallel, Mapping):
        lengths = {name: len(column) for name, column in parallel.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"misaligned parallel sentences: {', '.join(f'{n} in {c}' for c, n in lengths.items())}")
        parallel = Dataset.from_dict({name: list(column) for name, column in parallel.items()})
    require_columns(parallel, (), "parallel sentences")
    if "sentence" in parallel.column_names:
        found = _by_rows(parallel, pivot)
    else:
        columns = parallel_columns(parallel, pivot)
        found = {code: (columns[pivot], own) for code, own in columns.items() if code != pivot}
    for code, sides in found.items():
        for name, side in zip((pivot, code), sides, strict=True):
            if len(set(side)) == 1:
                raise ValueError(f"all {len(side)} sentences of {name} are the same: nothing tells them apart")
        alone = _same(*sides).all(1).nonzero()
        if len(alone):
            text = sides[1][int(alone[0])]
            raise ValueError(f"every pair of {pivot} and {code} repeats a side of {text!r}: it has no rival")
    return found


def _by_rows(parallel: Dataset, pivot: str) -> dict[str, tuple[list[str], list[str]]]:
    require_columns(parallel, ("language", "sentence", "translation"), "parallel sentences")
    found: dict[str, tuple[list[str], list[str]]] = {
        code: ([], []) for code in languages.in_order(parallel["language"])
    }
    languages.check([pivot, *found])
    if pivot in found:
        raise ValueError(f"rows of the pivot {pivot!r} among the sentences: give it as their translation")
    for i, row in enumerate(parallel):
        for column in ("sentence", "translation"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"row {i} of the parallel sentences ({row['language']}) has no {column}")
        own, other = found[row["language"]]
        own.append(row["translation"])
        other.append(row["sentence"])
    few = [code for code, (own, _) in found.items() if len(own) < 2]
    if few or not found:
        raise ValueError(f"two pairs of a language are needed at least: {few[0] if few else 'there'} has no second one")
    return found


def _same(own: Sequence[str], other: Sequence[str]) -> Bool[Tensor, "sentence sentence"]:
    """Which pairs have a side in common: neither can be called a wrong translation of the other."""
    sides = [torch.from_numpy(np.unique(list(side), return_inverse=True)[1]) for side in (own, other)]
    one, two = (side[:, None] == side for side in sides)
    return one | two


@dataclass(frozen=True)
class Retrieval:
    """How well translations are found, sentence by sentence.

    Attributes:
        pivot: the language that the others are compared with.
        scores: language to the value of each of `MEASURES`, layer (0: the embedding's output, n: the n-th block's) and
            sentence.
        ties: language to the number, by layer, of the two searches of each sentence in which a wrong one is as near as
            the right one; they count as missed.
        duplicates: language to the number of pairs that have a side in common with another one. To find such a twin is
            no mistake.
        model: which model read them; None where that is not known.
    """

    pivot: str
    scores: Mapping[str, Float[np.ndarray, "measure layer sentence"]]
    ties: Mapping[str, tuple[int, ...]]
    duplicates: Mapping[str, int]
    model: Identity | None = None

    @property
    def n_sentences(self) -> dict[str, int]:
        """Language to pairs that were compared; chance is one over this."""
        return {code: own.shape[-1] for code, own in self.scores.items()}

    def by_layer(self, measure: str = "top1") -> dict[str, tuple[float, ...]]:
        """Language to the mean over sentences, by layer."""
        place = _place(measure)
        return {code: tuple(own[place].mean(-1).tolist()) for code, own in self.scores.items()}

    def mean(self, measure: str = "top1") -> dict[str, float]:
        """Language to the mean over the blocks, the embedding's output left out (paper, section 5)."""
        place = _place(measure)
        return {code: float(own[place, 1:].mean()) for code, own in self.scores.items()}

    def intervals(self, measure: str = "top1", level: float = 0.95) -> dict[str, Interval]:
        """Bootstrap intervals of `mean`, over sentences."""
        place = _place(measure)
        found = {
            code: _interval(own[place, 1:].mean(0), measure in _SHARES, level) for code, own in self.scores.items()
        }
        return {code: (float(low), float(high)) for code, (low, high) in found.items()}

    def best_layer(self, measure: str = "top1", seed: int = 0) -> BestLayer:
        """The block that does best, on average over languages, on half of each language's sentences, and how it does on
        the other half: a maximum over layers, taken and told on the same sentences, would flatter.
        """
        place, rng = _place(measure), np.random.default_rng(seed)
        orders = {code: rng.permutation(n) for code, n in self.n_sentences.items()}
        chosen_on = [
            own[place, 1:, orders[code][: len(orders[code]) // 2]].mean(0) for code, own in self.scores.items()
        ]
        layer = int(np.mean(chosen_on, axis=0).argmax()) + 1
        rest = {code: own[place, layer, orders[code][len(orders[code]) // 2 :]] for code, own in self.scores.items()}
        spans = {code: _interval(own, measure in _SHARES) for code, own in rest.items()}
        return BestLayer(
            layer,
            {code: float(own.mean()) for code, own in rest.items()},
            {code: (float(low), float(high)) for code, (low, high) in spans.items()},
        )

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, layer`, every measure with `_low` and `_high` (95 %, bootstrap over sentences), `ties,
        duplicates, sentences`.
        """
        shares = np.isin(MEASURES, _SHARES)[:, None]
        frames = []
        for code, own in self.scores.items():
            low, high = _interval(own, shares)
            columns: dict[str, Any] = {}
            for place, measure in enumerate(MEASURES):
                columns |= {measure: own[place].mean(-1), f"{measure}_low": low[place], f"{measure}_high": high[place]}
            columns |= {"ties": self.ties[code], "duplicates": self.duplicates[code], "sentences": own.shape[-1]}
            frames.append(pd.DataFrame({"language": code, "layer": range(own.shape[1])} | columns))
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        means = sorted(self.mean().items(), key=lambda each: -each[1])
        ends = ", ".join(f"{code} {value:.3f}" for code, value in dict([means[0], means[-1]]).items())
        layers = next(iter(self.scores.values())).shape[1]
        return f"Retrieval({self.pivot} and {len(means)} languages, {layers} layers; top-1 over blocks: {ends})"

    def save(self, path: str | Path) -> None:
        """Write `path` (safetensors) and what it means beside it (JSON)."""
        file = Path(path)
        save_file({code: np.ascontiguousarray(own) for code, own in self.scores.items()}, file)
        about = {name: value for name, value in vars(self).items() if name != "scores"}
        about |= {"measures": MEASURES, "model": self.model and dataclasses.asdict(self.model)}
        strictjson.beside(file).write_text(json.dumps(about), "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Retrieval:
        """Raises ValueError: written by a version with other measures."""
        file = Path(path)
        about, scores = json.loads(strictjson.beside(file).read_text("utf-8")), load_file(file)
        if tuple(about["measures"]) != MEASURES:
            raise ValueError(f"{file} has the measures {', '.join(about['measures'])}, not {', '.join(MEASURES)}")
        return cls(
            about["pivot"],
            {code: scores[code] for code in about["duplicates"]},
            {code: tuple(own) for code, own in about["ties"].items()},
            about["duplicates"],
            about["model"] and Identity(**about["model"]),
        )


@dataclass(frozen=True)
class BestLayer:
    """A block chosen on one half of the sentences, with its means and 95 % intervals by language on the other."""

    layer: int
    means: Mapping[str, float]
    intervals: Mapping[str, Interval]


def _place(measure: str) -> int:
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(MEASURES)}")
    return MEASURES.index(measure)


def _interval(
    values: Float[np.ndarray, "*rows sentence"],
    share: bool | Bool[np.ndarray, "*rows"],
    level: float = 0.95,
    n_resamples: int = 1000,
) -> tuple[Float[np.ndarray, "*rows"], Float[np.ndarray, "*rows"]]:
    """Percentile bootstrap of the mean over sentences, the same resamples for every row.

    Where no sentence differs from another a bootstrap has no width: a `share` of 0 or 1 gets the exact binomial bounds
    (Clopper and Pearson 1934).
    """
    n, tail = values.shape[-1], (1 - level) / 2
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    low, high = np.quantile(values @ (counts.T / n), [tail, 1 - tail], axis=-1)
    bound = tail ** (1 / n)
    low = np.where(share & (values == 1).all(-1), bound, low)
    return low, np.where(share & (values == 0).all(-1), 1 - bound, high)


def accuracy(
    lm: HookedLM,
    parallel: Parallel,
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
        ValueError: what `sentence_pairs` refuses, or `n_neighbours` below 1.
    """
    if n_neighbours < 1:
        raise ValueError(f"n_neighbours is {n_neighbours}: expected at least 1")
    pairs = sentence_pairs(parallel, pivot)
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
        same = _same(own, other)
        layers = [_scored(a, b, same, n_neighbours) for a, b in zip(first, next(states), strict=True)]
        scores[code] = np.stack([each for each, _ in layers], 1)
        ties[code] = tuple(tied for _, tied in layers)
        duplicates[code] = int((same.sum(1) > 1).sum())
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
        read = embed(lm, [text for side in group for text in side], batch_size, progress)
        yield from torch.split(read, [len(side) for side in group], dim=1)
        del read


def _scored(
    own: Float[Tensor, "sentence d_model"],
    other: Float[Tensor, "sentence d_model"],
    same: Bool[Tensor, "sentence sentence"],
    n_neighbours: int,
) -> tuple[Float[np.ndarray, "measure sentence"], int]:
    """Each of `MEASURES` in one layer, and in how many searches a rival is as near as the translation."""
    cosine = normalize(own.double(), dim=-1) @ normalize(other.double(), dim=-1).T
    k = min(n_neighbours, len(cosine))
    csls = 2 * cosine - cosine.topk(k, 1).values.mean(1, keepdim=True) - cosine.topk(k, 0).values.mean(0)
    forth, back = (_searched(each, same) for each in (cosine, cosine.T))
    top1, corrected = (
        [(way.rank == 1).double() for way in ways]
        for ways in ((forth, back), (_searched(csls, same), _searched(csls.T, same)))
    )
    values = [
        (top1[0] + top1[1]) / 2,
        *top1,
        (1 / forth.rank + 1 / back.rank) / 2,
        (corrected[0] + corrected[1]) / 2,
        (forth.margin + back.margin) / 2,
        cosine.diagonal(),
    ]
    ties = sum(int((way.margin.abs() <= _TIE).sum()) for way in (forth, back))
    return torch.stack(values).numpy(), ties


@dataclass(frozen=True)
class _Search:
    rank: Float[Tensor, "sentence"]
    margin: Float[Tensor, "sentence"]


def _searched(similarity: Float[Tensor, "query candidate"], same: Bool[Tensor, "query candidate"]) -> _Search:
    right = similarity.masked_fill(~same, -torch.inf).max(1).values
    rivals = similarity.masked_fill(same, -torch.inf)
    rank = 1 + (rivals >= right[:, None] - _TIE).sum(1).double()
    return _Search(rank, right - rivals.max(1).values)


def predict_transfer(
    lm: HookedLM,
    parallel: Parallel,
    observed: Comparison,
    measure: str = "emt",
    pivot: str = "en",
    predictors: Mapping[str, Mapping[str, float]] | None = None,
    progress: bool = True,
) -> Transfer:
    """Retrieval of the model before tuning, against the observed drops (paper, Figure 4).

    The authors' mean cosine and `tokens_per_character` are set against the drops beside it.

    Args:
        lm: the model before tuning.
        parallel: in either form of `sentence_pairs`; languages that were not compared are foretold.
        predictors: name to values by language, of anything else that is known before tuning, such as
            `transfer.active_share` and `transfer.promoted_share`.

    Raises:
        ValueError: what `accuracy` refuses, or fewer than three languages with a drop and a predictor.
    """
    texts = {code: other for code, (_, other) in sentence_pairs(parallel, pivot).items()}
    drops = shared(dict.fromkeys(texts, 0.0), observed, measure)
    for name, values in {"retrieval": dict.fromkeys(texts, 0.0), **(predictors or {})}.items():
        require_enough(name, values, drops)
    cut = tokens_per_character(lm, texts)
    return transfer(
        accuracy(lm, parallel, pivot, progress=progress),
        observed,
        measure,
        {"tokens_per_character": cut, **(predictors or {})},
    )


def transfer(
    found: Retrieval,
    observed: Comparison,
    measure: str = "emt",
    predictors: Mapping[str, Mapping[str, float]] | None = None,
) -> Transfer:
    """Retrieval that was measured before, its mean cosine and other predictors against the drops; see `relate`."""
    others = {"aligned_cosine": found.mean("aligned_cosine"), **(predictors or {})}
    return relate(found.mean(), observed, measure, found.intervals(), others)
