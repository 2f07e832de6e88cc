"""The reference's log-probabilities: of the pairs that training visits and no others, and of each pair once.

DPO compares the tuned model with the model before tuning. A short run visits few of many pairs, so only those are read
by the reference. What it gives is kept in a file, in which other recipes over the same pairs and model find it.

Rounding depends on how long the batch is and how many rows it has. So each pair is read in a batch of the shape that it
would have if all pairs were read in their order, as TRL does. What a pair gets does then not depend on the recipe's
steps or seed, nor on which run came first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset

from xlingtox import processes
from xlingtox.databases import connected, errors_explained, writing
from xlingtox.files import writable_folder
from xlingtox.progress import bar
from xlingtox.tuning.recipe import Method

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs (
    digest BLOB PRIMARY KEY, chosen REAL NOT NULL, rejected REAL NOT NULL
) WITHOUT ROWID;
"""
_AT_ONCE = 500
"""Digests in one query. SQLite limits how many values a query may hold."""

Shape = tuple[int, int]
"""The pairs in a batch, and the tokens to which each side is padded."""

LogProbs = tuple[float, float]
"""The reference's log-probability of a pair's chosen side, and of its rejected side."""


@dataclass(frozen=True)
class Columns:
    """The columns of a trainer's table that the reference reads, and those that it adds.

    KTO's table has pairs of another kind. Their sides are a continuation and one of another prompt.

    Attributes:
        sides: the columns with the tokens of the two sides of a row.
        log_probs: the columns for the log-probabilities of these sides.
    """

    sides: tuple[str, str]
    log_probs: tuple[str, str]

    def pairs(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows as pairs, with the columns `prompt_ids, chosen_ids, rejected_ids`."""
        chosen, rejected = self.sides
        return [
            {"prompt_ids": row["prompt_ids"], "chosen_ids": row[chosen], "rejected_ids": row[rejected]} for row in rows
        ]


@dataclass(frozen=True)
class Batch:
    """Pairs that the reference reads together.

    Attributes:
        rows: their numbers.
        size: the pairs in the batch; where there are fewer `rows`, the last is repeated.
        width: the tokens to which each side is padded.
    """

    rows: tuple[int, ...]
    size: int
    width: int

    @property
    def filled(self) -> list[int]:
        """The rows, the last one repeated until the batch has its size."""
        return [*self.rows, *[self.rows[-1]] * (self.size - len(self.rows))]


def visited(
    n: int,
    *,
    per_pass: int,
    accumulation: int,
    steps: int | None,
    epochs: float | None,
    seed: int,
    in_order: bool = False,
) -> set[int]:
    """Return the numbers of the rows that the steps will visit, of `n` rows, by the order of the trainer's sampler.

    Args:
        per_pass: the rows of one forward pass, in all processes together.
        accumulation: forward passes in one step.
        steps, epochs, seed: those of the recipe.
        in_order: whether the trainer visits the rows in their order.
    """
    steps_of_epoch = math.ceil(math.ceil(n / per_pass) / accumulation)
    left = math.ceil(float(epochs or 0) * steps_of_epoch) if steps is None else steps
    if in_order:
        return set(range(min(n, left * accumulation * per_pass)))
    sampler, seen, epoch = SeedableRandomSampler(range(n), data_seed=seed), set[int](), 0
    while left > 0 and len(seen) < n:
        sampler.set_epoch(epoch)
        seen.update(itertools.islice(sampler, min(left, steps_of_epoch) * accumulation * per_pass))
        left, epoch = left - steps_of_epoch, epoch + 1
    return seen


def shapes(pairs: Sequence[Mapping[str, Any]], *, size: int, room: int) -> list[Shape]:
    """Return the shape of the batch in which each pair would be if all were read in their order.

    Args:
        size: the pairs in a batch.
        room: the most tokens of prompt and continuation together.
    """
    widths = [max(len(ids) for ids in _sides(pair, room)) for pair in pairs]
    neighbours = [widths[row - row % size :][:size] for row in range(len(pairs))]
    return [(len(some), max(some)) for some in neighbours]


def batches(rows: Iterable[int], shape_of: Sequence[Shape]) -> list[Batch]:
    """Return the batches in which the reference reads these rows: each pair in a batch of its shape."""
    by_shape: dict[Shape, list[int]] = {}
    for row in sorted(rows):
        by_shape.setdefault(shape_of[row], []).append(row)
    # The largest first, so that memory runs out at once or not at all.
    return [
        Batch(tuple(some[start : start + shape[0]]), *shape)
        for shape, some in sorted(by_shape.items(), reverse=True)
        for start in range(0, len(some), shape[0])
    ]


def with_log_probs(
    trainer: Any,
    table: Dataset,
    rows: Iterable[int],
    *,
    columns: Columns,
    kept: Kept,
    size: int,
    room: int,
    progress: bool,
) -> Dataset:
    """Return the table with TRL's columns of the reference's log-probabilities: those of `rows`, and NaN elsewhere.

    A row that is visited all the same gives a loss of NaN, at which training stops.

    Args:
        trainer: TRL's trainer, whose model is not tuned yet. All processes call this together.
        table: the trainer's table.
        columns: its columns that the reference reads, and those to add.
    """
    examples, asked = table.to_list(), sorted(rows)
    pairs = columns.pairs(examples)
    shape_of = shapes(pairs, size=size, room=room)
    names = {row: kept.digest(pairs[row], room, shape_of[row]) for row in asked}
    found = processes.from_main(lambda: kept.read(list(names.values())))
    log_probs = {row: found[name] for row, name in names.items() if name in found}
    plan = batches((row for row in asked if row not in log_probs), shape_of)
    n, index = processes.count(), processes.index()
    with bar("reference log-probabilities", total=len(plan), unit="batch", progress=progress) as shown:
        for start in range(0, len(plan), n):
            turns = plan[start : start + n]
            # Sharded weights are gathered in each pass, so every process makes as many passes as the others.
            read = _read(trainer, examples, turns[min(index, len(turns) - 1)])
            computed = {row: values for part in processes.gathered(read) for row, values in part.items()}
            log_probs |= computed
            if processes.is_main():
                kept.write({names[row]: values for row, values in computed.items()})
            shown.update(len(turns))
    for side, column in enumerate(columns.log_probs):
        values = [log_probs[row][side] if row in log_probs else math.nan for row in range(len(examples))]
        table = table.add_column(column, values)
    return table


def _read(trainer: Any, examples: Sequence[Mapping[str, Any]], batch: Batch) -> dict[int, LogProbs]:
    """Return the log-probabilities of one batch's pairs."""
    collate = dataclasses.replace(trainer.data_collator, pad_to_multiple_of=batch.width)
    inputs = collate([examples[row] for row in batch.filled])
    inputs = {name: values.to(trainer.accelerator.device) for name, values in inputs.items()}
    # Under FSDP TRL loads a second model for the reference, and drops it before the first step.
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, inputs)
    return dict(zip(batch.rows, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=False))


