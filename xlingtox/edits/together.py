"""Together: several edits at once, each on rows of its own, so that one pass of the model serves all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.edits.change import Change
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.step import Columns, Reader, SourceActivations, Step, read_places, sources_running
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.models.sites import Place


@checked
@dataclass(frozen=True, repr=False)
class Together:
    """Several edits on one model at once: each row of a batch runs under one of them.

    A forward pass over few rows takes about as long as a pass over many, because it has to read all weights. So a sweep
    of doses and random controls costs a fraction of what its edits cost one after the other. Each row is edited as
    under its edit alone. `generate_under` writes text in this way, and `dose_response` and `patch_effect` use it.

    Attributes:
        edits: the edits. Rows name them by their numbers, from 0 on.

    Example:
        >>> ids, mask = lm.encode(["the cat", "the cat"])
        >>> with xt.Together([xt.Offset(sources, -1.0), xt.Scale(sources, 0.0)]).on(lm):
        ...     both = lm.logits(ids, mask, edits=[0, 1])
        >>> with xt.Scale(sources, 0.0).on(lm):
        ...     torch.allclose(lm.logits(ids[1:], mask[1:]), both[1:], atol=1e-4)
        True
    """

    edits: Sequence[Intervention]

    def __post_init__(self) -> None:
        if not self.edits:
            raise ValueError("there are no edits to run together: expected at least one")
        object.__setattr__(self, "edits", tuple(self.edits))

    def __repr__(self) -> str:
        return f"Together({len(self.edits)} edits)"

    @checked
    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run each row under its own edit; afterwards the model is as before, also after an exception.

        Inside, `lm.logits` and `lm.extend` need `edits=`, the number of each row's edit. Edits whose blocks were
        entered earlier apply first, to all rows.

        Raises:
            ValueError: a neuron is outside the model; the model runs several edits together already; another model is
                being patched from this one; or an edit is a Patch from cached activations, which belong to one batch.
            HookNeverFired: no row ran under one of the edits, or an edit for some positions met none of them.
        """
        if any(isinstance(edit, Together) for edit in lm.open_edits):
            raise ValueError(f"{lm.name} runs several edits together already: rows have one number, for one such block")
        lm.check_alone()
        steps = [step for edit in self.edits for step in edit.steps()]
        for step in steps:
            step.check(lm)
            if step.serves_one_batch:
                raise ValueError(f"{step!r} serves one batch of rows: it cannot run together with other edits")
        met = _Met()
        with sources_running(lm, read_places(steps)) as source_activations:
            tables = _tables(lm, [edit.steps() for edit in self.edits], source_activations)
            hooks = {place: _hook(lm, place, by_pass, met) for place, by_pass in tables.items()}
            with lm.hooks(at=hooks, edit=self):
                yield
        for number, edit in enumerate(self.edits):
            if any(not met.any_of(step, number) for step in edit.steps()):
                raise HookNeverFired(f"{edit!r} never acted on {lm.name}: no row that it is for was run")


@dataclass
class _Met:
    """The numbers of the edits whose rows were run, in first passes and in those that continue."""

    first: set[int] = field(default_factory=set)
    continuing: set[int] = field(default_factory=set)

    def add(self, numbers: Int[Tensor, "row"], continuing: bool) -> None:
        (self.continuing if continuing else self.first).update(numbers.tolist())

    def any_of(self, step: Step, number: int) -> bool:
        """Return whether a pass met the step of this edit at the positions where it acts."""
        met = {"prompt": self.first, "new": self.continuing}
        return number in met.get(step.positions, self.first | self.continuing)


@dataclass
class _Table:
    """One step of each edit, for the columns of one place. The tensors have a row for each edit, or for each text.

    A step of fewer columns than others repeats one of its own. Where an edit has no step, a column is left as it is.

    Attributes:
        columns: the indices of the columns; None for all of them.
        change: what steps that do the same in every pass make of them.
        copied: the activations of other models by place, which replace these where the mask says so.
        others: steps whose numbers are not known in advance, each with its columns, its reader and a mask of the rows.
    """

    columns: Int[Tensor, "row 1 column"] | None
    change: Change
    copied: Sequence[tuple[Mapping[Place, Tensor], Bool[Tensor, "row 1 column"]]]
    others: Sequence[tuple[Step, Int[Tensor, "column"], Reader, Bool[Tensor, "row"]]]

    def of_rows(self, numbers: Int[Tensor, "row"]) -> _Table:
        """Return the table with a row for each text, from the numbers of the texts' edits."""
        return _Table(
            None if self.columns is None else self.columns[numbers],
            self.change.of_rows(numbers),
            [(by_place, mask[numbers]) for by_place, mask in self.copied],
            [(step, columns, read, mask[numbers]) for step, columns, read, mask in self.others],
        )

    def apply(self, place: Place, activations: Float[Tensor, "row pos column"]) -> None:
        """Edit the activations in place. Each row is edited by the same arithmetic as under its edit alone."""
        indices = None if self.columns is None else self.columns.expand(-1, activations.shape[1], -1)
        edited = self.change.apply(activations if indices is None else activations.gather(-1, indices))
        for by_place, is_copied in self.copied:
            values = by_place[place].to(activations)
            edited = torch.where(is_copied, values if indices is None else values.gather(-1, indices), edited)
        if indices is None:
            activations.copy_(edited)
        else:
            activations.scatter_(-1, indices, edited)
        for step, columns, read, is_chosen in self.others:
            rows = is_chosen.nonzero().squeeze(-1)
            if not len(rows):
                continue
            numbers = read()
            part = activations[rows]
            part[..., columns] = step.apply(part[..., columns], numbers[rows] if numbers.ndim == 3 else numbers)
            activations[rows] = part


