"""The folder of a tuning run: which run it belongs to, how far the run got, and its last good checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xlingtox import files, processes
from xlingtox._version import __version__
from xlingtox.files import appearing, writable_folder

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
_ARGUMENTS = "training_args.bin"
_NOT_IN_WEIGHTS = frozenset({"name", "revision", "edit"})
"""The fields of a model's identity that may differ where the weights are the same: one folder has many paths."""

_LATER = {
    "bfloat16": None,
    "method": "dpo",
    "sft_weight": 0.0,
    "simpo_gamma": 1.0,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}
"""Settings that recipes of older records lack, and what those runs did."""


class Diverged(RuntimeError):
    """The loss or the gradient is not a finite number any more. The message names the last good checkpoint.

    Example:
        >>> recipe = xt.tuning.Recipe(steps=3, batch_size=2, learning_rate=1e30, warm_up=0)
        >>> xt.tune_dpo(lm, xt.mini.pairs("en", n=4), output_dir=tmp_path / "dpo", recipe=recipe, progress=False)
        Traceback (most recent call last):
        ...
        xlingtox.tuning.run_folder.Diverged: ...
    """


@dataclass(frozen=True)
class Reached:
    """The state of training at its newest complete checkpoint.

    Attributes:
        checkpoint: the folder of that checkpoint.
        over: whether training ended there, because all steps were done or patience was used up.
        best: the checkpoint with the lowest validation loss, if the recipe has `patience`.
        log: losses and margins up to there.
        flos: floating-point operations up to there, as transformers counts them.
    """

    checkpoint: Path
    over: bool
    best: Path | None
    log: list[dict[str, Any]]
    flos: float = 0.0


