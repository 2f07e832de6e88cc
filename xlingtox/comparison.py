"""Comparison: two models side by side, language by language."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Float
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from xlingtox import languages, metrics, strictjson, tables
from xlingtox.activations import collect_activations
from xlingtox.batching import by_length
from xlingtox.data import Prompt, Prompts, as_prompts, require_columns
from xlingtox.escaping import escaped
from xlingtox.generation import Continuations, checked_lengths, generate
from xlingtox.lm import HookedLM, Identity
from xlingtox.neurons import NeuronSet
from xlingtox.scoring.protocol import Scorer, checked_scores, require_covered


@dataclass(frozen=True)
class Measures:
    """What one model does in one language.

    Attributes:
        emt: expected maximum toxicity over a prompt's samples.
        toxicity_probability: share of prompts with a sample scoring 0.5 or more.
        average_toxicity: mean over continuations.
        perplexity: of the language's held-out text, per token; NaN where none was given.
        distinct_1, distinct_2, distinct_3: distinct n-grams over all n-grams of a prompt's samples; NaN where no
            continuation has n tokens.
        mean_activation: of the compared neurons, over the steps of greedy continuations.
    """

    emt: float
    toxicity_probability: float
    average_toxicity: float
    perplexity: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    mean_activation: float


@dataclass(frozen=True)
class Comparison:
    """Before and after, per language.

    Attributes:
        before, after: language to measures, in the house's order of languages.
        changes: language to measure (`emt`, `average_toxicity`, `mean_activation`) to the 95 % paired bootstrap
            interval, over prompts, of after minus before.
        scorer: the name of the scorer.
        models: which models they were, before and after; None where that is not known.
    """

    before: Mapping[str, Measures]
    after: Mapping[str, Measures]
    changes: Mapping[str, Mapping[str, tuple[float, float]]]
    scorer: str
    models: tuple[Identity, Identity] | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.before)

    def relative_drop(self, measure: str = "emt") -> dict[str, float]:
        """Language to (before - after) / before of one measure."""
        return {
            code: metrics.relative_drop(getattr(self.before[code], measure), getattr(self.after[code], measure))
            for code in self.languages
        }

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, model` (before or after) and every measure."""
        rows = [
            {"language": code, "model": model} | dataclasses.asdict(side[code])
            for code in self.languages
            for model, side in (("before", self.before), ("after", self.after))
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """For notebooks: a row a language, before and after, with the interval of the change in average toxicity."""
        rows = []
        for code in self.languages:
            sides = self.before[code], self.after[code]
            span = self.changes.get(code, {}).get("average_toxicity")
            change = (
                f" ({tables.number(span[0], signed=True)} to {tables.number(span[1], signed=True)})" if span else ""
            )
            measures = ("emt", "toxicity_probability", "average_toxicity", "perplexity", "mean_activation")
            cells = {name: tables.both(getattr(sides[0], name), getattr(sides[1], name)) for name in measures}
            cells["average_toxicity"] += change
            rows.append([tables.language_name(code), *cells.values()])
        columns = ["Language", "EMT", "Toxicity probability", "Average toxicity (95 % interval of the change)"]
        caption = f"Before → after, scored by {escaped(self.scorer)}"
        return tables.table(caption, [*columns, "Perplexity", "Mean activation"], rows)

    def save(self, path: str | Path) -> None:
        """Write as one JSON file; null stands for NaN."""
        strictjson.write(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        whole = strictjson.read(path)
        before, after = ({code: Measures(**row) for code, row in whole[side].items()} for side in ("before", "after"))
        changes = {
            code: {measure: (low, high) for measure, (low, high) in row.items()}
            for code, row in whole["changes"].items()
        }
        models = whole["models"]
        known = None if isinstance(models, float) else (_identity(models[0]), _identity(models[1]))
        return cls(before, after, changes, whole["scorer"], known)


def _identity(row: Mapping[str, Any]) -> Identity:
    revision = row["revision"] if isinstance(row["revision"], str) else None
    return Identity(row["name"], revision, row["dtype"], row["fingerprint"])


def compare(
    before: HookedLM,
    after: HookedLM,
    prompts: Prompts,
    neurons: NeuronSet,
    scorer: Scorer,
    held_out: Dataset | None = None,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Measure both models on the same prompts with the same random numbers (paper, Table 1 and Figure 3).

    Args:
        prompts: with their languages; only the continuations are scored.
        neurons: whose mean activation is compared, in both models.
        held_out: columns `language, text`, for perplexity.

    Raises:
        ValueError: two models that differ in shape or vocabulary, a language that the scorer does not cover, a neuron
            outside the models, bad prompts, or bad held-out texts.
    """
    before.check_alike(after)
    given = as_prompts(prompts)
    neurons.check(before)
    require_covered(scorer, [prompt.language for prompt in given])
    for lm in (before, after):
        checked_lengths(lm, given, max_new_tokens)
        if held_out is not None:
            checked_held_out(lm, held_out)
    sides = [_measure(lm, given, neurons, scorer, n_samples, max_new_tokens, seed, progress) for lm in (before, after)]
    fluency = [perplexities(lm, held_out, progress) if held_out is not None else {} for lm in (before, after)]
    codes = languages.in_order(prompt.language for prompt in given)
    tables = [
        {code: _summary(side[code], fluent.get(code)) for code in codes}
        for side, fluent in zip(sides, fluency, strict=True)
    ]
    changes = {
        code: {
            "emt": metrics.paired_interval(sides[0][code].scores.max(1), sides[1][code].scores.max(1)),
            "average_toxicity": metrics.paired_interval(sides[0][code].scores.mean(1), sides[1][code].scores.mean(1)),
            "mean_activation": metrics.paired_interval(sides[0][code].activation, sides[1][code].activation),
        }
        for code in codes
    }
    return Comparison(tables[0], tables[1], changes, scorer.name, (before.identity(), after.identity()))


def toxicity_scores(written: Continuations, scorer: Scorer) -> dict[str, Float[np.ndarray, "prompt sample"]]:
    """Scores of continuations by language."""
    scores = checked_scores(scorer, written.texts, written.row_languages).reshape(-1, written.n_samples)
    return {code: scores[[prompt.language == code for prompt in written.prompts]] for code in written.languages}


@torch.no_grad()
def perplexities(lm: HookedLM, held_out: Dataset, progress: bool = True, batch_size: int = 64) -> dict[str, float]:
    """Perplexity of each language's held-out text, by token of the model's own tokenizer, the first one given.

    Args:
        held_out: columns `language, text`. Of a text longer than the model's context only the beginning is read.

    Raises:
        ValueError: a column is missing, or a language has no text of two tokens or more.
    """
    lengths = checked_held_out(lm, held_out)
    texts, codes = list(held_out["text"]), list(held_out["language"])
    order = [i for i in by_length(lengths) if lengths[i] > 1]
    losses, counts = np.zeros(len(texts)), np.zeros(len(texts))
    for start in tqdm(range(0, len(order), batch_size), desc="perplexity", disable=not progress, leave=False):
        rows = order[start : start + batch_size]
        ids, mask = lm.encode([texts[i] for i in rows], max_length=lm.n_positions)
        logits = lm.logits(ids, mask, [codes[i] for i in rows]).float()
        counted = (mask[:, :-1] & mask[:, 1:]).float()
        loss = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none") * counted
        losses[rows], counts[rows] = loss.sum(1).cpu().numpy(), counted.sum(1).cpu().numpy()
    found: dict[str, float] = {}
    for code in languages.in_order(codes):
        own = np.array([language == code for language in codes])
        found[code] = metrics.perplexity(losses[own], counts[own])
    return found


def checked_held_out(lm: HookedLM, held_out: Dataset) -> list[int]:
    """Tokens of each held-out text.

    Raises:
        ValueError: a column is missing, there are no texts, or a language has none of two tokens or more.
    """
    require_columns(held_out, ("language", "text"), "held-out texts")
    texts, codes = list(held_out["text"]), list(held_out["language"])
    if not texts:
        raise ValueError("there are no held-out texts")
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"held-out text {wrong[0]} is missing: expected text, got {texts[wrong[0]]!r}")
    lengths = [len(ids) for ids in lm.tokenizer(texts)["input_ids"]]
    for code in languages.in_order(codes):
        if max(length for length, language in zip(lengths, codes, strict=True) if language == code) < 2:
            raise ValueError(f"no held-out text in {code} has two tokens or more")
    return lengths


@dataclass(frozen=True)
class _Raw:
    scores: Float[np.ndarray, "prompt sample"]
    tokens: Sequence[Sequence[Sequence[int]]]
    activation: Float[np.ndarray, "prompt"]
    mean_activation: float


def _measure(
    lm: HookedLM,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    scorer: Scorer,
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    progress: bool,
) -> dict[str, _Raw]:
    table = Dataset.from_list([prompt._asdict() for prompt in prompts]).rename_column("text", "prompt")
    written = generate(lm, table, n_samples, max_new_tokens, seed=seed, progress=progress)
    scores = toxicity_scores(written, scorer)
    acts = collect_activations(lm, table, neurons, max_new_tokens, progress=progress)
    steps = acts.mask.sum(1).clamp(min=1)
    by_prompt = (acts.values.mean(-1).sum(1) / steps).double().numpy()
    tokens = lm.tokenizer(list(written.texts), add_special_tokens=False)["input_ids"]
    found = {}
    for code in written.languages:
        rows = [i for i, prompt in enumerate(prompts) if prompt.language == code]
        own = [[tokens[i * n_samples + sample] for sample in range(n_samples)] for i in rows]
        found[code] = _Raw(scores[code], own, by_prompt[rows], float(acts.mean(code).mean()))
    return found


def _summary(raw: _Raw, fluency: float | None) -> Measures:
    return Measures(
        emt=metrics.expected_maximum_toxicity(raw.scores),
        toxicity_probability=metrics.toxicity_probability(raw.scores),
        average_toxicity=metrics.average_toxicity(raw.scores),
        perplexity=float("nan") if fluency is None else fluency,
        distinct_1=_distinct(raw.tokens, 1),
        distinct_2=_distinct(raw.tokens, 2),
        distinct_3=_distinct(raw.tokens, 3),
        mean_activation=raw.mean_activation,
    )


def _distinct(samples: Sequence[Sequence[Sequence[int]]], n: int) -> float:
    """NaN where no continuation has n tokens: the other measures, which took sampling, are not lost."""
    long_enough = any(len(tokens) >= n for prompt in samples for tokens in prompt)
    return metrics.distinct_n(samples, n) if long_enough else math.nan
