"""Measures of a model that can be differentiated, with one value for each text that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data import PAIR_FIELDS, check_columns, check_pairs
from xlingtox.evaluation.continuation_rows import WeightedRow
from xlingtox.models.hooked import HookedLM
from xlingtox.models.tokenizer import n_shared
from xlingtox.neurons.probe import Probe


class Reading(NamedTuple):
    """One pass of a model over texts, at the tokens that count. All texts end in the last column.

    Attributes:
        logits: the logits that predict the tokens.
        tokens: the tokens themselves.
        counted: which of the tokens count.
        states: the residual stream after the last block, at the tokens.

    Example:
        >>> import torch
        >>> from xlingtox.evaluation.row_measures import Reading
        >>> tokens = torch.tensor([[3, 5]])
        >>> Reading(torch.zeros(1, 2, 8), tokens, tokens > 3, torch.zeros(1, 2, 4)).counted.tolist()
        [[False, True]]
    """

    logits: Float[Tensor, "row pos vocab"]
    tokens: Int[Tensor, "row pos"]
    counted: Bool[Tensor, "row pos"]
    states: Float[Tensor, "row pos d_model"]


class RowMeasure:
    """A number for each text that a model reads, through which gradients flow.

    `LogProbability`, `ToxicMass`, `ProbeLogit` and `PreferenceMargin` are such measures.

    Attributes:
        name: the name of the measure, for tables.

    Example:
        >>> xt.evaluation.LogProbability().name
        'log_probability'
    """

    name = ""

    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless the measure fits the model."""

    def rows(self, lm: HookedLM, prompts: Any, written: Callable[[], Sequence[WeightedRow]]) -> Sequence[WeightedRow]:
        """Return the texts to read.

        Args:
            prompts: the prompts as the caller gave them.
            written: a function that returns the rows of the prompts' continuations.
        """
        return written()

    def values(self, lm: HookedLM, reading: Reading) -> Float[Tensor, "row"]:
        """Return the value of each text."""
        raise NotImplementedError


@checked
@dataclass(frozen=True)
class LogProbability(RowMeasure):
    """The log-probability of a continuation, in nats: the sum over its tokens, given all tokens before them.

    Example:
        >>> attribution = xt.attribute(lm, xt.Offset(sources, -1.0).bake(lm), prompts, progress=False,
        ...     measure=xt.evaluation.LogProbability(), components=("layers",), n_samples=1, max_new_tokens=4)
        >>> attribution.measure
        'log_probability'
    """

    name = "log_probability"

    def values(self, lm: HookedLM, reading: Reading) -> Float[Tensor, "row"]:
        logits = wide(reading.logits)
        chosen = logits.gather(-1, reading.tokens[..., None]).squeeze(-1)
        return ((chosen - logits.logsumexp(-1)) * reading.counted).sum(1)


@checked
@dataclass(frozen=True)
class ToxicMass(RowMeasure):
    """The probability of toxic tokens as the next one, in [0, 1]: the mean over the places of a continuation's tokens.

    Attributes:
        tokens: the ids of the toxic tokens.

    Example:
        >>> tokens = sources.promoted_tokens(lm, k=3)["token_id"]
        >>> xt.evaluation.ToxicMass(tuple(tokens)).name
        'toxic_mass'
    """

    tokens: tuple[int, ...]
    name = "toxic_mass"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(sorted({int(token) for token in self.tokens})))
        if not self.tokens:
            raise ValueError("there are no toxic tokens: expected the ids of at least one")

    def check(self, lm: HookedLM) -> None:
        if not 0 <= self.tokens[0] <= self.tokens[-1] < len(lm.unembedding()):
            raise ValueError(
                f"the toxic tokens are from {self.tokens[0]} to {self.tokens[-1]}: not all are of the vocabulary of "
                f"{lm.name}, {len(lm.unembedding())} tokens"
            )

    def values(self, lm: HookedLM, reading: Reading) -> Float[Tensor, "row"]:
        logits = wide(reading.logits)
        toxic = logits[..., list(self.tokens)].logsumexp(-1)
        return _mean((toxic - logits.logsumexp(-1)).exp(), reading.counted)


