"""Compute the perplexity of held-out text and of continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import check_columns
from xlingtox.equality import equal
from xlingtox.evaluation import metrics
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.batches import NUMBERS, Batches
from xlingtox.models.batching import by_length, rows_that_fit
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.tokenizer import n_shared
from xlingtox.progress import bar
from xlingtox.text import well_formed

LIMIT = 1e4
"""A text's value is out of range from here on (the authors' code)."""

_MOST_ROWS = 64
"""Read at most this many texts at once: more are slower on a CPU, because their logits do not fit its caches."""

_CONVERTED = 2**18
"""Convert this many logits to float64 at a time: a few rows of a large vocabulary fit a processor's cache."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Fluency:
    """A judge's perplexity of continuations, text by text and language by language.

    A low value means that the judge finds the text likely. Texts that cannot be judged are counted, by their fault.

    Attributes:
        judge: the name of the model that judged.
        values: the value of each text, in the order of the continuations; NaN where it has none.
        medians: the median of each language over its texts; NaN where no text has a value.
        counts: how many texts each language has (`texts`), and how many of these have each fault. `blank` texts hold
            nothing to judge. Texts that are `too_long` exceed the judge's context. Texts `out_of_range` have a value of
            10,000 or more, or an undefined one. `merged` texts begin inside a token that also
            holds the end of the prompt.
        model: which causal model judged, and under which edit; None if the judge is not a causal model.
        n_tokens: the number of tokens that each value is the mean of, 0 where the judge did not judge the text. A text
            with tokens and without a value has an undefined one. None where they are not known.
        row_languages: the language of each text, in the order of `values`; empty in files of older versions.

    Example:
        >>> written = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> fluency = xt.evaluation.conditional_perplexity(lm, written, progress=False)
        >>> fluency
        Fluency(4 texts judged by mini: medians en ..., es ...)
        >>> fluency.save(tmp_path / "fluency.json")
        >>> xt.evaluation.Fluency.load(tmp_path / "fluency.json") == fluency
        True
    """

    judge: str
    values: Float[np.ndarray, "text"]
    medians: Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]
    _: KW_ONLY
    model: Identity | None = None
    n_tokens: Int[np.ndarray, "text"] | None = None
    row_languages: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Return whether everything is the same; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other) and list(self.medians) == list(other.medians)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        medians = ", ".join(f"{code} {median:.2f}" for code, median in self.medians.items())
        return f"Fluency({len(self.values)} texts judged by {self.judge}: medians {medians})"

    @property
    def mean(self) -> float:
        """The mean over languages of their medians (paper, Table 2); NaN where a language has none."""
        return float(np.mean(list(self.medians.values())))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each language: columns `language, median`, and the counts."""
        return pd.DataFrame(
            [{"language": code, "median": self.medians[code], **row} for code, row in self.counts.items()]
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each language, with its median and its counts."""
        faults = list(dict.fromkeys(fault for row in self.counts.values() for fault in row))
        rows = [
            [tables.language_name(code), tables.number(self.medians[code], 2), *(str(row.get(f, 0)) for f in faults)]
            for code, row in self.counts.items()
        ]
        columns = ["Language", "Median", *(escaped(fault.replace("_", " ").capitalize()) for fault in faults)]
        return tables.table(f"Fluency of continuations, judged by {escaped(self.judge)}", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        content = {"judge": self.judge, "values": self.values.tolist(), "medians": dict(self.medians)}
        content |= {"counts": self.counts, "model": self.model and dataclasses.asdict(self.model)}
        content["n_tokens"] = None if self.n_tokens is None else self.n_tokens.tolist()
        content["row_languages"] = self.row_languages
        files.write_json(path, content)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Fluency:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no fluency. The error names the file.
        """
        content = files.read_json(path)
        with files.understood(path, "fluency"):
            values, model = np.array(content["values"], dtype=np.float64), content["model"]
            medians, counts, n_tokens = content["medians"], content["counts"], content.get("n_tokens")
            return cls(
                content["judge"],
                values,
                medians,
                counts,
                model=model and Identity.of(model),
                n_tokens=None if n_tokens is None else np.array(n_tokens, dtype=np.int64),
                row_languages=tuple(content.get("row_languages", ())),
            )


class _Row(NamedTuple):
    """One text: its language, its tokens, and the position of the first token whose loss counts."""

    language: str
    ids: Sequence[int]
    begin: int


@checked
def conditional_perplexity(
    judge: HookedLM, continuations: Continuations, *, batch_size: int | None = None, progress: bool = True
) -> Fluency:
    """Compute the perplexity of each continuation given its prompt, per token of the judge (paper, section 3).

    The prompt is read and not counted. Prompt and continuation are tokenized as one text, as the judge learned to read
    them. A token may then span the boundary, so that the prompt's last tokens differ from those that it has alone. All
    tokens from the first that differs are counted, with some letters of the prompt (`merged`).

    A continuation has no value if it is blank, too long, or has no token with another before it. `Fluency.counts` says
    how many these are. Values out of range do count in the medians, unlike in the authors' code: leaving them out would
    flatter a model that writes noise.

    Args:
        judge: any causal model. To favour nobody, it should neither have written the text nor be tuned from the model
            that did.
        batch_size: how many texts are read at once (default: as many as the free memory allows). When memory runs out
            it is halved, with a warning.

    Raises:
        ValueError: there are no continuations.

    Example:
        >>> written = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> xt.evaluation.conditional_perplexity(lm, written, progress=False).values.shape
        (4,)
    """
    prompts, written = prompts_and_texts(continuations)
    distinct = list(dict.fromkeys(prompts))
    alone = dict(zip(distinct, judge.token_ids(distinct), strict=True))
    together = judge.token_ids([prompt + text for prompt, text in zip(prompts, written, strict=True)])
    n_same = np.array([n_shared(alone[prompt], ids) for prompt, ids in zip(prompts, together, strict=True)])
    begins, ends = n_same.clip(min=1), np.array([len(ids) for ids in together])
    blank = np.array([not text.strip() for text in written]) | (begins >= ends)
    too_long = ~blank & (ends > judge.n_positions)
    rated = np.flatnonzero(~blank & ~too_long)
    values, n_tokens = np.full(len(written), np.nan), np.where(~blank & ~too_long, ends - begins, 0)
    codes = continuations.row_languages
    if len(rated):
        rows = [_Row(codes[i], together[i], int(begins[i])) for i in rated]
        losses = _losses(judge, rows, batch_size, progress)
        with np.errstate(over="ignore"):
            values[rated] = np.exp(losses / n_tokens[rated])
    faults = {"blank": blank, "too_long": too_long, "out_of_range": ~blank & ~too_long & ~(values < LIMIT)}
    faults["merged"] = ~blank & (n_same < [len(alone[prompt]) for prompt in prompts])
    fluency = fluency_of(judge.identity(), codes, values, faults=faults, counted=~blank & ~too_long)
    return dataclasses.replace(fluency, n_tokens=n_tokens)


@checked
def perplexities(
    lm: HookedLM, held_out: Dataset, *, progress: bool = True, batch_size: int | None = None
) -> dict[str, float]:
    """Compute the perplexity of each language's held-out text, per token of the model's own tokenizer.

    A text's first token only serves as context, because nothing precedes it.

    Args:
        held_out: columns `language, text`. Only the beginning of a text is read if it is longer than the model's
            context.
        batch_size: how many texts are read at once, as in `conditional_perplexity`.

    Raises:
        ValueError: a column is missing, or a language has no text of two tokens or more.

    Example:
        >>> held_out = xt.mini.held_out(n=1, languages=["en", "es"])
        >>> xt.evaluation.perplexities(lm, held_out, progress=False)
        {'en': ..., 'es': ...}
    """
    by_language = held_out_losses(lm, held_out, progress=progress, batch_size=batch_size)
    return {code: metrics.perplexity(losses, counts) for code, (losses, counts) in by_language.items()}


@checked
def text_perplexities(
    lm: HookedLM, held_out: Dataset, *, progress: bool = True, batch_size: int | None = None
) -> dict[str, Float[np.ndarray, "text"]]:
    """Compute the perplexity of each held-out text alone, language by language.

    `perplexities` pools the texts of a language. Texts of a single token have no perplexity, and are left out.

    Args:
        held_out, batch_size: as in `perplexities`, which also names the errors.

    Example:
        >>> held_out = xt.mini.held_out(n=3, languages=["en", "es"])
        >>> xt.evaluation.text_perplexities(lm, held_out, progress=False)["es"].shape
        (3,)
    """
    by_language = held_out_losses(lm, held_out, progress=progress, batch_size=batch_size)
    with np.errstate(over="ignore"):
        return {code: np.exp(losses / counts) for code, (losses, counts) in by_language.items()}


def check_held_out(lm: HookedLM, held_out: Dataset) -> None:
    """Raise ValueError if a column is missing, there are no texts, or a language has none of two tokens or more."""
    _held_out_rows(lm, held_out)


@checked
def held_out_losses(
    lm: HookedLM, held_out: Dataset, *, progress: bool = True, batch_size: int | None = None
) -> dict[str, tuple[Float[np.ndarray, "text"], Int[np.ndarray, "text"]]]:
    """Return the loss of each held-out text in nats, and the number of tokens it is the sum of, language by language.

    `metrics.perplexity` takes both, of all texts or of some. Texts of a single token have no loss, and are left out.

    Args:
        held_out, batch_size: as in `perplexities`, which also names the errors.

    Example:
        >>> held_out = xt.mini.held_out(n=3, languages=["en", "es"])
        >>> losses, tokens = xt.evaluation.fluency.held_out_losses(lm, held_out, progress=False)["es"]
        >>> len(losses) == len(tokens) == 3
        True
    """
    rows = [row for row in _held_out_rows(lm, held_out) if len(row.ids) > 1]
    losses, counts = _losses(lm, rows, batch_size, progress), np.array([len(row.ids) - 1 for row in rows])
    codes = np.array([row.language for row in rows])
    return {code: (losses[codes == code], counts[codes == code]) for code in languages.in_order(codes.tolist())}


def _held_out_rows(lm: HookedLM, held_out: Dataset) -> list[_Row]:
    check_columns(held_out, ("language", "text"), "held-out texts")
    texts, codes = list(held_out["text"]), list(held_out["language"])
    if not texts:
        raise ValueError("there are no held-out texts")
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"held-out text {wrong[0]} is missing: expected text, got {texts[wrong[0]]!r}")
    tokens = lm.token_ids(list(map(well_formed, texts)))
    rows = [_Row(code, ids[: lm.n_positions], 1) for code, ids in zip(codes, tokens, strict=True)]
    for code in languages.in_order(codes):
        if max(len(row.ids) for row in rows if row.language == code) < 2:
            raise ValueError(f"no held-out text in {code} has two tokens or more")
    return rows


def prompts_and_texts(continuations: Continuations) -> tuple[list[str], list[str]]:
    """Return the prompt of each continuation, and the continuations."""
    if not len(continuations):
        raise ValueError("there are no continuations to judge")
    prompts = [well_formed(prompt.text) for prompt in continuations.prompts for _ in range(continuations.n_samples)]
    return prompts, list(map(well_formed, continuations.texts))


@torch.no_grad()
def _losses(lm: HookedLM, rows: Sequence[_Row], batch_size: int | None, progress: bool) -> Float[np.ndarray, "row"]:
    """Sum the loss (nats) of each row's tokens that count, given all tokens before them."""
    lengths, losses = [len(row.ids) for row in rows], np.zeros(len(rows))
    batches, longest = Batches("numbers", "losses", [lm]), max(lengths)
    together = batch_size or batches.size(longest, lambda: min(_MOST_ROWS, rows_that_fit(lm, longest, longest)))
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


def _batch_losses(lm: HookedLM, rows: Sequence[_Row]) -> Float[np.ndarray, "row"]:
    """Return the summed losses of one batch, in float64."""
    ids, mask = lm.pad([row.ids for row in rows])
    counts = torch.tensor([len(row.ids) - row.begin for row in rows], device=lm.device)
    most = int(counts.max())
    # Padded on the left, all rows end in the last column.
    logits = lm.logits(ids, mask, languages=[row.language for row in rows])[:, -most - 1 : -1]
    loss = nats(logits, ids[:, -most:])
    counted = torch.arange(most, 0, -1, device=lm.device) <= counts[:, None]
    return loss.where(counted, 0.0).sum(1).cpu().numpy()


def nats(logits: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos"]:
    """Return minus the log-probability of each token, in float64.

    A sum over a vocabulary of 256,000 in float32 is off by up to 4e-4 nats. Positions are converted in chunks, so that
    the logits are never all in memory as float64.
    """
    flat, targets = logits.flatten(0, 1), tokens.flatten()
    chunk = max(1, (_CONVERTED if logits.device.type == "cpu" else 64 * _CONVERTED) // logits.shape[-1])
    parts = [
        part.double().logsumexp(-1) - part.gather(-1, ids[:, None]).squeeze(-1).double()
        for part, ids in zip(torch.split(flat, chunk), torch.split(targets, chunk), strict=True)
    ]
    return torch.cat(parts).view(tokens.shape)


def fluency_of(
    judge: Identity | str,
    row_languages: Sequence[str],
    values: Float[np.ndarray, "text"],
    *,
    faults: Mapping[str, Bool[np.ndarray, "text"]],
    counted: Bool[np.ndarray, "text"],
) -> Fluency:
    """Take the median over the texts that count, and count the texts with each fault, by language."""
    codes = np.array(row_languages)
    medians, counts = {}, {}
    for code in languages.in_order(row_languages):
        texts = codes == code
        medians[code] = float(np.median(values[texts & counted])) if (texts & counted).any() else float("nan")
        counts[code] = {"texts": int(texts.sum())} | {
            name: int((texts & faulty).sum()) for name, faulty in faults.items()
        }
    name, model = (judge, None) if isinstance(judge, str) else (judge.name, judge)
    return Fluency(name, values, medians, counts, model=model, row_languages=tuple(row_languages))
