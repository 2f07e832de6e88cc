"""Measure sentence retrieval between every two languages: how surely each finds its translations in each other one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.data.translations import Parallel, aligned_sentences, translations
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.states import mean_states
from xlingtox.transfer.nearest import cosines, search
from xlingtox.transfer.retrieval import check_finite

_KEPT = ("top1", "aligned_cosine")
"""The fields that a file keeps as tensors."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class RetrievalBetween:
    """One model's success at finding translations from each language in each other one.

    A row is the language that is searched from, and a column the language that is searched in. The two directions
    differ: a language whose sentences crowd together is hard to search in.

    Attributes:
        languages: the languages of rows and columns, in the order of `xt.languages`.
        top1: the share of the source's sentences whose nearest sentence of the target is their translation, in the mean
            over layers. NaN where source and target are the same.
        aligned_cosine: the mean cosine of a sentence and its translation, over layers. It is the same both ways.
        n_sentences: the number of sentences in each language; accuracy by chance is one over this.
        layers: the layers that the means are over; layer n is the output of the n-th block.
        model: which model read the sentences, and under which edit; None where that is not known.

    Example:
        >>> found = xt.transfer.retrieval_between(lm, xt.mini.parallel(n=20, languages=["en", "es"]), progress=False)
        >>> found
        RetrievalBetween(2 languages, 20 sentences; top-1 ... to ...)
        >>> found.languages, found.top1.shape
        (('en', 'es'), (2, 2))
    """

    languages: tuple[str, ...]
    top1: Float[np.ndarray, "source target"]
    aligned_cosine: Float[np.ndarray, "source target"]
    n_sentences: int
    layers: tuple[int, ...]
    model: Identity | None = None

    def __eq__(self, other: object) -> bool:
        """Compare everything, the numbers to their last bit."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each two languages: `source, target, top1, aligned_cosine, n_sentences`."""
        columns = ["source", "target", *_KEPT, "n_sentences"]
        rows = [
            (self.languages[i], self.languages[j], self.top1[i, j], self.aligned_cosine[i, j], self.n_sentences)
            for i, j in itertools.permutations(range(len(self.languages)), 2)
        ]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        low, high = np.nanmin(self.top1), np.nanmax(self.top1)
        sizes = f"{len(self.languages)} languages, {self.n_sentences} sentences"
        return f"RetrievalBetween({sizes}; top-1 {low:.3f} to {high:.3f})"

    def _repr_html_(self) -> str:
        """Show a notebook the accuracy from each language (row) in each other one (column)."""
        rows = [
            [
                tables.language_name(code),
                *("–" if np.isnan(share) else tables.percent(float(share)) for share in self.top1[i]),
            ]
            for i, code in enumerate(self.languages)
        ]
        caption = f"Retrieval from the row's language in the column's, of {self.n_sentences} sentences"
        caption += f" by {escaped(self.model)}" if self.model else ""
        return tables.table(caption, ["From", *map(escaped, self.languages)], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with everything that is not a tensor in its metadata."""
        about = {name: value for name, value in vars(self).items() if name not in _KEPT}
        about |= {"model": self.model and dataclasses.asdict(self.model)}
        files.write_tensors(path, {name: torch.tensor(getattr(self, name)) for name in _KEPT}, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> RetrievalBetween:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no retrieval between languages.
        """
        tensors, about = files.read_tensors(path)
        with files.understood(path, "retrieval between languages"):
            return cls(
                tuple(about["languages"]),
                tensors["top1"].numpy(),
                tensors["aligned_cosine"].numpy(),
                about["n_sentences"],
                tuple(about["layers"]),
                about["model"] and Identity.of(about["model"]),
            )


@checked
def retrieval_between(
    lm: HookedLM,
    parallel: Parallel,
    *,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> RetrievalBetween:
    """Search each sentence's translation in every other language, both ways.

    It is `bilingual_retrieval` with each language in turn as the pivot, and gives the same shares. But each language is
    read once, where that would read it as often as there are languages.

    Sentences are compared by the cosine of their states, which are means over their tokens. All states are held at a
    time: 4 bytes for each language, sentence, layer and dimension of the model.

    Args:
        parallel: the same sentences in every language, in either form that `transfer.sentence_pairs` takes. Rows must
            have the same translations, in English, in every language.
        layers: the layers to average over, such as `[3]`. Layer 0 is the embedding's output and layer n the output of
            the n-th block. By default all blocks, as in the paper.
        batch_size: sentences in one pass. By default as many as the free memory allows, at most 64.

    Raises:
        ValueError: the languages do not have the same sentences; sentences that `sentence_pairs` refuses; a layer that
            the model does not have, or none; a state that is not finite; or a `batch_size` below 1.

    Example:
        >>> parallel = xt.mini.parallel(n=20, languages=["en", "es", "ru"])
        >>> xt.transfer.retrieval_between(lm, parallel, progress=False).to_frame().columns.tolist()
        ['source', 'target', 'top1', 'aligned_cosine', 'n_sentences']
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    layers = tuple(range(1, lm.n_layers + 1) if layers is None else layers)
    if not layers or not set(layers) <= set(range(lm.n_layers + 1)):
        raise ValueError(f"layers is {list(layers)}: expected some of 0 to {lm.n_layers}")
    sentences = aligned_sentences(parallel)
    codes = tuple(sentences)
    texts = [text for code in codes for text in sentences[code]]
    n = len(sentences[codes[0]])
    all_states = mean_states(lm, texts, layers, batch_size=batch_size, progress=progress)
    states = dict(zip(codes, torch.split(all_states, n, dim=1), strict=True))
    for code in codes:
        check_finite(states[code], code, layers=layers)
    top1, cosine = (np.full((len(codes), len(codes)), np.nan) for _ in _KEPT)
    for (i, one), (j, other) in itertools.combinations(enumerate(codes), 2):
        right = translations(sentences[one], sentences[other])
        forth, back, aligned = [], [], []
        for in_one, in_other in zip(states[one], states[other], strict=True):
            similarity = cosines(in_one, in_other)
            forth.append(float(search(similarity, right).top1.mean()))
            back.append(float(search(similarity.T, right.T).top1.mean()))
            aligned.append(float(similarity.diagonal().mean()))
        top1[i, j], top1[j, i] = np.mean(forth), np.mean(back)
        cosine[i, j] = cosine[j, i] = np.mean(aligned)
    return RetrievalBetween(codes, top1, cosine, n, layers, lm.identity())
