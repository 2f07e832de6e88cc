"""The sizes of a study's tables: how many rows they have, and about how many tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.languages import CODES
from xlingtox.models.hooked import HookedLM
from xlingtox.study.settings import Materials

_COUNTED = 300
"""The tokens of a table are counted in so many of its rows, and extrapolated."""

_CHARACTERS_A_TOKEN = 3.0
"""About as many bytes of text make a token, where there is no tokenizer to ask."""


@checked
@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a study's tables.

    Attributes:
        prompts, neutral: the prompts of each language.
        prompt_tokens, neutral_tokens: the mean number of tokens of a prompt.
        labelled, elsewhere, held_out, parallel, requests: the tokens of all texts of a table.
        n_labelled, n_parallel, n_held_out, n_requests: the texts of these tables.
        n_pairs, n_validation: the preference pairs.
        pair_tokens: the mean number of tokens of both sides of a pair, each with the prompt.
        longest: the tokens of the longest text that was counted.

    Example:
        >>> xt.study.sizes.Sizes(prompts={"en": 10}, prompt_tokens=12.0).n_prompts
        10
    """

    prompts: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: float = 0.0
    neutral: Mapping[str, int] = field(default_factory=dict)
    neutral_tokens: float = 0.0
    labelled: float = 0.0
    n_labelled: int = 0
    elsewhere: float = 0.0
    held_out: float = 0.0
    n_held_out: int = 0
    parallel: float = 0.0
    n_parallel: int = 0
    requests: float = 0.0
    n_requests: int = 0
    n_pairs: int = 0
    n_validation: int = 0
    pair_tokens: float = 0.0
    longest: int = 1

    @property
    def n_prompts(self) -> int:
        """The number of toxic prompts in all languages."""
        return sum(self.prompts.values())

    @classmethod
    @checked
    def of(cls, materials: Materials, lm: HookedLM | None = None) -> Sizes:
        """Count what the materials hold; without a model, tokens are guessed from the length of the texts."""
        counter = _Counter(lm)
        tables = {name: counter.texts(getattr(materials, name)) for name in _TEXTS}
        tokens = {name: counter.total(texts) for name, texts in tables.items()}
        n_pairs = 0 if materials.pairs is None else len(materials.pairs)
        return cls(
            prompts=prompts_by_language(materials.toxic_prompts),
            prompt_tokens=_mean(tokens["toxic_prompts"], tables["toxic_prompts"]),
            neutral=prompts_by_language(materials.neutral_prompts),
            neutral_tokens=_mean(tokens["neutral_prompts"], tables["neutral_prompts"]),
            labelled=tokens["labelled"],
            n_labelled=len(tables["labelled"]),
            elsewhere=tokens["labelled_elsewhere"],
            held_out=tokens["held_out"],
            n_held_out=len(tables["held_out"]),
            parallel=tokens["parallel"],
            n_parallel=len(tables["parallel"]),
            requests=tokens["requests"],
            n_requests=len(tables["requests"]),
            n_pairs=n_pairs,
            n_validation=0 if materials.validation is None else len(materials.validation),
            # `texts` gives prompt and both sides, and the prompt is read with either side.
            pair_tokens=(tokens["pairs"] + counter.total(counter.prompts(materials.pairs))) / max(1, n_pairs),
            longest=max(1, counter.longest),
        )

    @classmethod
    @checked
    def of_paper(cls, *, n_languages: int = 17, per_language: int = 1000) -> Sizes:
        """Return the sizes of the paper's data: Jigsaw's sentences and the pairs of Lee et al. Tokens are guessed.

        Example:
            >>> xt.study.sizes.Sizes.of_paper(n_languages=2).n_prompts
            2000
        """
        prompts = dict.fromkeys(CODES[:n_languages], per_language)
        n_parallel = 200 * n_languages
        return cls(
            prompts=prompts,
            prompt_tokens=20.0,
            neutral=prompts,
            neutral_tokens=20.0,
            labelled=12_800_000.0,
            n_labelled=159_571,
            held_out=25.0 * n_parallel,
            n_held_out=n_parallel,
            parallel=25.0 * n_parallel,
            n_parallel=n_parallel,
            n_pairs=24_576,
            pair_tokens=110.0,
            longest=128,
        )


_TEXTS = (
    "toxic_prompts",
    "neutral_prompts",
    "labelled",
    "labelled_elsewhere",
    "held_out",
    "parallel",
    "pairs",
    "requests",
)


class _Counter:
    """Counts tokens in a sample of texts.

    Attributes:
        longest: the most tokens that a text had so far.
    """

    def __init__(self, lm: HookedLM | None) -> None:
        self._lm, self.longest = lm, 1

    def texts(self, table: Dataset | None) -> list[Any]:
        """Return the cells with text of all columns. A list of messages counts as the text that they hold."""
        if table is None:
            return []
        columns = [table[name] for name in table.column_names if name not in _ABOUT]
        return [cell for column in columns for cell in column if isinstance(cell, str | list)]

    def prompts(self, pairs: Dataset | None) -> list[Any]:
        return [] if pairs is None or "prompt" not in pairs.column_names else list(pairs["prompt"])

    def total(self, cells: Sequence[Any]) -> float:
        """Return about how many tokens all cells have."""
        if not cells:
            return 0.0
        step = max(1, len(cells) // _COUNTED)
        sample = [_text(cell) for cell in cells[::step]]
        if self._lm is None:
            lengths = [math.ceil(len(text.encode(errors="replace")) / _CHARACTERS_A_TOKEN) for text in sample]
        else:
            lengths = [min(len(ids), self._lm.n_positions) for ids in self._lm.token_ids(sample)]
        self.longest = max(self.longest, *lengths)
        return sum(lengths) / len(lengths) * len(cells)


_ABOUT = ("language", "label", "index", "group", "provocation", "kind", "category")
"""Columns that say something about a text, and hold none."""


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else " ".join(str(message.get("content", "")) for message in cell)


def prompts_by_language(table: Dataset | None) -> dict[str, int]:
    """Return how many prompts a table has in each language."""
    return {} if table is None else dict(Counter(table["language"]))


def _mean(total: float, texts: Sequence[Any]) -> float:
    return total / max(1, len(texts))