def _hook(lm: HookedLM, place: Place, tables: Mapping[bool, Sequence[_Table]], met: _Met) -> Hook:
    """Return the hook that applies the tables of a place, one after the other.

    Args:
        tables: the tables for first passes (False) and for those that continue (True).
    """
    numbers_before: Tensor | None = None
    of_rows: dict[bool, list[_Table]] = {}

    def edit(activations: Tensor) -> Tensor | None:
        nonlocal numbers_before, of_rows
        if lm.current_pass is None:
            raise RuntimeError("edits that run together need HookedLM's own calls: those of .tl do not tell rows apart")
        numbers, continuing = lm.current_pass.edits, lm.current_pass.continuing
        if numbers is None or len(numbers) != len(activations):
            raise ValueError(
                f"{len(activations)} rows, and the edits of {0 if numbers is None else len(numbers)} are known: "
                f"expected edits=, the number of each row's edit, in a block of edits that run together on {lm.name}"
            )
        # While text is written, the rows are the same for many passes.
        if numbers is not numbers_before:
            numbers_before, of_rows = numbers, {}
        if continuing not in of_rows:
            met.add(numbers, continuing)
            on_device = numbers.to(activations.device)
            of_rows[continuing] = [table.of_rows(on_device) for table in tables[continuing]]
        if not of_rows[continuing]:
            return None
        edited = activations.clone()
        for table in of_rows[continuing]:
            table.apply(place, edited)
        return edited

    return edit


def _tables(
    lm: HookedLM, edits: Sequence[Sequence[Step]], source_activations: SourceActivations
) -> dict[Place, dict[bool, list[_Table]]]:
    """Return the tables of each place: the first steps of all edits, then their second steps, and so on.

    There is one list for first passes (False), and one for passes that continue (True).
    """
    columns_of = {id(step): step.by_place(lm) for steps in edits for step in steps}
    everywhere = all(step.positions == "all" for steps in edits for step in steps)
    tables: dict[Place, dict[bool, list[_Table]]] = {}
    for place in sorted({place for by_place in columns_of.values() for place in by_place}):
        by_pass: dict[bool, list[_Table]] = {}
        for continuing in (False, True):
            if continuing and everywhere:
                by_pass[True] = by_pass[False]
                continue
            acting = [
                {
                    number: (steps[i], columns_of[id(steps[i])][place])
                    for number, steps in enumerate(edits)
                    if i < len(steps)
                    and place in columns_of[id(steps[i])]
                    and (steps[i].positions == "all" or (steps[i].positions == "new") == continuing)
                }
                for i in range(max(map(len, edits)))
            ]
            by_pass[continuing] = [
                _table(lm, place, len(edits), steps, source_activations) for steps in acting if steps
            ]
        tables[place] = by_pass
    return tables


def _table(
    lm: HookedLM,
    place: Place,
    n_edits: int,
    steps: Mapping[int, tuple[Step, Columns]],
    source_activations: SourceActivations,
) -> _Table:
    """Return one step of each edit for the columns of a place.

    Args:
        steps: the number of an edit to its step, with the columns that it changes there.
    """
    width, device = max(len(columns.indices) for _, columns in steps.values()), lm.device_of(place[1])
    chosen_columns = torch.zeros(n_edits, width, dtype=torch.long)
    changes: dict[int, tuple[Change, Sequence[int]]] = {}
    copied: dict[HookedLM, Tensor] = {}
    others: list[tuple[Step, Tensor, Reader, Tensor]] = []
    for number, (step, columns) in steps.items():
        indices = torch.tensor(columns.indices)
        filled = [*range(len(indices)), *[0] * (width - len(indices))]
        if (change := step.change(place, columns)) is not None:
            changes[number] = change, filled
        elif sources := step.sources():
            (source,) = sources
            copied.setdefault(source, torch.zeros(n_edits, 1, width, dtype=torch.bool))[number] = True
        else:
            read = step.reader(lm, place, columns, source_activations=source_activations)
            others.append((step, indices.to(device), read, torch.arange(n_edits, device=device) == number))
            continue
        chosen_columns[number] = indices[filled]
    partial = [number for number, (_, columns) in steps.items() if not columns.are_all(lm, place)]
    return _Table(
        chosen_columns[:, None].to(device) if partial else None,
        Change.stacked(changes, n_edits, width).to(lm.dtype, device),
        [(source_activations[source], mask.to(device)) for source, mask in copied.items()],
        others,
    )
