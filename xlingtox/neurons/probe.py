"""Probe: a direction in the residual stream that tells toxic from neutral text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.data import Labelled, labelled_texts
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.states import mean_states

_PENALTY = 0.01
"""Inverse strength of the L2 penalty, on standardised states.

Where many directions separate the classes, a weak penalty lets a few odd sentences choose among them. A strong one
comes near the difference of the class means, which is closer to what the model itself uses (Marks and Tegmark 2023,
"The Geometry of Truth", section 5).
"""

_NUMBERS = ("bias", "accuracy", "auc", "baseline", "n_train", "n_held_out", "after_final_norm")
"""The fields that are numbers, in the order of `Probe.to_frame`."""


def split(labels: Sequence[int], *, held_out_share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return the row numbers to fit on and those to hold out; both parts have the labels in the same shares.

    Raises:
        ValueError: a label has too few rows for both parts.
    """
    try:
        train, test = train_test_split(range(len(labels)), test_size=held_out_share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"cannot hold out {held_out_share} of {len(labels)} labelled sentences: {error}") from error
    return train, test


@checked
@dataclass(frozen=True, eq=False)
class Probe:
    """A toxicity direction in the residual stream, with the evidence for it.

    A text is judged by the mean of its states: `state @ direction + bias` above 0 means toxic.

    Attributes:
        direction: weights of the logistic regression; a state further along it is more toxic. It is not normalised.
        bias: intercept of the logistic regression.
        accuracy: share of right answers on held-out sentences, in [0, 1]. It and the next four are None where nothing
            was measured, as for a direction that `fit` did not find.
        auc: area under the ROC curve on the held-out sentences, in [0, 1].
        baseline: accuracy of always answering the larger class, on the held-out sentences.
        n_train: sentences on which the direction was fitted.
        n_held_out: sentences on which accuracy, AUC and baseline were measured.
        model: which model's states it reads, and under which edit; None where that is not known.
        after_final_norm: whether the probe reads states after the final norm, as that of the paper's authors does.
            `fit` reads them before it.

    Example:
        >>> probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> probe.direction.shape, probe.n_held_out, probe.auc > 0.5
        (torch.Size([128]), 10, True)
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
        cls, lm: HookedLM, labelled: Labelled, *, held_out_share: float = 0.1, seed: int = 0, progress: bool = True
    ) -> Probe:
        """Fit a logistic regression on the residual stream of labelled sentences (paper, section 4.1).

        A sentence's state is the mean over its tokens at the last layer, before the final norm.

        Args:
            labelled: a table with the columns `text, label` (1 is toxic).
            held_out_share: share of the sentences, in (0, 1), on which accuracy and AUC are measured and nothing is
                fitted. Both parts have the labels in the same shares.

        Raises:
            ValueError: labels of one class only, too few of one to split, or a missing column.

        Example:
            >>> labelled = xt.mini.labelled("en", n=100)
            >>> probe = xt.Probe.fit(lm, labelled, held_out_share=0.2, seed=0, progress=False)
            >>> probe.n_train, probe.n_held_out
            (80, 20)
        """
        texts, text_labels = labelled_texts(labelled)
        train, test = split(text_labels, held_out_share=held_out_share, seed=seed)
        states = mean_states(lm, texts, [lm.n_layers], progress=progress)[0].numpy()
        labels = np.array(text_labels)
        x, x_test, y, y_test = states[train], states[test], labels[train], labels[test]
        centre, scale = x.mean(0), x.std(0) + 1e-6
        regression = LogisticRegression(C=_PENALTY, max_iter=2000).fit((x - centre) / scale, y)
        direction = regression.coef_[0] / scale
        bias = float(regression.intercept_[0] - centre @ direction)
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
        """Make a probe from a known direction: a published probe, a difference of means, a steering vector.

        Args:
            vector: one number for each dimension of the residual stream; a state further along it is more toxic.
            bias: a number that is added to a state's projection on the vector.
            model: the model whose states the probe reads, where that is known.

        Raises:
            ValueError: the vector is not a row of finite numbers, has only zeros, or has another width than the model.

        Example:
            >>> xt.Probe.from_direction([1.0] * 128, model=lm)
            Probe(d_model 128: held-out accuracy unknown, AUC unknown, majority baseline unknown)
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
        """Make a probe from a linear layer in a file of `torch.save`, such as the paper's probe.

        The layer has one output. Such a file is a pickle, which can hold code. So only an `nn.Linear` or a dictionary
        of tensors is read.

        Raises:
            ValueError: the file holds anything else, or a layer with several outputs.
            OSError: the file cannot be read.

        Example:
            >>> import torch
            >>> torch.save(torch.nn.Linear(128, 1), tmp_path / "probe.pt")
            >>> probe = xt.Probe.from_torch_file(tmp_path / "probe.pt", model=lm)
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

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        accuracy, auc, baseline = (
            "unknown" if share is None else f"{share:.3f}" for share in (self.accuracy, self.auc, self.baseline)
        )
        return (
            f"Probe(d_model {len(self.direction)}: held-out accuracy {accuracy}, AUC {auc}, "
            f"majority baseline {baseline})"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row with the probe's numbers, NaN where one is not known.

        The columns are `model, d_model, bias, accuracy, auc, baseline, n_train, n_held_out, after_final_norm`.
        """
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        known = {name: math.nan if number is None else number for name, number in numbers.items()}
        model = None if self.model is None else str(self.model)
        return pd.DataFrame([{"model": model, "d_model": len(self.direction), **known}])

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with one row."""
        shares = [
            "unknown" if share is None else tables.number(share) for share in (self.accuracy, self.auc, self.baseline)
        ]
        counts = ["unknown" if count is None else f"{count}" for count in (self.n_train, self.n_held_out)]
        place = "after the final norm" if self.after_final_norm else "last layer"
        states = f"{place}, {len(self.direction)} dimensions"
        caption = f"Probe of {'an unknown model' if self.model is None else escaped(self.model)}"
        columns = ["States", "Accuracy", "AUC", "Majority baseline", "Fitted on", "Held out"]
        return tables.table(caption, columns, [[states, *shares, *counts]])

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the probe's numbers in its metadata.

        Example:
            >>> probe.save(tmp_path / "probe.safetensors")
            >>> xt.Probe.load(tmp_path / "probe.safetensors") == probe
            True
        """
        about = {name: getattr(self, name) for name in _NUMBERS}
        about["model"] = self.model and dataclasses.asdict(self.model)
        files.write_tensors(path, {"direction": self.direction}, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Probe:
        """Read a probe that `save` wrote; raise ValueError, with the path, where the file holds none."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "probe"):
            model = about.pop("model")
            return cls(direction=tensors["direction"], model=model and Identity(**model), **about)


def _linear(file: Path) -> tuple[Float[Tensor, "d_model"], float]:
    """Return weights and bias of a linear layer with one output, from a torch file that is not trusted."""
    try:
        with torch.serialization.safe_globals([torch.nn.Linear, set]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} holds something else than a linear layer or a dictionary of tensors, and was not read: "
            "a torch file can hold code"
        ) from error
    # We look attributes up in the instance's own dictionary, so that no code from the file is called.
    tensors = vars(content).get("_parameters") if type(content) is torch.nn.Linear else content
    weight, bias = (tensors.get(name) if isinstance(tensors, dict) else None for name in ("weight", "bias"))
    if not isinstance(weight, Tensor) or weight.squeeze().ndim != 1 or not isinstance(bias, Tensor | None):
        shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
        raise ValueError(f"{file} has no linear layer with one output: its weight is {type(weight).__name__}{shape}")
    if bias is not None and bias.numel() != 1:
        raise ValueError(f"{file} has {bias.numel()} biases: expected a linear layer with one output")
    return weight.detach().float().squeeze(), 0.0 if bias is None else float(bias.detach())