@checked
@dataclass(frozen=True)
class ProbeLogit(RowMeasure):
    """The probe's logit: the mean over a continuation's tokens of the state along the probe's direction, plus its bias.

    Attributes:
        probe: the probe.

    Example:
        >>> xt.evaluation.ProbeLogit(probe).name
        'probe'
    """

    probe: Probe
    name = "probe"

    def check(self, lm: HookedLM) -> None:
        self.probe.check(lm)

    def values(self, lm: HookedLM, reading: Reading) -> Float[Tensor, "row"]:
        states = lm.after_final_norm(reading.states) if self.probe.after_final_norm else reading.states
        states = wide(states)
        return _mean(states @ self.probe.direction.to(states), reading.counted) + self.probe.bias


@checked
@dataclass(frozen=True)
class PreferenceMargin(RowMeasure):
    """DPO's margin: `beta` times the log-probability of a pair's chosen side less that of its rejected side.

    Its change from the base model to the tuned one is the implicit reward that DPO maximises (Rafailov et al. 2023,
    section 4). It is measured on preference pairs, which take the place of the prompts. No end of text is added.

    Attributes:
        beta: the strength of the tie to the base model. The paper's is 0.1.
        source_language: the language of pairs in a table without a column `language`.

    Example:
        >>> pairs = xt.mini.pairs("en", n=2)
        >>> attribution = xt.attribute(lm, xt.Offset(sources, -1.0).bake(lm), pairs, progress=False,
        ...     measure=xt.evaluation.PreferenceMargin(), components=("layers",))
        >>> attribution.languages
        ('en', 'en')
    """

    beta: float = 0.1
    source_language: str = "en"
    name = "preference_margin"

    def rows(self, lm: HookedLM, prompts: Any, written: Callable[[], Sequence[WeightedRow]]) -> Sequence[WeightedRow]:
        if not isinstance(prompts, Dataset):
            raise TypeError("preference_margin is measured on preference pairs: give a table in place of the prompts")
        check_columns(prompts, PAIR_FIELDS, "preference pairs")
        has_languages = "language" in prompts.column_names
        codes = prompts["language"] if has_languages else [self.source_language] * len(prompts)
        # A chat model reads a pair as a message and two answers.
        texts = prompts if lm.chat is None else check_pairs(prompts, tokenizer=lm.tokenizer, chat=lm.chat)
        rows = []
        for number, (pair, code) in enumerate(zip(texts.to_list(), codes, strict=True)):
            prompt, *sides = lm.token_ids([pair["prompt"], *(pair["prompt"] + pair[side] for side in PAIR_FIELDS[1:])])
            for ids, weight in zip(sides, (self.beta, -self.beta), strict=True):
                begin = max(1, n_shared(prompt, ids))
                if begin >= len(ids) or len(ids) > lm.n_positions:
                    raise ValueError(
                        f"pair {number} has a side of {len(ids) - begin} tokens after {begin}: expected at least one, "
                        f"and at most {lm.n_positions} in all"
                    )
                rows.append(WeightedRow(number, code, ids, begin, weight))
        return rows

    def values(self, lm: HookedLM, reading: Reading) -> Float[Tensor, "row"]:
        return LogProbability().values(lm, reading)


MEASURES: dict[str, RowMeasure] = {"log_probability": LogProbability()}
"""The measures that need nothing but texts, by name."""


def measure_of(measure: str | RowMeasure) -> RowMeasure:
    """Return the measure of a name; raise ValueError for an unknown one."""
    if isinstance(measure, RowMeasure):
        return measure
    if measure not in MEASURES:
        raise ValueError(
            f"unknown measure {measure!r}: expected {', '.join(map(repr, MEASURES))}, or a value such as "
            "xt.evaluation.ToxicMass(tokens), ProbeLogit(probe) or PreferenceMargin()"
        )
    return MEASURES[measure]


def wide(numbers: Tensor) -> Tensor:
    """Return the numbers in at least 32 bits, in which sums of many are taken."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def _mean(values: Float[Tensor, "row pos"], counted: Bool[Tensor, "row pos"]) -> Float[Tensor, "row"]:
    return (values * counted).sum(1) / counted.sum(1)
