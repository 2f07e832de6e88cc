"""Probe: a direction in the residual stream that tells toxic from neutral text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
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
from xlingtox.neurons.areas import Auc, auc

PENALTY = 100.0
"""Strength of the L2 penalty on the weights of standardised states: half this times their sum of squares.

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


class SplitStates(NamedTuple):
    """Mean states and labels of labelled sentences: those to fit on, and those that are held out.

    Attributes:
        train, held_out: the states, `[text, d_model]`, and the labels (1 is toxic).
    """

    train: tuple[Float[np.ndarray, "text d_model"], Int[np.ndarray, "text"]]
    held_out: tuple[Float[np.ndarray, "text d_model"], Int[np.ndarray, "text"]]

    @classmethod
    def read(cls, lm: HookedLM, labelled: Labelled, *, held_out_share: float, seed: int, progress: bool) -> SplitStates:
        """Read the mean states at the last layer, before the final norm, and split them."""
        texts, text_labels = labelled_texts(labelled)
        rows = split(text_labels, held_out_share=held_out_share, seed=seed)
        states, labels = mean_states(lm, texts, [lm.n_layers], progress=progress)[0].numpy(), np.array(text_labels)
        return cls(*((states[part], labels[part]) for part in rows))


def check_penalty(penalty: float) -> None:
    """Raise ValueError unless the penalty is a positive number."""
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty is {penalty}: expected a finite number above 0")


def logistic_regression(
    states: Float[np.ndarray, "text d_model"], labels: Int[np.ndarray, "text"], *, penalty: float
) -> tuple[Float[np.ndarray, "d_model"], float]:
    """Return the weights and the intercept of a logistic regression on standardised states, for states as they are."""
    centre, scale = standard(states)
    regression = LogisticRegression(C=1 / penalty, max_iter=2000).fit((states - centre) / scale, labels)
    direction = regression.coef_[0] / scale
    return direction, float(regression.intercept_[0] - centre @ direction)


def standard(
    states: Float[np.ndarray, "text d_model"],
) -> tuple[Float[np.ndarray, "d_model"], Float[np.ndarray, "d_model"]]:
    """Return the centre and the scale by which states are standardised."""
    return states.mean(0), states.std(0) + 1e-6


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
        cls,
        lm: HookedLM,
        labelled: Labelled,
        *,
        held_out_share: float = 0.1,
        penalty: float = PENALTY,
        seed: int = 0,
        progress: bool = True,
    ) -> Probe:
        """Fit a logistic regression on the residual stream of labelled sentences (paper, section 4.1).

        A sentence's state is the mean over its tokens at the last layer, before the final norm.

        Args:
            labelled: a table with the columns `text, label` (1 is toxic).
            held_out_share: share of the sentences, in (0, 1), on which accuracy and AUC are measured and nothing is
                fitted. Both parts have the labels in the same shares.
            penalty: strength of the L2 penalty on the weights of standardised states, 1 / C in scikit-learn. A stronger
                one comes nearer to `difference_of_means`.

        Raises:
            ValueError: labels of one class only, too few of one to split, a missing column, or a penalty that is no
                positive number.

        Example:
            >>> labelled = xt.mini.labelled("en", n=100)
            >>> probe = xt.Probe.fit(lm, labelled, held_out_share=0.2, seed=0, progress=False)
            >>> probe.n_train, probe.n_held_out
            (80, 20)
        """
        check_penalty(penalty)
        split_states = SplitStates.read(lm, labelled, held_out_share=held_out_share, seed=seed, progress=progress)
        return cls.fitted(lm, split_states, penalty=penalty)

    @classmethod
    def fitted(cls, lm: HookedLM, split_states: SplitStates, *, penalty: float) -> Probe:
        """Fit a probe on states that were read before, as `fit` does."""
        return cls._measured(lm, split_states, *logistic_regression(*split_states.train, penalty=penalty))

    @classmethod
    @checked
    def difference_of_means(
        cls, lm: HookedLM, labelled: Labelled, *, held_out_share: float = 0.1, seed: int = 0, progress: bool = True
    ) -> Probe:
        """Point from the mean state of neutral sentences to the mean state of toxic ones.

        It is the simplest probe. The bias puts the boundary halfway between both means. States, split and figures are
        those of `fit`.

        Raises:
            ValueError: as for `fit`.

        Example:
            >>> simplest = xt.Probe.difference_of_means(lm, xt.mini.labelled("en", n=100), progress=False)
            >>> simplest.auc > 0.5
            True
        """
        split_states = SplitStates.read(lm, labelled, held_out_share=held_out_share, seed=seed, progress=progress)
        states, labels = split_states.train
        neutral, toxic = (states[labels == label].mean(0, dtype=np.float64) for label in (0, 1))
        return cls._measured(lm, split_states, toxic - neutral, float((neutral + toxic) @ (neutral - toxic) / 2))

    @classmethod
    def _measured(
        cls, lm: HookedLM, split_states: SplitStates, direction: Float[np.ndarray, "d_model"], bias: float
    ) -> Probe:
        """Make a probe from its numbers, and measure it on the held-out sentences."""
        states, labels = split_states.held_out
        logits = states @ direction + bias
        return cls(
            direction=torch.tensor(direction, dtype=torch.float32),
            bias=bias,
            accuracy=float(((logits > 0) == labels).mean()),
            auc=float(roc_auc_score(labels, logits)),
            baseline=float(max(labels.mean(), 1 - labels.mean())),
            n_train=len(split_states.train[1]),
            n_held_out=len(labels),
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

    @checked
    def auc_on(self, lm: HookedLM, labelled: Labelled, *, progress: bool = True) -> Auc:
        """Measure the area under the ROC curve on labelled sentences, with its interval.

        Use it for another language, or for a test split that was published apart. The paper's .862 is on Jigsaw's own
        test split: `data.jigsaw("test.csv", labels="test_labels.csv")`. The states are read after the final norm where
        the probe was fitted there.

        Args:
            labelled: a table with the columns `text, label` (1 is toxic), none of it used to fit the probe.

        Raises:
            ValueError: the probe has another width than the model, labels of one class only, or a missing column.

        Example:
            >>> area = probe.auc_on(lm, xt.mini.labelled("es", n=60, split="test"), progress=False)
            >>> area.low < area.value <= area.high
            True
        """
        self.check(lm)
        texts, labels = labelled_texts(labelled)
        states = mean_states(lm, texts, [lm.n_layers + self.after_final_norm], progress=progress)[0]
        return auc((states @ self.direction).double().numpy(), labels)

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
