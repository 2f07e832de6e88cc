"""Compute the perplexity of held-out text and of continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from jaxtyping import Bool, Float, Int

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import check_columns
from xlingtox.edits.interventions import Intervention
from xlingtox.equality import equal
from xlingtox.evaluation import metrics
from xlingtox.evaluation.text_losses import Row, text_losses, text_losses_under
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.tokenizer import n_shared
from xlingtox.text import well_formed

Losses = Mapping[str, tuple[Float[np.ndarray, "text"], Int[np.ndarray, "text"]]]
"""For each language, the loss of each held-out text in nats, and how many tokens it is the sum of."""

LIMIT = 1e4
"""A text's value is out of range from here on (the authors' code)."""


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
    return conditional_perplexities(judge, [continuations], batch_size=batch_size, progress=progress)[0]


@checked
def conditional_perplexities(
    judge: HookedLM, written: Sequence[Continuations], *, batch_size: int | None = None, progress: bool = True
) -> list[Fluency]:
    """Compute `conditional_perplexity` of several continuations, in batches of them all. Equal texts are read once.

    Args:
        written: the continuations, such as those of one model under several edits.
        judge, batch_size: as in `conditional_perplexity`, which also names the errors.

    Example:
        >>> edits = [xt.Offset(sources, -1.0), xt.Offset(sources, -2.0)]
        >>> written = xt.generate_under(lm, edits, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> fluencies = xt.evaluation.fluency.conditional_perplexities(lm, written, progress=False)
        >>> fluencies[1] == xt.evaluation.conditional_perplexity(lm, written[1], progress=False)
        True
    """
    judged = [_to_judge(judge, continuations) for continuations in written]
    places: dict[tuple[str, tuple[int, ...], int], int] = {}
    for row in (row for one in judged for row in one.rows):
        places.setdefault((row.language, tuple(row.ids), row.begin), len(places))
    distinct = [Row(*key) for key in places]
    losses = text_losses(judge, distinct, batch_size, progress) if distinct else np.empty(0)
    found = []
    for continuations, one in zip(written, judged, strict=True):
        values = np.full(len(continuations), np.nan)
        own = [places[row.language, tuple(row.ids), row.begin] for row in one.rows]
        with np.errstate(over="ignore"):
            values[one.rated] = np.exp(losses[own] / one.n_tokens[one.rated])
        faults = {"blank": one.blank, "too_long": one.too_long}
        faults["out_of_range"] = ~one.blank & ~one.too_long & ~(values < LIMIT)
        faults["merged"] = ~one.blank & one.merged
        codes, counted = continuations.row_languages, ~one.blank & ~one.too_long
        fluency = fluency_of(judge.identity(), codes, values, faults=faults, counted=counted)
        found.append(dataclasses.replace(fluency, n_tokens=one.n_tokens))
    return found


class _ToJudge(NamedTuple):
    """The texts of some continuations as a judge reads them.

    The arrays have one value a text. `rated` are the numbers of the texts that are read, and `rows` are these.
    """

    rows: list[Row]
    rated: Int[np.ndarray, "rated"]
    n_tokens: Int[np.ndarray, "text"]
    blank: Bool[np.ndarray, "text"]
    too_long: Bool[np.ndarray, "text"]
    merged: Bool[np.ndarray, "text"]


def _to_judge(judge: HookedLM, continuations: Continuations) -> _ToJudge:
    """Tokenize prompts and texts, and find the tokens that count."""
    prompts, written = prompts_and_texts(continuations)
    distinct = list(dict.fromkeys(prompts))
    alone = dict(zip(distinct, judge.token_ids(distinct), strict=True))
    together = judge.token_ids([prompt + text for prompt, text in zip(prompts, written, strict=True)])
    n_same = np.array([n_shared(alone[prompt], ids) for prompt, ids in zip(prompts, together, strict=True)])
    begins, ends = n_same.clip(min=1), np.array([len(ids) for ids in together])
    blank = np.array([not text.strip() for text in written]) | (begins >= ends)
    too_long = ~blank & (ends > judge.n_positions)
    rated = np.flatnonzero(~blank & ~too_long)
    codes = continuations.row_languages
    rows = [Row(codes[i], together[i], int(begins[i])) for i in rated]
    n_tokens = np.where(~blank & ~too_long, ends - begins, 0)
    merged = n_same < [len(alone[prompt]) for prompt in prompts]
    return _ToJudge(rows, rated, n_tokens, blank, too_long, merged)


def judged_rows(judge: HookedLM, continuations: Continuations) -> tuple[list[int], list[Row]]:
    """Return the numbers of the continuations that a judge can read, and each as the tokens that it reads.

    Blank ones and those beyond its context are left out.
    """
    one = _to_judge(judge, continuations)
    return one.rated.tolist(), one.rows


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
    return _by_language(rows, text_losses(lm, rows, batch_size, progress))


def _by_language(
    rows: Sequence[Row], losses: Float[np.ndarray, "text"]
) -> dict[str, tuple[Float[np.ndarray, "text"], Int[np.ndarray, "text"]]]:
    codes, counts = np.array([row.language for row in rows]), np.array([len(row.ids) - 1 for row in rows])
    return {code: (losses[codes == code], counts[codes == code]) for code in languages.in_order(codes.tolist())}


@checked
def held_out_losses_under(
    lm: HookedLM, edits: Sequence[Intervention], held_out: Dataset, *, progress: bool = True
) -> list[dict[str, tuple[Float[np.ndarray, "text"], Int[np.ndarray, "text"]]]]:
    """Return `held_out_losses` under each edit, in the order of the edits. Edits share batches where that is faster.

    Args:
        held_out: as in `perplexities`, which also names the errors.

    Example:
        >>> held_out = xt.mini.held_out(n=3, languages=["en", "es"])
        >>> edits = [xt.Offset(sources, -1.0), xt.Offset(sources, -2.0)]
        >>> weak, strong = xt.evaluation.fluency.held_out_losses_under(lm, edits, held_out, progress=False)
        >>> bool(strong["en"][0].sum() > weak["en"][0].sum())
        True
    """
    rows = [row for row in _held_out_rows(lm, held_out) if len(row.ids) > 1]
    return [_by_language(rows, losses) for losses in text_losses_under(lm, edits, rows, progress=progress)]


def held_out_texts(held_out: Dataset) -> list[str]:
    """Return held-out texts as they are read; raise ValueError if a column or a text is missing."""
    check_columns(held_out, ("language", "text"), "held-out texts")
    texts = list(held_out["text"])
    if not texts:
        raise ValueError("there are no held-out texts")
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"held-out text {wrong[0]} is missing: expected text, got {texts[wrong[0]]!r}")
    return list(map(well_formed, texts))


def _held_out_rows(lm: HookedLM, held_out: Dataset) -> list[Row]:
    tokens = lm.token_ids(held_out_texts(held_out))
    codes = list(held_out["language"])
    rows = [Row(code, ids[: lm.n_positions], 1) for code, ids in zip(codes, tokens, strict=True)]
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
