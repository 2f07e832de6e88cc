"""RunFolder: whose the folder of a tuning run is, and how far the run got."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from xlingtox import files
from xlingtox._version import __version__
from xlingtox.files import appearing, writable_folder

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
_ARGUMENTS = "training_args.bin"


@dataclass(frozen=True)
class Reached:
    """How far training got, by its newest whole checkpoint.

    Attributes:
        checkpoint: that checkpoint.
        over: whether training ended there: all steps are done, or patience is used up.
        best: the checkpoint with the lowest validation loss, where that is what is kept.
        log: losses and margins up to there.
        flos: operations up to there, as transformers counts them.
    """

    checkpoint: Path
    over: bool
    best: Path | None
    log: list[dict[str, Any]]
    flos: float = 0.0


class RunFolder:
    """A folder that holds one run and nothing else.

    Attributes:
        path: the folder; the tuned model lies in it.
        checkpoints, base, adapter, log: what lies below it. The first two are gone when the run is finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = writable_folder(path)
        self.checkpoints, self.base, self.adapter = (self.path / name for name in ("checkpoints", "base", "adapter"))
        self.log, self._recipe = self.path / "log.json", self.path / "recipe.json"

    def claimed(self, about: Mapping[str, Any]) -> bool:
        """Whether the folder holds this run's tuned model already; else take it for this run.

        Args:
            about: by what a run is known again.

        Raises:
            ValueError: it holds another run, or something that the run would overwrite or take for its own.
        """
        with PartialState().main_process_first():
            if self._recipe.is_file():
                record = self._read()
                found, own = _known_by(record), _known_by(json.loads(json.dumps(about)))
                if other := [name for name in own if found.get(name) != own[name]]:
                    raise ValueError(f"{self.path} holds another run (other {', '.join(other)}): give a new folder")
                if found.get("clearing"):
                    self._clear(record)
                return bool(found.get("finished"))
            if (self.path / "config.json").is_file():
                raise ValueError(f"{self.path} holds a checkpoint that is not of this run: give a new folder")
            theirs = [self.checkpoints, self.base, self.adapter, self.log, self.path / _ARGUMENTS]
            theirs += [*self.path.glob("*.safetensors"), *self.path.glob("tokenizer*.json")]
            if there := sorted(each.name for each in theirs if each.exists()):
                raise ValueError(
                    f"{self.path} holds {', '.join(there)}, which this run would overwrite and which is not its own: "
                    "give a new folder"
                )
            self.write(about, finished=False)
        return False

    def _read(self) -> dict[str, Any]:
        remedy = "whose run the folder holds is not known, give a new folder"
        found = files.read_json(self._recipe, remedy)
        if not isinstance(found, dict):
            raise ValueError(f"{self._recipe} holds no object: {remedy}")
        return found

    def write(self, about: Mapping[str, Any], finished: bool) -> None:
        """Write `recipe.json`, in the main process."""
        if PartialState().is_main_process:
            whole = {**about, "versions": _versions(), "finished": finished}
            files.write_json(self._recipe, whole)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Say in `recipe.json` that the run is over, and remove what it needed only on its way.

        If it is killed in between, the next call removes the rest.
        """
        record = {**about, "versions": _versions(), "finished": True}
        files.write_json(self._recipe, record | {"clearing": True})
        self._clear(record)

    def _clear(self, record: Mapping[str, Any]) -> None:
        self.clear()
        files.write_json(self._recipe, {name: value for name, value in record.items() if name != "clearing"})

    def whole(self, place: Path, write: Callable[[Path], Any]) -> Path:
        """What `write` makes at `place` below the folder, written once, by the main process, and never half."""
        with PartialState().main_process_first():
            if not place.exists():
                with appearing(place) as part:
                    write(part)
        return place

    def whole_checkpoints(self) -> dict[int, Path]:
        """Step to checkpoint, from the first on, of those that were written whole: their state is written last."""
        paths = self.checkpoints.glob("checkpoint-*/trainer_state.json")
        found = {int(path.parent.name.rpartition("-")[2]): path.parent for path in paths if _state(path) is not None}
        return dict(sorted(found.items()))

    def reached(self) -> Reached | None:
        """How far training got; None if no checkpoint was written."""
        whole = self.whole_checkpoints()
        if not whole:
            return None
        newest = max(whole)
        state = _state(whole[newest] / "trainer_state.json")
        assert state is not None
        stopped = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
        over = newest >= state["max_steps"] or bool(stopped.get("should_training_stop"))
        best = state.get("best_model_checkpoint")
        # The folder may have been moved since.
        path = None if best is None else self.checkpoints / Path(best).name
        best_there = path if path is not None and path.is_dir() else None
        return Reached(whole[newest], over, best_there, state["log_history"], state.get("total_flos", 0.0))

    def given_up(self) -> None:
        """Leave the folder to other runs if this one broke off before there was anything to go on from."""
        made = (self.adapter, self.log, self.path / "config.json")
        if PartialState().is_main_process and not self.whole_checkpoints() and not any(each.exists() for each in made):
            self.clear()
            self._recipe.unlink(missing_ok=True)

    def check_saved(self, what: str) -> None:
        """Raise RuntimeError unless there is a whole checkpoint: not every way of training saves one."""
        if not (self.path / "config.json").is_file() or not list(self.path.glob("*.safetensors")):
            raise RuntimeError(
                f"{what}, but no weights were saved in {self.path}: its checkpoints are kept in {self.checkpoints}. "
                "Under FSDP, set its state-dict type to FULL_STATE_DICT"
            )

    def clear(self) -> None:
        """Remove what the run needed only on its way."""
        for folder in (self.path, self.adapter):
            (folder / _ARGUMENTS).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.base):
            shutil.rmtree(folder, ignore_errors=True)


def _known_by(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is known again by: of the model its weights, for one folder has many paths, and nothing is tuned
    under an edit."""
    model = about.get("model")
    named = {"name", "revision", "edit"}
    own = {key: value for key, value in model.items() if key not in named} if isinstance(model, dict) else model
    return {**about, "model": own}


def _state(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _versions() -> dict[str, str]:
    found = {"xlingtox": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
