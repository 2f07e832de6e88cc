"""StudyFolder: the folder of one study, which says what study it is and which of its stages are done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlingtox import files
from xlingtox.files import writable_folder

_KEYS_OF_STAGE: dict[str, tuple[str, ...]] = {
    "localize": ("probe", "n_neurons", "potential", "cosines", "activations", "actual", "evidence", "verdicts"),
    "promoted": ("promoted",),
    "intervene": ("intervention", "control"),
    "amplify": ("amplification", "amplification_control"),
    "tune": ("recipe", "training"),
    "compare": ("before", "after", "changes", "scorer"),
    "retrieve": ("retrieval", "transfer", "transfer_by_measure"),
    "judge": ("verdicts", "warnings"),
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


class StudyFolder:
    """A folder that holds one study: `study.json` says which, and `stages/` has a file for each stage that is done.

    Attributes:
        path: the folder.

    Example:
        >>> folder = xt.study.study_folder.StudyFolder(tmp_path / "study")
        >>> folder.claim({"model": "mini"})
        >>> folder.done("promoted") is None
        True
        >>> folder.do("promoted", lambda: {"promoted": []}).result
        {'promoted': []}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = writable_folder(path)
        self._study_file, self._stages = self.path / "study.json", self.path / "stages"

    def check_free_for(self, study: Mapping[str, Any]) -> None:
        """Raise ValueError where the folder holds another study, or its `study.json` cannot be read."""
        if not self._study_file.exists():
            return
        remedy = "choose another folder, or delete this file if you know that the folder's other files are this study's"
        if files.read_json(self._study_file, remedy) != study:
            raise ValueError(f"{self.path} holds a study of another model, data or settings: choose another folder")

    def claim(self, study: Mapping[str, Any]) -> None:
        """Take the folder for this study: write `study.json`, unless it is there already."""
        self._stages.mkdir(exist_ok=True)
        # A killed run may have left partial files in any of the folders, also where this run writes nothing.
        for folder in (self.path, *(place for place in self.path.iterdir() if place.is_dir())):
            files.sweep(folder)
        if not self._study_file.exists():
            files.write_json(self._study_file, study)

    def done(self, stage: str) -> Done | None:
        """Return the result of a stage; None if it is not done.

        Raises:
            ValueError: the file of the stage cannot be read, or lacks a key.
        """
        file, remedy = self._stages / f"{stage}.json", "delete it, and the stage is done anew"
        if not file.exists():
            return None
        record = files.read_json(file, remedy)
        with files.understood(file, f"result of the stage {stage}", remedy):
            if lacking := [key for key in _KEYS_OF_STAGE[stage] if key not in record["result"]]:
                raise KeyError(lacking[0])
            return Done(dict(record["result"]), float(record["seconds"]))

    def do(self, stage: str, work: Callable[[], dict[str, Any]]) -> Done:
        """Do a stage, and write its result to the folder."""
        began = time.perf_counter()
        result = work()
        # The result goes through JSON at once, so that a resumed run sees just what an uninterrupted one does.
        record = json.loads(json.dumps({"seconds": round(time.perf_counter() - began, 2), "result": result}))
        files.write_json(self._stages / f"{stage}.json", record)
        return Done(record["result"], record["seconds"])
