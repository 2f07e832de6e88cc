"""Write the same prompts under many edits: as many edits in one batch as make it faster, and one by one beyond."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from xlingtox import processes
from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.edits.interventions import Description, Intervention
from xlingtox.edits.together import Together
from xlingtox.models.batches import Batches, Codec
from xlingtox.models.batching import MOST_TEXTS, rows_that_fit
from xlingtox.models.continuations import continuations_of, marked_texts
from xlingtox.models.generation import (
    TEXTS,
    Continuations,
    check_lengths,
    check_sampling,
    continued,
    generate,
)
from xlingtox.models.hooked import HookedLM
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
        >>> written = xt.generate_under(lm, doses, prompts, n_samples=2, max_new_tokens=4, progress=False)
        >>> with doses[2].on(lm):
        ...     written[2] == xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, progress=False)
        True
    """
    sizes: dict[str, Any] = {"max_new_tokens": max_new_tokens, "n_samples": n_samples}
    drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    check_sampling(**sizes, **drawing, batch_size=None)
    prompt_list = lm.as_prompts(prompts)
    positions = max(check_lengths(lm, prompt_list, max_new_tokens)) + max_new_tokens
    samples = 1 if greedy else n_samples
    n_rows = len(prompt_list) * samples
    sampling = {} if greedy else drawing
    settings: dict[str, object] = {"max_new_tokens": max_new_tokens, "greedy": greedy, **sampling}
    numbers = list(range(samples))
    with bar("writing", total=n_rows * len(edits), unit="text", progress=progress) as shown:
        texts = results_under(
            lm,
            edits,
            lambda: marked_texts(lm, generate(lm, prompt_list, **sizes, **drawing, greedy=greedy, progress=False)),
            lambda n_edits: _split(
                continued(lm, prompt_list, numbers, max_new_tokens, sampling, edits=n_edits), n_edits
            ),
            plan=Plan.of(lm, n_rows, positions),
            batches=lambda: Batches("texts", "generate", [lm], settings),
            about=[prompt_list, lm.token_ids([prompt.text for prompt in prompt_list]), numbers],
            codec=TEXTS,
            done=lambda n_edits: shown.update(n_rows * n_edits),
        )
    written = []
    for edit, edit_texts in zip(edits, texts, strict=True):
        with named(lm, edit):
            model = dataclasses.asdict(lm.identity())
        written.append(
            continuations_of(lm, prompt_list, edit_texts, n_samples=samples, settings={"model": model, **settings})
        )
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


@dataclass(frozen=True)
class Plan:
    """The number of edits that run together.

    Attributes:
        at_once: the edits that share a batch: as many as make it faster and fit into memory, at least 1.
        is_one_batch: whether all rows of an edit fit into one batch.
    """

    at_once: int
    is_one_batch: bool

    @classmethod
    def of(cls, lm: HookedLM, n_rows: int, positions: int, *, whole: bool = False) -> Plan:
        """Plan for edits of `n_rows` rows each, in every process the same.

        Args:
            positions: the tokens of the longest row.
            whole: whether a pass reads all tokens of a row; else it reads one token at a time.
        """

        def planned() -> Plan:
            fitting = rows_that_fit(lm, positions, positions if whole else 1)
            fitting = min(fitting, MOST_TEXTS) if whole else fitting
            pays = rows_that_pay(lm) // (n_rows * positions if whole else n_rows)
            return cls(max(1, min(pays, fitting // n_rows)), n_rows <= fitting)

        return processes.from_main(planned)

    def groups(self, n_edits: int) -> list[tuple[int, ...]]:
        """Return the numbers of the edits that run together. Groups have about one size: five edits are three and two.

        Example:
            >>> from xlingtox.edits.under import Plan
            >>> Plan(at_once=4, is_one_batch=True).groups(5)
            [(0, 1, 2), (3, 4)]
        """
        size = math.ceil(n_edits / math.ceil(n_edits / self.at_once)) if n_edits else 1
        return [tuple(range(start, min(start + size, n_edits))) for start in range(0, n_edits, size)]


def results_under(
    lm: HookedLM,
    edits: Sequence[Intervention],
    alone: Callable[[], T],
    together: Callable[[int], list[T]],
    *,
    plan: Plan,
    batches: Callable[[], Batches],
    about: Any = None,
    codec: Codec[T] | None = None,
    done: Callable[[int], Any] = lambda n_edits: None,
) -> list[T]:
    """Return the result of the same rows under each edit. Each is looked up, and kept, as that of its edit alone.

    Several processes share out the edits.

    Args:
        alone: a function that computes the result in a block of one edit, and looks it up and keeps it by itself.
        together: a function that computes the results in a block of as many edits as it is told.
        plan: how many edits run together.
        batches: a function that says where the result under an edit is kept. It is called in a block of that name.
        about: what the result depends on besides, in values that JSON can hold.
        codec: how a journal keeps a result; None where none shall.
        done: a function that is told of how many edits the results have come.
    """
    lm.check_alone()
    for step in (step for edit in edits for step in edit.steps()):
        step.check(lm)
    if plan.at_once == 1 and not (plan.is_one_batch and processes.count() > 1):
        return [_alone(lm, edit, alone, done) for edit in edits]
    kept = []
    for edit in edits:
        with named(lm, edit):
            kept.append(batches())
    results: list[T | None] = [None] * len(edits)
    if codec is not None:
        results = processes.from_main(lambda: [one.known(about, codec) for one in kept])
    if n_known := sum(result is not None for result in results):
        lm.spare_hooks()
        done(n_known)

    def compute(batch: list[tuple[int, ...]]) -> list[T]:
        (group,) = batch
        if len(group) == 1:
            return [_alone(lm, edits[group[0]], alone)]
        with Together(tuple(edits[i] for i in group)).on(lm):
            return together(len(group))

    def keep(batch: list[tuple[int, ...]], computed: list[T]) -> None:
        (group,) = batch
        for i, result in zip(group, computed, strict=True):
            results[i] = result if codec is None else kept[i].keep(about, codec, result)
        done(len(group))

    # The groups are those of all edits, so that a resumed call puts the same rows together.
    missing = [tuple(i for i in group if results[i] is None) for group in plan.groups(len(edits))]
    Batches(None, "under edits", [lm]).each([group for group in missing if group], 1, compute, keep, smaller=_halved)
    return [result for result in results if result is not None]


def _alone(
    lm: HookedLM, edit: Intervention, compute: Callable[[], T], done: Callable[[int], Any] = lambda n_edits: None
) -> T:
    with edit.on(lm):
        result = compute()
    done(1)
    return result


def _halved(groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Cut groups of edits in halves. Return none where the first is a single edit."""
    if len(groups[0]) == 1:
        return []
    halves = (half for group in groups for half in (group[: len(group) // 2], group[len(group) // 2 :]))
    return [half for half in halves if half]


def _split(texts: list[str], n_parts: int) -> list[list[str]]:
    size = len(texts) // n_parts
    return [texts[start : start + size] for start in range(0, len(texts), size)]