def conditions(fingerprint: str, model: Any, bits: int | None, autocast: bool, method: Method) -> dict[str, Any]:
    """Return all that the reference's log-probabilities depend on besides the pairs and the shapes of batches.

    Args:
        fingerprint: that of the model that was given.
        model: the Hugging Face model that is going to be tuned.
        bits: the bits to which it was quantised; None if it was not.
        autocast: whether training computes in bfloat16.
        method: that of the recipe: another trainer reads the sides in another way.
    """
    config = model.config.to_dict()
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    on_gpu = model.device.type == "cuda"
    # Records of older versions, all of them DPO's, do not name the method.
    named = {} if method == "dpo" else {"method": method}
    return named | {
        "model": [fingerprint, bits, str(model.dtype), autocast],
        "config": _digest(config).hex(),
        "attention": model.config._attn_implementation,
        "versions": [version(name) for name in ("torch", "transformers", "trl")],
        "machine": torch.cuda.get_device_name(model.device)
        if on_gpu
        else [model.device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
    }


class Kept:
    """A SQLite file of log-probabilities, or nothing where the file cannot be used: they are computed again then.

    Example:
        >>> from xlingtox.tuning.reference import Kept
        >>> kept = Kept({"model": "a fingerprint"}, tmp_path / "reference.sqlite")
        >>> name = kept.digest({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}, 8, (4, 5))
        >>> kept.write({name: (-1.5, -2.0)})
        >>> kept.read([name]) == {name: (-1.5, -2.0)}
        True
    """

    def __init__(self, about: Mapping[str, Any], path: Path | None = None) -> None:
        """Describe the model and all that its log-probabilities depend on, in values that JSON can hold.

        Args:
            path: the file; None is `default_path()`.
        """
        self._about = _digest(dict(about))
        self._path: Path | None = default_path() if path is None else path

    def digest(self, pair: Mapping[str, Any], room: int, shape: Shape) -> bytes:
        """Return the name under which a pair is kept: its tokens up to `room`, and the shape of its batch."""
        return _digest([self._about.hex(), min(len(pair["prompt_ids"]), room), *_sides(pair, room), *shape])

    def read(self, digests: Sequence[bytes]) -> dict[bytes, LogProbs]:
        """Return what is kept of these."""

        def read(db: sqlite3.Connection) -> dict[bytes, LogProbs]:
            found: dict[bytes, LogProbs] = {}
            for start in range(0, len(digests), _AT_ONCE):
                some = digests[start : start + _AT_ONCE]
                asked = f"SELECT digest, chosen, rejected FROM pairs WHERE digest IN ({', '.join('?' * len(some))})"
                found |= {digest: (chosen, rejected) for digest, chosen, rejected in db.execute(asked, some)}
            return found

        return self._using(read) or {}

    def write(self, log_probs: Mapping[bytes, LogProbs]) -> None:
        """Keep these, all in one step: a process that is killed loses no batch but the one that it reads."""
        rows = [(digest, *values) for digest, values in log_probs.items() if not any(map(math.isnan, values))]

        def write(db: sqlite3.Connection) -> None:
            with writing(db):
                db.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?, ?)", rows)

        self._using(write)

    def _using(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Work on the open file. Where it cannot be used, say so once, and do without it from then on."""
        if self._path is None:
            return None
        try:
            writable_folder(self._path.parent)
            with (
                errors_explained(self._path, "log-probabilities", "delete it, and they are computed again"),
                closing(connected(self._path, _SCHEMA, version=_VERSION)) as db,
            ):
                return work(db)
        except (OSError, ValueError) as error:
            _LOG.warning("the reference's log-probabilities are not kept: %s", error)
            self._path = None
            return None


def default_path() -> Path:
    """Return the file of log-probabilities: `xlingtox/reference.sqlite` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xlingtox" / "reference.sqlite"


def _sides(pair: Mapping[str, Any], room: int) -> tuple[list[int], list[int]]:
    """Return the tokens of prompt and chosen side, and those of prompt and rejected side, as they are cut."""
    prompt = list(pair["prompt_ids"])
    return (prompt + list(pair["chosen_ids"]))[:room], (prompt + list(pair["rejected_ids"]))[:room]


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()
