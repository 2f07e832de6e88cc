"""Probe: a direction in the residual stream that tells toxic from other text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.data import Labelled, labelled_texts
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.states import mean_states

_PENALTY = 0.01
"""Inverse strength of the L2 penalty, on standardised states.

Where the classes can be told apart in many ways, a weak penalty picks the direction by a few odd sentences; a strong
one comes near the difference of the class means, which a model's own computation follows more (Marks and Tegmark 2023,
"The Geometry of Truth", section 5).
"""


def split(labels: Sequence[int], held_out: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Row numbers to fit on and to hold out, stratified by label.

    Raises:
        ValueError: too few rows of a label for both parts.
    """
    try:
        train, test = train_test_split(range(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"cannot hold out {held_out} of {len(labels)} labelled sentences: {error}") from error
    return train, test


@checked
@dataclass(frozen=True)
class Probe:
    """A toxicity direction with the evidence for it.

    Attributes:
        direction: weights of the logistic regression; more along it is more toxic. Not normalised.
        bias: its intercept.
        accuracy, auc: on held-out sentences, in [0, 1]; None where they were not measured, as of a direction that was
            found elsewhere.
        baseline: accuracy of always answering the larger class, on the same held-out sentences.
        n_train, n_held_out: sentences in each part.
        model: which model's states it reads, and under which edit; None where that is not known.
        after_final_norm: whether it reads states after the final norm, as the authors' does, and not before it.
    """

    direction: Float[Tensor, "d_model"]
    bias: float
    accuracy: float | None = None
    auc: float | None = None
    baseline: float | None = None
    n_train: int | None = None
    n_held_out: int | None = None
    model: Identity | None = None
    after_final_norm: bool = False

    @classmethod
    @checked
    def fit(
        cls, lm: HookedLM, labelled: Labelled, *, held_out: float = 0.1, seed: int = 0, progress: bool = True
    ) -> Probe:
        """Fit on the mean over tokens of the last layer's residual stream, before the final norm (paper, section 4.1).

        Args:
            labelled: a table with the columns `text, label` (1 is toxic).
            held_out: share of the sentences, stratified, on which accuracy and AUC are measured.

        Raises:
            ValueError: labels of one class only, too few of one to split, or a missing column.
        """
        texts, given = labelled_texts(labelled)
        train, test = split(given, held_out, seed)
        states, labels = mean_states(lm, texts, [lm.n_layers], progress=progress)[0].numpy(), np.array(given)
        x, x_test, y, y_test = states[train], states[test], labels[train], labels[test]
        centre, scale = x.mean(0), x.std(0) + 1e-6
        model = LogisticRegression(C=_PENALTY, max_iter=2000).fit((x - centre) / scale, y)
        direction = model.coef_[0] / scale
        bias = float(model.intercept_[0] - centre @ direction)
        logits = x_test @ direction + bias
        return cls(
            direction=torch.tensor(direction, dtype=torch.float32),
            bias=bias,
            accuracy=float(((logits > 0) == y_test).mean()),
            auc=float(roc_auc_score(y_test, logits)),
            baseline=float(max(y_test.mean(), 1 - y_test.mean())),
            n_train=len(y),
            n_held_out=len(y_test),
            model=lm.identity(),
        )

    @classmethod
    @checked
    def from_direction(
        cls, vector: Float[Tensor, "d_model"] | Sequence[float], *, bias: float = 0.0, model: HookedLM | None = None
    ) -> Probe:
        """Take a direction that was found elsewhere: a published probe, a difference of means, a steering vector.

        Args:
            vector: one number for each dimension of the residual stream; more along it is more toxic.
            bias: what is added to the projection on it.
            model: the model whose states it reads, where that is known.

        Raises:
            ValueError: no single row of finite numbers, only zeros, or another width than the model's.
        """
        direction = torch.as_tensor(vector, dtype=torch.float32).detach().cpu().clone()
        if direction.ndim != 1 or not len(direction) or not bool(direction.isfinite().all()) or not math.isfinite(bias):
            raise ValueError(
                f"a direction of shape {tuple(direction.shape)} with bias {bias}: expected a row of finite numbers, "
                "one for each dimension of the residual stream, and a finite bias"
            )
        if not bool(direction.any()):
            raise ValueError("the direction is zero: it points nowhere")
        probe = cls(direction, float(bias), model=None if model is None else model.identity())
        if model is not None:
            probe.check(model)
        return probe

    @classmethod
    @checked
    def from_torch_file(cls, path: str | Path, *, model: HookedLM | None = None) -> Probe:
        """Take the numbers of a linear layer with one output that `torch.save` wrote, as the paper's probe is.

        The file is a pickle, which can hold code: only an `nn.Linear`, or a dictionary of tensors, is read.

        Raises:
            ValueError: the file holds anything else, or a layer with several outputs.
            OSError: the file cannot be read.
        """
        weight, bias = _linear(Path(path).expanduser())
        return cls.from_direction(weight, bias=bias, model=model)

    @checked
    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless the direction has the model's width."""
        if self.direction.shape != (lm.d_model,):
            raise ValueError(
                f"the probe has width {tuple(self.direction.shape)}, {lm.name} has d_model {lm.d_model}: "
                "fit a probe on this model"
            )

    def __repr__(self) -> str:
        accuracy, auc, baseline = (
            "unknown" if figure is None else f"{figure:.3f}" for figure in (self.accuracy, self.auc, self.baseline)
        )
        return (
            f"Probe(d_model {len(self.direction)}: held-out accuracy {accuracy}, AUC {auc}, "
            f"majority baseline {baseline})"
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the figures in its metadata."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        figures["model"] = self.model and dataclasses.asdict(self.model)
        files.write_tensors(path, {"direction": self.direction}, figures)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Probe:
        """Read a probe that was saved; raises ValueError, with its path, where the file holds none."""
        tensors, figures = files.read_tensors(path)
        with files.understood(path, "probe"):
            model = figures.pop("model")
            return cls(direction=tensors["direction"], model=model and Identity(**model), **figures)


def _linear(file: Path) -> tuple[Float[Tensor, "d_model"], float]:
    """The weights and the bias of a linear layer with one output, from a torch file that is not trusted."""
    try:
        with torch.serialization.safe_globals([torch.nn.Linear, set]):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} holds something else than a linear layer or a dictionary of tensors, and was not read: "
            "a torch file can hold code"
        ) from error
    # Only attributes are looked up, past whatever the file may have set, and nothing of it is called.
    tensors = vars(held).get("_parameters") if type(held) is torch.nn.Linear else held
    weight, bias = (tensors.get(name) if isinstance(tensors, dict) else None for name in ("weight", "bias"))
    if not isinstance(weight, Tensor) or weight.squeeze().ndim != 1 or not isinstance(bias, Tensor | None):
        shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
        raise ValueError(f"{file} has no linear layer with one output: its weight is {type(weight).__name__}{shape}")
    if bias is not None and bias.numel() != 1:
        raise ValueError(f"{file} has {bias.numel()} biases: expected a linear layer with one output")
    return weight.detach().float().squeeze(), 0.0 if bias is None else float(bias.detach())


_FIGURES = ("bias", "accuracy", "auc", "baseline", "n_train", "n_held_out", "after_final_norm")
