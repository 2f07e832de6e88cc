"""Watch: what is seen of a run while it trains, and its end where it diverges."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from xlingtox.tuning.run_folder import RunFolder


class Diverged(RuntimeError):
    """The loss or the gradient is no number any more."""


class Over(Exception):
    """Training ended before, and all that was to do was to read its weights again."""


class Watch(TrainerCallback):
    """One bar of our own, as the trainer's writes its log between the steps; and an end to a run that diverges.

    Attributes:
        start: the checkpoint that training goes on from, or whose weights are kept if it is over.
    """

    def __init__(self, folder: RunFolder, bar: Any) -> None:
        self.folder, self.bar, self.before = folder, bar, (before := folder.reached())
        self.start = None if before is None else before.best if before.over and before.best else before.checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Else at least one more step would be done.
        if self.before is not None and self.before.over:
            raise Over

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.total = state.max_steps
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in (logs or {}) and not math.isfinite(float(logs[name])):
                raise self.diverged(f"{name} is {logs[name]} at step {state.global_step}", state, state.log_history)
        if "loss" in (logs or {}):
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def count_on(self, trainer: Any) -> None:
        """Let the trainer count the tokens of a resumed run from where it broke off: TRL keeps no count of them."""
        if self.before is not None:
            counts = [row["num_tokens"] for row in self.before.log if "num_tokens" in row]
            trainer._total_train_tokens = int(max(counts, default=0))

    def log(self, trainer: Any) -> list[dict[str, Any]]:
        """Losses and margins of all steps, also where only the best weights were read again."""
        return self.before.log if self.before is not None and self.before.over else trainer.state.log_history

    def full_log(self, trainer: Any) -> list[dict[str, Any]]:
        """The log of a run that is over, with a last row about all its steps, also those before an interruption.

        Transformers' own last row is left out, which knows the steps since the last start alone.
        """
        rows = [row for row in self.log(trainer) if "train_runtime" not in row]
        losses = [row["loss"] for row in rows if "loss" in row]
        flos = self.before.flos if self.before is not None and self.before.over else trainer.state.total_flos
        last = {name: rows[-1][name] for name in ("epoch", "step")}
        return [*rows, {"train_loss": fmean(losses), "total_flos": flos, **last}]

    def check_last(self, trainer: Any) -> None:
        """Raise Diverged unless the tuned weights give a loss: no step was left to show it."""
        pairs, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
        few = pairs.select(range(min(len(pairs), size)))
        measured = trainer.evaluation_loop(trainer.get_eval_dataloader(few), "last", prediction_loss_only=True)
        if not math.isfinite(loss := measured.metrics["eval_loss"]):
            raise self.diverged(f"the loss is {loss} after the last step", trainer.state, self.log(trainer))

    def diverged(self, what: str, state: Any, log: list[dict[str, Any]]) -> Diverged:
        last = self._last_good(log)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written before"
        return Diverged(f"{what} of {state.max_steps}; {kept}. A lower learning_rate or max_grad_norm may help")

    def _last_good(self, log: list[dict[str, Any]]) -> Path | None:
        """The newest checkpoint whose weights gave a loss: that of a step is of the weights before it."""
        shown = [0]
        for row in log:
            if "eval_loss" in row and math.isfinite(row["eval_loss"]):
                shown.append(row["step"])
            elif "loss" in row and math.isfinite(row["loss"]) and math.isfinite(row.get("grad_norm", 0.0)):
                shown.append(row["step"] - 1)
        good = [path for step, path in self.folder.whole_checkpoints().items() if step <= max(shown)]
        return good[-1] if good else None
