"""Write the same prompts under many edits: as many edits in one batch as make it faster, and one by one beyond."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from xlingtox.checking import checked
from xlingtox.data import Prompts, as_prompts
from xlingtox.edits.interventions import Description, Intervention
from xlingtox.edits.together import Together
from xlingtox.models.batching import in_batches, rows_that_fit
from xlingtox.models.generation import Continuations, check_lengths, check_sampling, continued, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import Batches
from xlingtox.models.saturation import rows_that_pay
from xlingtox.progress import bar

T = TypeVar("T")
E = TypeVar("E", bound=Intervention)

_MOST_TEXTS = 10_000
"""Hold the texts of several edits at once up to this number."""


@checked
def generate_under(
    lm: HookedLM,
    edits: Sequence[Intervention],
    prompts: Prompts,
    *,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    temperature: float = 0.9,
    top_p: float = 0.8,
    greedy: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> list[Continuations]:
    """Continue each prompt under each edit: what `generate` writes in a block of each, in less time.

    Few rows take about as long as many, because each step reads all weights of the model. So rows of several edits are
    put into one batch, as far as that makes them faster on this kind of device. The texts are those that `generate`
    writes under each edit alone. In a study, each edit's texts are kept, and are found whatever the other edits are.

    Args:
        edits: the edits. They are not added up: each acts on texts of its own.
        prompts: texts, conversations or a table of them, as `data.as_prompts` takes them.
        n_samples, max_new_tokens, temperature, top_p, greedy, seed: as in `generate`. All edits draw with the same
            random numbers.

    Returns:
        the continuations under each edit, in the order of the edits.

    Raises:
        ValueError: an edit does not fit the model; or there is a reason for which `generate` raises it.
        HookNeverFired: an edit acts at some positions only, and met none of them.

    Example:
        >>> doses = [xt.Offset(sources, value) for value in (-1.0, -2.0, -3.0)]
        >>> written = xt.edits.generate_under(lm, doses, prompts, n_samples=2, max_new_tokens=4, progress=False)
        >>> with doses[2].on(lm):
        ...     written[2] == xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, progress=False)
        True
    """
    sizes: dict[str, Any] = {"max_new_tokens": max_new_tokens, "n_samples": n_samples}
    drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    check_sampling(**sizes, **drawing, batch_size=None)
    prompt_list = as_prompts(prompts, tokenizer=lm.tokenizer)
    positions = max(check_lengths(lm, prompt_list, max_new_tokens)) + max_new_tokens
    samples = 1 if greedy else n_samples
    n_rows = len(prompt_list) * samples
    sampling = {} if greedy else drawing
    settings: dict[str, object] = {"max_new_tokens": max_new_tokens, "greedy": greedy, **sampling}
    numbers = list(range(samples))
    with bar("writing", total=n_rows * len(edits), unit="text", progress=progress) as shown:

        def alone() -> list[str]:
            written = generate(lm, prompt_list, **sizes, **drawing, greedy=greedy, progress=False)
            shown.update(n_rows)
            return list(written.texts)

        def together(n_edits: int) -> list[list[str]]:
            texts = continued(lm, prompt_list, numbers, max_new_tokens, sampling, edits=n_edits)
            shown.update(n_rows * n_edits)
            return [texts[i * n_rows : (i + 1) * n_rows] for i in range(n_edits)]

        texts = results_under(
            lm,
            edits,
            alone,
            together,
            at_once=edits_at_once(lm, n_rows, positions),
            batches=lambda: Batches("texts", "generate", [lm], settings),
            batch=[prompt_list, lm.token_ids([prompt.text for prompt in prompt_list]), numbers],
            dump=lambda batch: json.dumps(batch).encode(),
            load=json.loads,
        )
    written = []
    for edit, edit_texts in zip(edits, texts, strict=True):
        with named(lm, edit):
            model = dataclasses.asdict(lm.identity())
        written.append(Continuations(tuple(prompt_list), samples, tuple(edit_texts), {"model": model, **settings}))
    return written


def named(lm: HookedLM, edit: Intervention) -> AbstractContextManager[None]:
    """Return a block in which the model is called what it is under the edit. It need not run there."""
    return lm.hooks(edit=Description(edit))


def in_parts(edits: Sequence[E], n_texts: int) -> Iterator[Sequence[E]]:
    """Yield the edits in parts whose texts can be held at once.

    Args:
        n_texts: the texts under one edit.
    """
    size = max(1, _MOST_TEXTS // n_texts)
    for start in range(0, len(edits), size):
        yield edits[start : start + size]


def edits_at_once(lm: HookedLM, n_rows: int, positions: int, *, tokens: bool = False) -> int:
    """Return how many edits to put into one batch: as many as make it faster and fit into memory, at least 1.

    Args:
        n_rows: the rows of one edit.
        positions: the tokens of the longest row.
        tokens: whether all tokens of a row are read in one pass; else one token at a time.
    """
    n_passed = n_rows * positions if tokens else n_rows
    pays = rows_that_pay(lm) // n_passed
    return 1 if pays < 2 else max(1, min(pays, rows_that_fit(lm, positions, positions if tokens else 1) // n_rows))


def results_under(
    lm: HookedLM,
    edits: Sequence[Intervention],
    alone: Callable[[], T],
    together: Callable[[int], list[T]],
    *,
    at_once: int,
    batches: Callable[[], Batches],
    batch: Any,
    dump: Callable[[T], bytes],
    load: Callable[[bytes], T],
) -> list[T]:
    """Return the results of one batch under each edit. Each is looked up, and kept, as that of its edit alone.

    Args:
        alone: a function that computes the result in a block of one edit, and looks it up and keeps it by itself.
        together: a function that computes the results in a block of as many edits as it is told.
        at_once: how many edits to put into one batch.
        batches: a function that returns where the result under the edit is kept, called in a block of its name.
        batch, dump, load: as in `Batches.get`.
    """
    lm.check_alone()
    for step in (step for edit in edits for step in edit.steps()):
        step.check(lm)
    if at_once < 2:
        return [_under(lm, edit, alone) for edit in edits]
    kept = []
    for edit in edits:
        with named(lm, edit):
            kept.append(batches())
    results = {i: result for i, known in enumerate(kept) if (result := known.known(batch, load)) is not None}

    def compute(group: list[int]) -> None:
        if len(group) == 1:
            results[group[0]] = _under(lm, edits[group[0]], alone)
            return
        with Together(tuple(edits[i] for i in group)).on(lm):
            computed = together(len(group))
        for i, result in zip(group, computed, strict=True):
            results[i] = kept[i].get(batch, lambda result=result: result, dump=dump, load=load)

    missing = [i for i in range(len(edits)) if i not in results]
    # Groups of the same size: five edits are three and two, and not four and one.
    n_groups = math.ceil(len(missing) / at_once)
    in_batches(missing, math.ceil(len(missing) / max(1, n_groups)), compute)
    return [results[i] for i in range(len(edits))]


def _under(lm: HookedLM, edit: Intervention, compute: Callable[[], T]) -> T:
    with edit.on(lm):
        return compute()
