"""Asked: the arguments of a comparison of methods, checked before any work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from xlingtox.data import Prompt
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.data.translations import Parallel, sentence_pairs
from xlingtox.evaluation.fluency import check_held_out
from xlingtox.frontiers.defaults import default_methods, tuned_methods
from xlingtox.frontiers.halves import UNEDITED
from xlingtox.languages import in_order
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Method
from xlingtox.models.generation import check_lengths, check_sampling
from xlingtox.models.hooked import HookedLM
from xlingtox.models.interpolated import check_interpolable
from xlingtox.scoring.protocol import Scorer, check_covered


@dataclass(frozen=True)
class Asked:
    """The arguments of `frontier`, checked before any work.

    Attributes:
        are_all: whether the methods are all that there are, because none was named.
    """

    prompts: Sequence[Prompt]
    scorers: Mapping[str, Scorer]
    held_out: Dataset
    methods: Sequence[Method]
    budgets: tuple[float, ...]
    generation: Mapping[str, Any]
    are_all: bool

    @classmethod
    def of(
        cls,
        lm: HookedLM,
        prompts: Sequence[Prompt],
        *,
        labelled: Labelled | PreferencePairs,
        scorer: Scorer | Mapping[str, Scorer],
        held_out: Dataset,
        methods: Sequence[Method] | None,
        tuned: HookedLM | Mapping[str, HookedLM] | None,
        budgets: Sequence[float],
        parallel: Parallel | None,
        source_language: str,
        generation: Mapping[str, Any],
    ) -> Asked:
        """Check all arguments, and fill in what stands for others."""
        check_sampling(**generation, temperature=1.0, top_p=1.0, batch_size=None)
        if wrong := [budget for budget in budgets if not (math.isfinite(budget) and budget > 1)]:
            raise ValueError(f"a budget is {wrong[0]:g}: expected multiples above 1, such as 1.1 for ten percent more")
        if not budgets:
            raise ValueError("there are no budgets: expected multiples above 1, such as 1.1 for ten percent more")
        lm.check_unedited("methods do not show")
        models = {} if tuned is None else {"DPO": tuned} if isinstance(tuned, HookedLM) else dict(tuned)
        for model in models.values():
            check_interpolable(lm, model)
        chosen = default_methods(models) if methods is None else (*methods, *tuned_methods(models))
        _check_names(chosen)
        codes = in_order({prompt.language for prompt in prompts})
        check_lengths(lm, prompts, int(generation["max_new_tokens"]))
        scorers = dict(scorer) if isinstance(scorer, Mapping) else {scorer.name: scorer}
        if not scorers:
            raise ValueError("there is no scorer: expected at least one")
        for one in scorers.values():
            check_covered(one, codes)
        if source_language not in codes:
            raise ValueError(
                f"there are no prompts in {source_language}, the source language: give some, or source_language="
            )
        _check_two(Counter(prompt.language for prompt in prompts), codes, "prompts")
        held_out = _readable(lm, held_out, codes)
        if parallel is not None:
            sentence_pairs(parallel, pivot=source_language)
        Examples.of(labelled)
        rising = tuple(sorted(set(map(float, budgets))))
        return cls(prompts, scorers, held_out, chosen, rising, generation, are_all=methods is None)

    def check_room(self, lm: HookedLM, fitted: Method) -> None:
        """Raise ValueError if a method, such as a prefix, leaves no room for texts that the unedited model can read.

        Otherwise both would be measured on other tokens.
        """
        if fitted.dial == "continuous" or not isinstance(model := fitted.at(1.0), HookedLM):
            return
        check_lengths(model, self.prompts, int(self.generation["max_new_tokens"]))
        longest = max(map(len, lm.token_ids(list(self.held_out["text"]))))
        if min(longest, lm.n_positions) > model.n_positions:
            raise ValueError(
                f"{fitted.name} leaves room for {model.n_positions} tokens, and a held-out text has {longest}: give "
                "shorter texts, or a shorter prefix"
            )


def _check_names(methods: Sequence[Method]) -> None:
    if not methods:
        raise ValueError("there are no methods to compare: expected at least one, or None for all")
    names = Counter(method.name for method in methods)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two methods are called {twice[0]!r}: give one another name, with name=")
    if UNEDITED in names:
        raise ValueError(f"a method is called {UNEDITED!r}, as tables call the model itself: give another name, name=")


def _check_two(counts: Mapping[str, int], codes: Sequence[str], kind: str) -> None:
    if few := [code for code in codes if counts.get(code, 0) < 2]:
        raise ValueError(
            f"there are fewer than two {kind} in {', '.join(few)}: strengths are chosen on one half and reported on "
            "the other"
        )


def _readable(lm: HookedLM, held_out: Dataset, codes: Sequence[str]) -> Dataset:
    """Return the held-out texts of the languages of the prompts, after a check that each has two."""
    check_held_out(lm, held_out)
    rows = [i for i, code in enumerate(held_out["language"]) if code in codes]
    chosen = held_out.select(rows)
    lengths = map(len, lm.token_ids(list(chosen["text"]))) if rows else ()
    counts = Counter(code for code, length in zip(chosen["language"], lengths, strict=True) if length > 1)
    _check_two(counts, codes, "held-out texts")
    return chosen
