"""Follow a run from inside the trainer: show a progress bar, keep the log, and stop a run that diverges.

Importing this module imports transformers' trainer, which is slow. So only `training` imports it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import ExitStack
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from xlingtox.progress import Shown, bar
from xlingtox.tuning.run_folder import Diverged, RunFolder


class AlreadyTrained(Exception):
    """Raised before the first step if training ended in an earlier call. The trained weights are loaded by then."""


class TrainingMonitor(TrainerCallback):
    """A trainer callback that shows progress, keeps the log, and stops a run that diverges.

    Attributes:
        start: the checkpoint to load before training: the newest one, or the best one if training has ended.
    """

    def __init__(self, folder: RunFolder, bars: ExitStack, progress: bool) -> None:
        """Follow the run in `folder`. The bar of the steps stays until `bars` is left."""
        self.folder, self.earlier = folder, folder.reached()
        self._bars, self._progress, self._shown, self._n_shown = bars, progress, Shown(), 0
        self.start = None
        if self.earlier is not None:
            ended_with_best = self.earlier.over and self.earlier.best is not None
            self.start = self.earlier.best if ended_with_best else self.earlier.checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Without this the trainer would do at least one more step.
        if self.earlier is not None and self.earlier.over:
            raise AlreadyTrained
        steps = bar("tuning", total=state.max_steps, unit="step", progress=self._progress)
        self._shown = self._bars.enter_context(steps)
        self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(state)

    def _show(self, state: Any) -> None:
        """Show how many steps are done."""
        self._shown.update(state.global_step - self._n_shown)
        self._n_shown = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in (logs or {}) and not math.isfinite(float(logs[name])):
                raise self._diverged(f"{name} is {logs[name]} at step {state.global_step}", state, state.log_history)
        if "loss" in (logs or {}):
            self._shown.note(f"loss {float(logs['loss']):.3f}")

    def restore_token_count(self, trainer: Any) -> None:
        """Make a resumed run count tokens from where it broke off, because TRL does not save the count."""
        if self.earlier is not None:
            counts = [row["num_tokens"] for row in self.earlier.log if "num_tokens" in row]
            trainer._total_train_tokens = int(max(counts, default=0))

    def history(self, trainer: Any) -> list[dict[str, Any]]:
        """Return losses and margins of all steps, also where training had ended in an earlier call."""
        return self.earlier.log if self.earlier is not None and self.earlier.over else trainer.state.log_history

    def finished_history(self, trainer: Any) -> list[dict[str, Any]]:
        """Return the log of a finished run, with a last row that sums up all its steps.

        Transformers writes a last row of its own, which covers the steps since the last start only. It is left out.
        """
        rows = [row for row in self.history(trainer) if "train_runtime" not in row]
        losses = [row["loss"] for row in rows if "loss" in row]
        ended = self.earlier is not None and self.earlier.over
        flos = self.earlier.flos if self.earlier is not None and ended else trainer.state.total_flos
        position = {name: rows[-1][name] for name in ("epoch", "step")}
        return [*rows, {"train_loss": fmean(losses), "total_flos": flos, **position}]

    def check_final_loss(self, trainer: Any, visited: Collection[int]) -> None:
        """Raise Diverged unless the tuned weights give a finite loss on one batch: no later step would show it.

        Args:
            visited: the rows of the training pairs of which the reference's log-probabilities are known.
        """
        batch = trainer.train_dataset.select(sorted(visited)[: trainer.args.per_device_train_batch_size])
        measured = trainer.evaluation_loop(trainer.get_eval_dataloader(batch), "last", prediction_loss_only=True)
        if not math.isfinite(loss := measured.metrics["eval_loss"]):
            raise self._diverged(f"the loss is {loss} after the last step", trainer.state, self.history(trainer))

    def _diverged(self, problem: str, state: Any, log: list[dict[str, Any]]) -> Diverged:
        checkpoint = self.folder.last_good_checkpoint(log)
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint had been written before"
        return Diverged(f"{problem} of {state.max_steps}; {kept}. A lower learning_rate or max_grad_norm may help")
