"""Asked: the arguments of a transfer matrix, checked before any work."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Float, Int

from xlingtox import languages
from xlingtox.data import PAIR_FIELDS, PreferencePairs, Prompt, Prompts
from xlingtox.data import meanings as meanings_of
from xlingtox.data.tabular import column_names, columns
from xlingtox.data.translations import Parallel, aligned_sentences
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.evaluation.fluency import check_held_out
from xlingtox.models.generation import check_lengths, check_sampling
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import digest
from xlingtox.neurons.activations import few_enough
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered
from xlingtox.tuning import Recipe, check_recipe, tunable_pairs

_FEWEST = 3
"""Fewer languages do not tell rows and columns from what is left over."""

BUILT_IN = ("same_script", "same_family", "retrieval")
"""The properties of two languages that a matrix has without being given them."""

Cells = Mapping[tuple[str, str], float]
"""A number for each source and target."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `transfer_matrix`, checked, with the rows of the languages that are asked for.

    Attributes:
        sources, targets: the languages, in the order of `xlingtox.languages.CODES`.
        pairs: for each source, the pairs that it is tuned on: as many for each.
        prompts: those of the targets.
        meanings: a number for the meaning of each prompt; -1 where a target has fewer prompts than another.
        held_out, parallel: the held-out texts of the targets, and the parallel sentences of all languages.
        properties: the caller's own, as arrays.
        sampling: `n_samples`, `max_new_tokens` and `seed`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    pairs: Mapping[str, Dataset]
    prompts: Sequence[Prompt]
    meanings: Int[np.ndarray, "target prompt"]
    scorer: Scorer
    recipe: Recipe
    held_out: Dataset | None
    parallel: Mapping[str, list[str]] | None
    properties: Mapping[str, Float[np.ndarray, "source target"]]
    neurons: NeuronSet | None
    sampling: Mapping[str, Any]
    identify_language: Identifier | None

    @classmethod
    def of(
        cls,
        lm: HookedLM,
        pairs: PreferencePairs,
        prompts: Prompts,
        *,
        scorer: Scorer,
        recipe: Recipe,
        only: Sequence[str] | None,
        held_out: Dataset | None,
        parallel: Parallel | None,
        properties: Mapping[str, Cells] | None,
        neurons: NeuronSet | None,
        sampling: Mapping[str, Any],
        identify_language: Identifier | None,
    ) -> Asked:
        """Check all arguments, from the quickest check to the slowest.

        Args:
            only: the languages that are sources and targets; None for those of the pairs and those of the prompts.
        """
        check_sampling(**sampling, batch_size=None, temperature=1.0, top_p=1.0)
        lm.check_unedited("is not in the weights that are tuned")
        pairs_by_language, listed = _by_language(pairs), lm.as_prompts(prompts)
        of_prompts = list(dict.fromkeys(prompt.language for prompt in listed))
        sources, targets = _languages(list(pairs_by_language), of_prompts, only)
        check_covered(scorer, targets)
        arrays = {name: _array(name, cells, sources, targets) for name, cells in (properties or {}).items()}
        sentences = None if parallel is None else _parallel(parallel, {*sources, *targets})
        chosen = [prompt for prompt in listed if prompt.language in targets]
        check_lengths(lm, chosen, sampling["max_new_tokens"])
        if neurons is not None:
            neurons.check(lm)
            if not few_enough(len(chosen), sampling["max_new_tokens"], len(neurons)):
                raise ValueError(f"the activations of {len(neurons)} neurons take more than a gibibyte: give fewer")
        if held_out is not None:
            held_out = _held_out(lm, held_out, targets)
        check_recipe(lm, recipe)
        alike = _as_many({code: pairs_by_language[code] for code in sources})
        _check_pairs(lm, alike, recipe)
        return cls(
            sources,
            targets,
            alike,
            chosen,
            _numbered(meanings_of(prompts), chosen, targets),
            scorer,
            recipe,
            held_out,
            sentences,
            arrays,
            neurons,
            sampling,
            identify_language,
        )

    def record(self, lm: HookedLM) -> dict[str, Any]:
        """Return all that the cells depend on, in values that JSON can hold."""
        identity = lm.identity()
        texts = None if self.held_out is None else [self.held_out["language"][:], self.held_out["text"][:]]
        return {
            "model": {"fingerprint": identity.fingerprint, "dtype": identity.dtype},
            "sources": self.sources,
            "targets": self.targets,
            "pairs": {code: _hash(rows.to_list()) for code, rows in self.pairs.items()},
            "prompts": _hash(list(self.prompts)),
            "held_out": texts and _hash(texts),
            "scorer": dataclasses.asdict(ScorerIdentity.of(self.scorer)),
            "recipe": dataclasses.asdict(self.recipe),
            "neurons": None if self.neurons is None else _hash(sorted(self.neurons.neurons)),
            "identify_language": _name(self.identify_language),
            **self.sampling,
        }


def _by_language(pairs: PreferencePairs) -> dict[str, Dataset]:
    """Return the pairs of each language as a table without the column of languages."""
    names = column_names(pairs) or []
    if names and "language" not in names:
        raise ValueError(
            f"the pairs have no column 'language', only {', '.join(names)}: add one with the code of each language"
        )
    fields = [name for name in PAIR_FIELDS if name in names or name != "prompt"]
    table = columns(pairs, ["language", *fields], "preference pairs")
    codes = table.pop("language")
    languages.check(dict.fromkeys(codes))
    rows: dict[str, dict[str, list[Any]]] = {code: {name: [] for name in fields} for code in dict.fromkeys(codes)}
    for name, column in table.items():
        for code, value in zip(codes, column, strict=True):
            rows[code][name].append(value)
    return {code: Dataset.from_dict(rows[code]) for code in rows}


