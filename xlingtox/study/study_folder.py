"""StudyFolder: the folder of one study, with a file for each stage that is done."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xlingtox import files, processes
from xlingtox.files import writable_folder
from xlingtox.models.journal import Journal, using

_LOG = logging.getLogger(__name__)

_KEYS_OF_STAGE: dict[str, tuple[str, ...]] = {
    "localize": ("probe", "n_neurons", "potential", "cosines", "activations", "actual", "evidence", "verdicts"),
    "promoted": ("promoted",),
    "intervene": ("intervention", "control"),
    "amplify": ("amplification", "amplification_control"),
    "retrieve": ("retrieval", "retrieval_intervals", "retrieval_by_layer", "n_parallel"),
    "tune": ("recipe", "training", "end_token"),
    "compare": ("before", "after", "changes", "scorer"),
    "predict": ("transfer", "transfer_by_measure"),
    "attribute": ("attribution", "patched", "patched_sound"),
    "frontier": ("frontier",),
    "side_effects": ("side_effects",),
}
"""The keys that each stage's result must have, because a later stage or the study's results read them."""


@dataclass(frozen=True)
class Done:
    """A stage's result, and the seconds that the stage took.

    Example:
        >>> xt.study.study_folder.Done({"promoted": []}, seconds=1.5).seconds
        1.5
    """

    result: dict[str, Any]
    seconds: float


def stage_file(folder: Path, stage: str, key: str) -> Path:
    """Return the file that holds the result of a stage, in the folder of a study that need not exist."""
    return folder / "stages" / f"{stage}.{key}.json"


class StudyFolder:
    """A folder that holds one study: `stages/` has a file for each stage that is done, named by its key.

    Of several processes that work together, the main one reads and writes it.

    A stage of other settings has another key. So its result is never taken for this one's, and it is still there when
    the settings come back.

    Attributes:
        path: the folder.

    Example:
        >>> folder = xt.study.study_folder.StudyFolder(tmp_path / "study")
        >>> folder.done("promoted", "0123456789ab") is None
        True
        >>> folder.do("promoted", "0123456789ab", lambda: {"promoted": []}).result
        {'promoted': []}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = writable_folder(path)
        self._stages = self.path / "stages"

    def claim(self) -> None:
        """Make the folders of a study, and remove what a killed run left unfinished in them."""
        processes.from_main(self._made)

    def _made(self) -> None:
        self._stages.mkdir(exist_ok=True)
        for folder in (self.path, *(place for place in self.path.iterdir() if place.is_dir())):
            files.sweep(folder)

    def done(self, stage: str, key: str, *, keep_numbers: bool = False) -> Done | None:
        """Return the result of a stage; None if it is not done.

        Args:
            keep_numbers: as in `do`.

        Raises:
            ValueError: the file of the stage cannot be read, or lacks a key.
        """
        return processes.from_main(partial(self._done, stage, key, keep_numbers))

    def _done(self, stage: str, key: str, keep_numbers: bool) -> Done | None:
        file, remedy = stage_file(self.path, stage, key), "delete it, and the stage is done anew"
        if not file.exists():
            return None
        if not keep_numbers:
            # Another process may have had the numbers open when the stage was done.
            self._journal(stage).forget("numbers")
        record = files.read_json(file, remedy)
        with files.understood(file, f"result of the stage {stage}", remedy):
            if lacking := [name for name in _KEYS_OF_STAGE[stage] if name not in record["result"]]:
                raise KeyError(lacking[0])
            return Done(dict(record["result"]), float(record["seconds"]))

    def do(self, stage: str, key: str, work: Callable[[], dict[str, Any]], *, keep_numbers: bool = False) -> Done:
        """Do a stage, and write its result to the folder.

        What models write and read on the way is kept too, batch by batch, so that a killed stage loses one batch. The
        texts stay: another judge scores them again. The numbers of a stage that is done are removed.

        Args:
            keep_numbers: whether the numbers stay, because another judge needs them next.
        """
        journal = self._journal(stage)
        spent = processes.from_main(partial(self._spent, stage))
        began = time.perf_counter()
        try:
            with using(journal):
                result = work()
        except BaseException:
            if processes.is_main():
                files.write_json(self._seconds(stage), spent + time.perf_counter() - began)
            raise

        def written() -> Done:
            # The result goes through JSON at once, so that a resumed run sees just what an uninterrupted one does.
            seconds = round(spent + time.perf_counter() - began, 2)
            record = json.loads(json.dumps({"seconds": seconds, "result": result}))
            files.write_json(stage_file(self.path, stage, key), record)
            if not keep_numbers:
                journal.forget("numbers")
            self._seconds(stage).unlink(missing_ok=True)
            return Done(record["result"], record["seconds"])

        return processes.from_main(written)

    def _journal(self, stage: str) -> Journal:
        return Journal(self.path / "texts.sqlite", self._stages / f"{stage}.sqlite")

    def _seconds(self, stage: str) -> Path:
        return self._stages / f"{stage}.seconds"

    def _spent(self, stage: str) -> float:
        """Return the seconds that interrupted runs have spent on a stage, as far as they could write them down."""
        return float(files.read_json(self._seconds(stage))) if self._seconds(stage).exists() else 0.0
