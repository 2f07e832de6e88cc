"""The folder of a matrix: which matrix it holds, its cells, its tuned models, and the journals of unfinished work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from xlingtox import files, processes
from xlingtox.matrix.runs import Cell, Run
from xlingtox.models.journal import Journal, using

_KEPT = frozenset({"recipe.json", "log.json"})
"""The files of a tuning run that stay when its weights are removed."""


class MatrixFolder:
    """A folder that holds one matrix and nothing else.

    `matrix.json` says which matrix it is. `cells/` has a file for each model and target, and `tuned/` and `shuffled/` a
    tuning run for each source. What models wrote is in `texts.sqlite`. What they read is in files of numbers, which are
    removed when the cells that need them are written.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = files.writable_folder(path)
        self._record, self._cells = self.path / "matrix.json", self.path / "cells"

    def claim(self, record: Mapping[str, Any]) -> None:
        """Make the folder that of this matrix.

        Args:
            record: all that the cells depend on, in values that JSON can hold.

        Raises:
            ValueError: the folder holds another matrix, or cells of which nobody knows whose they are.
        """
        processes.from_main(partial(self._claim, record))

    def _claim(self, record: Mapping[str, Any]) -> None:
        files.sweep(self._cells)
        if not self._record.is_file():
            if self._cells.exists():
                raise ValueError(f"{self.path} holds cells, and no matrix.json says of which matrix: give a new folder")
            files.write_json(self._record, record)
        remedy = "which matrix the folder holds is not known, give a new folder"
        stored = files.read_json(self._record, remedy)
        with files.understood(self._record, "record of a matrix", remedy):
            asked = json.loads(json.dumps(record))
            differing = [name for name in asked if stored.get(name) != asked[name]]
        if differing:
            raise ValueError(f"{self.path} holds another matrix (other {', '.join(differing)}): give a new folder")
        self._cells.mkdir(exist_ok=True)

    def tuning(self, run: Run) -> Path:
        """Return the folder of a tuning run."""
        return self.path / run.kind / run.source

    def has(self, run: Run, targets: Sequence[str]) -> bool:
        """Return whether all cells of a run are written."""
        return processes.from_main(lambda: all(self._cell(run, target).is_file() for target in targets))

    def write(self, run: Run, cells: Mapping[str, Cell]) -> None:
        """Write the cells of a run that are not written yet, by target."""

        def write() -> None:
            for target, cell in cells.items():
                if not (file := self._cell(run, target)).is_file():
                    cell.save(file)

        processes.from_main(write)

    def read(self, runs: Sequence[Run], targets: Sequence[str]) -> list[list[Cell]]:
        """Return the cells of all runs, by run and target."""
        return processes.from_main(lambda: [[Cell.load(self._cell(run, target)) for target in targets] for run in runs])

    def journal(self, run: Run) -> AbstractContextManager[None]:
        """Keep in the block what models write, and what they read for this run."""
        return using(self._journal(run))

    def forget(self, run: Run) -> None:
        """Remove what was read for a run: its cells are written."""
        processes.from_main(partial(self._journal(run).forget, "numbers"))

    def ready_to_tune(self, run: Run) -> Path:
        """Return the folder in which a run is tuned, without what is left of it where its weights were removed."""

        def clear() -> None:
            folder = self.tuning(run)
            if folder.is_dir() and {path.name for path in folder.iterdir()} == _KEPT:
                shutil.rmtree(folder)

        processes.from_main(clear)
        return self.tuning(run)

    def remove_weights(self, run: Run) -> None:
        """Remove the tuned model of a run. How it was tuned, and its losses, stay."""

        def remove() -> None:
            if not (folder := self.tuning(run)).is_dir():
                return
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in _KEPT:
                    path.unlink()

        processes.from_main(remove)

    def _cell(self, run: Run, target: str) -> Path:
        return self._cells / f"{run.name}-{target}.safetensors"

    def _journal(self, run: Run) -> Journal:
        return Journal(self.path / "texts.sqlite", self.path / f"{run.name}.sqlite")