def _languages(
    of_pairs: Sequence[str], of_prompts: Sequence[str], only: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sources and the targets, after a check that there are enough and that each has rows."""
    chosen = None if only is None else languages.in_order(languages.check(only))
    sides = []
    for kind, rows, existing in (("source", "pairs", of_pairs), ("target", "prompts", of_prompts)):
        codes = languages.in_order(existing) if chosen is None else chosen
        if missing := [code for code in codes if code not in existing]:
            raise ValueError(
                f"there are no {rows} in {', '.join(missing)}: give some, or leave the language out of languages="
            )
        if len(codes) < _FEWEST:
            named = f" ({', '.join(codes)})" if codes else ""
            raise ValueError(f"{len(codes)} {kind} languages{named}: expected {rows} in {_FEWEST} or more")
        sides.append(codes)
    return sides[0], sides[1]


def _array(
    name: str, cells: Cells, sources: Sequence[str], targets: Sequence[str]
) -> Float[np.ndarray, "source target"]:
    """Return a property's cells as an array. A language and itself may have none, because no property counts there."""
    if name in BUILT_IN:
        raise ValueError(f"a property is called {name!r}, as one that is always there: give it another name")
    expected = [(source, target) for source in sources for target in targets]
    if unknown := [cell for cell in cells if cell not in set(expected)]:
        raise ValueError(
            f"the property {name!r} has a cell {unknown[0]!r}: expected (source, target), with a source of "
            f"{', '.join(sources)} and a target of {', '.join(targets)}"
        )
    if missing := [cell for cell in expected if cell not in cells and cell[0] != cell[1]]:
        raise ValueError(
            f"the property {name!r} lacks {len(missing)} of {len(expected)} cells, the first is {missing[0]!r}: give "
            "a number for each source and target"
        )
    if wrong := [cell for cell, number in cells.items() if not math.isfinite(number)]:
        raise ValueError(f"the property {name!r} is {cells[wrong[0]]} at {wrong[0]!r}: expected a finite number")
    return np.array([[cells.get((source, target), np.nan) for target in targets] for source in sources], dtype=float)


def _parallel(parallel: Parallel, codes: set[str]) -> dict[str, list[str]]:
    """Return the parallel sentences of these languages."""
    sentences = aligned_sentences(parallel)
    if missing := languages.in_order(codes - set(sentences)):
        raise ValueError(
            f"there are no parallel sentences in {', '.join(missing)}: give them in each source and target language"
        )
    return {code: sentences[code] for code in languages.in_order(codes)}


def _held_out(lm: HookedLM, held_out: Dataset, targets: Sequence[str]) -> Dataset:
    """Return the held-out texts of the targets."""
    check_held_out(lm, held_out)
    codes = list(held_out["language"])
    if missing := [code for code in targets if code not in codes]:
        raise ValueError(f"there are no held-out texts in {', '.join(missing)}: give some in each target language")
    return held_out.select([row for row, code in enumerate(codes) if code in targets])


def _as_many(pairs: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return as many pairs for each language, the first ones, with a warning where some have more."""
    counts = {code: len(rows) for code, rows in pairs.items()}
    fewest = min(counts, key=counts.__getitem__)
    if max(counts.values()) > counts[fewest]:
        warnings.warn(
            f"there are {counts[fewest]} pairs in {fewest} and up to {max(counts.values())} in other languages: each "
            f"is tuned on its first {counts[fewest]}, because a source with more pairs would seem to teach better",
            stacklevel=5,
        )
    return {code: rows.select(range(counts[fewest])) for code, rows in pairs.items()}


def _check_pairs(lm: HookedLM, pairs: Mapping[str, Dataset], recipe: Recipe) -> None:
    """Raise ValueError for pairs that cannot be tuned on. What is only worth a warning is told when they are."""
    logger = logging.getLogger("xlingtox.tuning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for code, rows in pairs.items():
            try:
                tunable_pairs(lm, rows, recipe=recipe)
            except ValueError as error:
                raise ValueError(f"the pairs of {languages.name(code)} ({code}): {error}") from error
    finally:
        logger.setLevel(level)


def _numbered(
    ids: Mapping[str, Sequence[Hashable]] | None, prompts: Sequence[Prompt], targets: Sequence[str]
) -> Int[np.ndarray, "target prompt"]:
    """Return a number for the meaning of each prompt. A prompt without an id is no other's translation."""
    n_prompts = [sum(prompt.language == code for prompt in prompts) for code in targets]
    numbers: dict[Hashable, int] = {}
    meanings = np.full((len(targets), max(n_prompts)), -1)
    for row, (code, n) in enumerate(zip(targets, n_prompts, strict=True)):
        of_language: Sequence[Hashable] = [None] * n if ids is None else ids[code]
        for place, meaning in enumerate(of_language):
            key = (row, place) if meaning is None or meaning != meaning else (meaning,)
            meanings[row, place] = numbers.setdefault(key, len(numbers))
    return meanings


def _hash(rows: Any) -> str:
    return digest({"rows": rows})[:16]


def _name(function: Any) -> str | None:
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)