class RunFolder:
    """A folder that holds one run and nothing else.

    Attributes:
        path: the folder, which also holds the tuned model.
        checkpoints, base: folders that are needed only during the run, and then removed.
        adapter, log: the paths of the adapter and of the log, which stay.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = writable_folder(path)
        self.checkpoints, self.base, self.adapter = (self.path / name for name in ("checkpoints", "base", "adapter"))
        self.log, self._recipe = self.path / "log.json", self.path / "recipe.json"

    def claimed(self, record: Mapping[str, Any]) -> bool:
        """Return whether the folder holds this run's tuned model already; if not, claim it for this run.

        Args:
            record: the values that identify a run.

        Raises:
            ValueError: the folder holds another run, or files that this run would overwrite or mistake for its own.
        """
        return processes.from_main(lambda: self._claimed(record))

    def _claimed(self, record: Mapping[str, Any]) -> bool:
        if self._recipe.is_file():
            stored = self._read()
            stored_key, key = _identifying(stored), _identifying(json.loads(json.dumps(record)))
            if differing := [name for name in key if stored_key.get(name) != key[name]]:
                names = ", ".join(differing)
                raise ValueError(f"{self.path} holds another run (other {names}): give a new folder")
            if stored.get("clearing"):
                self._end_clearing(stored)
            return bool(stored.get("finished"))
        if (self.path / "config.json").is_file():
            raise ValueError(f"{self.path} holds a checkpoint that is not of this run: give a new folder")
        in_the_way = [self.checkpoints, self.base, self.adapter, self.log, self.path / _ARGUMENTS]
        in_the_way += [*self.path.glob("*.safetensors"), *self.path.glob("tokenizer*.json")]
        if existing := sorted(path.name for path in in_the_way if path.exists()):
            raise ValueError(
                f"{self.path} holds {', '.join(existing)}, which this run would overwrite and which is not its own: "
                "give a new folder"
            )
        self.write(record, finished=False)
        return False

    def _read(self) -> dict[str, Any]:
        remedy = "which run the folder holds is not known, give a new folder"
        record = files.read_json(self._recipe, remedy)
        if not isinstance(record, dict):
            raise ValueError(f"{self._recipe} holds no object: {remedy}")
        return record

    def write(self, record: Mapping[str, Any], finished: bool) -> None:
        """Write `recipe.json`, in the main process."""
        if processes.is_main():
            files.write_json(self._recipe, {**record, "versions": _versions(), "finished": finished})

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the run as finished in `recipe.json`, and remove what was needed only during the run.

        If the process is killed in between, the next call removes the rest.
        """
        finished = {**record, "versions": _versions(), "finished": True}
        files.write_json(self._recipe, finished | {"clearing": True})
        self._end_clearing(finished)

    def _end_clearing(self, record: Mapping[str, Any]) -> None:
        """Remove what was needed only during the run, and record that this is done."""
        self.clear()
        files.write_json(self._recipe, {name: value for name, value in record.items() if name != "clearing"})

    def written_once(self, place: Path, write: Callable[[Path], Any]) -> Path:
        """Let the main process write a folder inside this one, unless it exists, and return it when it is complete."""

        def write_once() -> None:
            if not place.exists():
                with appearing(place) as partial:
                    write(partial)

        processes.from_main(write_once)
        return place

    def complete_checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints that were written completely, by step: the trainer writes their state last."""
        states = self.checkpoints.glob("checkpoint-*/trainer_state.json")
        folders = {int(file.parent.name.rpartition("-")[2]): file.parent for file in states if _state(file) is not None}
        return dict(sorted(folders.items()))

    def reached(self) -> Reached | None:
        """Return the state of training at its newest complete checkpoint, or None if there is no checkpoint."""
        checkpoints = self.complete_checkpoints()
        if not checkpoints:
            return None
        newest = max(checkpoints)
        state = _state(checkpoints[newest] / "trainer_state.json")
        assert state is not None
        control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
        over = newest >= state["max_steps"] or bool(control.get("should_training_stop"))
        best = state.get("best_model_checkpoint")
        # The run's folder may have been moved since.
        best_path = None if best is None else self.checkpoints / Path(best).name
        best_checkpoint = best_path if best_path is not None and best_path.is_dir() else None
        return Reached(checkpoints[newest], over, best_checkpoint, state["log_history"], state.get("total_flos", 0.0))

    def last_good_checkpoint(self, log: list[dict[str, Any]]) -> Path | None:
        """Return the newest checkpoint whose weights are known to give a finite loss.

        The loss that is logged at a step belongs to the weights before that step.
        """
        good_steps = [0]
        for row in log:
            if "eval_loss" in row and math.isfinite(row["eval_loss"]):
                good_steps.append(row["step"])
            elif "loss" in row and math.isfinite(row["loss"]) and math.isfinite(row.get("grad_norm", 0.0)):
                good_steps.append(row["step"] - 1)
        good = [path for step, path in self.complete_checkpoints().items() if step <= max(good_steps)]
        return good[-1] if good else None

    def release_if_empty(self) -> None:
        """Leave the folder to other runs, if this one ended before its first checkpoint."""
        results = (self.adapter, self.log, self.path / "config.json")
        if not processes.is_main() or self.complete_checkpoints():
            return
        if not any(path.exists() for path in results):
            self.clear()
            self._recipe.unlink(missing_ok=True)

    def check_saved(self, situation: str) -> None:
        """Raise RuntimeError unless weights were saved. Some ways of training, such as sharded ones, save none."""
        if not (self.path / "config.json").is_file() or not list(self.path.glob("*.safetensors")):
            raise RuntimeError(
                f"{situation}, but no weights were saved in {self.path}: its checkpoints are kept in "
                f"{self.checkpoints}. Under FSDP, set its state-dict type to FULL_STATE_DICT"
            )

    def clear(self) -> None:
        """Remove what was needed only during the run."""
        for folder in (self.path, self.adapter):
            (folder / _ARGUMENTS).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.base):
            shutil.rmtree(folder, ignore_errors=True)


def _identifying(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that identifies the run. A model is identified by its weights, not by its name.

    Whether the end of text is preferred counts as it was decided, not as the recipe asked. Older records do not say:
    there it always was.
    """
    recipe = record.get("recipe")
    if isinstance(recipe, dict):
        recipe = _LATER | {name: value for name, value in recipe.items() if name != "end_token"}
    end = record.get("end_token")
    preferred = end.get("preferred") if isinstance(end, dict) else True
    model = record.get("model")
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if key not in _NOT_IN_WEIGHTS}
    return {**record, "model": model, "recipe": recipe, "end_token": preferred}


def _state(file: Path) -> dict[str, Any] | None:
    """Return the trainer's state, or None where the file is missing or incomplete."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _versions() -> dict[str, str]:
    versions = {"xlingtox": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
