"""AlignmentSplit: the shares of a change that groups of neurons carry, by the method of Yang et al. and by others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.shares import ALL, BASE, TUNED, PerPrompt, Resampled
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.packing import packed, unpacked

Method = Literal["projection", "linear", "integrated", "patch", "integrated_probe", "patch_probe"]
"""How a group's share is computed. `AlignmentSplit` explains each."""

Direction = Literal["tuned into base", "base into tuned"]
"""Which model's activations go into which. Both models read the same tokens."""

METHODS: tuple[Method, ...] = get_args(Method)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

WHOLE = "whole"
"""The run that holds the whole change, of which the others are parts."""

LABELS: Mapping[Method, str] = {
    "projection": "Projection on the probe",
    "linear": "Attribution, linear",
    "integrated": "Attribution, integrated",
    "patch": "Patch, log-probability",
    "integrated_probe": "Attribution of the probe's logit",
    "patch_probe": "Patch, probe's logit",
}
"""Names of the methods, for tables and figures."""


def random_run(group: str, number: int) -> str:
    """Return the name of the run of a group's random set."""
    return f"{group} (random {number})"


@checked
@dataclass(frozen=True, repr=False, eq=False)
class AlignmentSplit:
    """The shares of tuning's change that groups of neurons carry, by several methods on the same text.

    The groups hold all neurons, by two signs. The value vector points along the probe (T) or against it (A). The mean
    activation in the base is positive (P) or not (N). So TP, TN, AP and AN hold each neuron once. Further groups are
    those that the caller names, and "all neurons". These are the methods.

    - "projection" is that of Yang et al. 2024. A neuron pushes the residual stream along the probe by its mean
      activation times `v . w / |w|`. A group's share is its fall, from one model to the other, over that of all
      neurons. Nothing is patched, so it does not say what would happen.
    - "linear" and "integrated": `attribute`'s estimates for the log-probability of the continuations, over the whole
      change. Sums of the linear one mean little.
    - "patch": the log-probability of the continuations when the group really has the other model's activations.
    - "integrated_probe": the integrated estimate for the probe's logit, the mean over the continuation's tokens. Unlike
      the projection it counts what a neuron does through later layers.
    - "patch_probe": the probe's logit at the last token of the prompt, under the same patch.

    Shares by patching need not add up, because groups interact. All other components, such as attention and tuned
    value vectors, carry what "all neurons" do not.

    Attributes:
        languages: the language of each prompt.
        groups: the neurons of each group.
        changes: for each direction and method, the change on each prompt: `whole`, the part of each group, and the part
            of each of its random sets, `name (random 0)` and so on.
        models: which models were used, base and tuned.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> split = xt.alignment_split(lm, tuned, prompts, probe, methods=["projection"], n_random=1, progress=False)
        >>> split.save(tmp_path / "split.safetensors")
        >>> xt.AlignmentSplit.load(tmp_path / "split.safetensors") == split
        True
    """

    languages: tuple[str, ...]
    groups: Mapping[str, NeuronSet]
    changes: Mapping[str, Mapping[str, Mapping[str, PerPrompt]]]
    models: tuple[Identity, Identity]

    def __eq__(self, other: object) -> bool:
        """Return whether all values, groups and both models are the same; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        groups = ", ".join(f"{name} {len(neurons)}" for name, neurons in self.groups.items())
        return f"AlignmentSplit({len(self.languages)} prompts: {groups})"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods by which shares were computed."""
        return tuple(next(iter(self.changes.values())))

    @checked
    def to_frame(self, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return one row for each direction, group, language and method, and one for `all`, the mean over languages.

        Columns `direction, group, n_neurons, language, method, share, low, high, random, random_low, random_high,
        excess, excess_low, excess_high`.

        - `low` and `high` are the bootstrap interval of the share over prompts. It is NaN where a language has one
          prompt, and where the prompts do not show that there is a change.
        - `random` is the mean share of the group's random sets, and `random_low` and `random_high` are the least and
          the greatest. They are NaN where the group has none.
        - `excess` is the share less that of the random sets, paired over prompts, with its interval. A group carries
          more than chance where the interval lies above 0 and the share above `random_high`.
        """
        drawn = Resampled(self.languages, level=level, n_resamples=n_resamples, seed=seed)
        rows = []
        for direction, by_method in self.changes.items():
            for method, changes in by_method.items():
                whole = changes[WHOLE]
                parts = {name: values for name, values in changes.items() if name != WHOLE}
                random = {name: _random_runs(name, parts) for name in self.groups}
                excess = {
                    (name, "excess"): parts[name] - np.mean([parts[run] for run in runs], 0)
                    for name, runs in random.items()
                    if runs
                }
                nothing = np.where(np.isfinite(whole), 0.0, np.nan)
                shares = drawn.shares({BASE: nothing, TUNED: whole, **parts, **excess})
                by_run = {(share.run, share.language): share[-3:] for share in shares}
                for name, neurons in self.groups.items():
                    for code in dict.fromkeys(code for _, code in by_run):
                        others = [by_run[run, code][0] for run in random[name]]
                        spread = (np.mean(others), min(others), max(others)) if others else (np.nan,) * 3
                        beyond = by_run.get(((name, "excess"), code), (np.nan,) * 3)
                        about = direction, name, len(neurons), code, method
                        rows.append((*about, *by_run[name, code], *spread, *beyond))
        names = ["direction", "group", "n_neurons", "language", "method"]
        for number in ("share", "random", "excess"):
            names += [number, f"{number}_low", f"{number}_high"]
        table = pd.DataFrame(rows, columns=names)
        return table.rename(columns={"share_low": "low", "share_high": "high"})

    def _repr_html_(self) -> str:
        """Return a table for notebooks, over all languages: one row for each direction and group."""
        table = self.to_frame()
        table = table[table["language"] == ALL]
        numbers = {(row.direction, row.group, row.method): row for row in table.itertuples()}

        def cell(direction: str, group: str, method: str) -> str:
            row: Any = numbers[direction, group, method]
            interval = f" ({tables.percent(row.low)} to {tables.percent(row.high)})" if math.isfinite(row.low) else ""
            random = f"; random {tables.percent(row.random)}" if math.isfinite(row.random) else ""
            return tables.percent(row.share) + interval + random

        rows = [
            [direction, escaped(group), f"{len(neurons)}", *(cell(direction, group, method) for method in self.methods)]
            for direction in self.changes
            for group, neurons in self.groups.items()
        ]
        labels = [label for method, label in LABELS.items() if method in self.methods]
        columns = ["Direction", "Group", "Neurons", *labels]
        caption = "Share of the change by group and method (95 % interval), over all languages"
        return tables.table(caption, columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors, about = dict[str, Tensor](), []
        for number, neurons in enumerate(self.groups.values()):
            of_group, about_group = packed(neurons, f".{number}")
            tensors |= of_group
            about.append(about_group)
        for direction, by_method in self.changes.items():
            for method, changes in by_method.items():
                values = np.stack([np.asarray(one, dtype=np.float64) for one in changes.values()])
                tensors[f"{direction}.{method}"] = torch.from_numpy(values)
        content = {
            "languages": self.languages,
            "groups": list(self.groups),
            "about_groups": about,
            "runs": {
                direction: {method: list(changes) for method, changes in by_method.items()}
                for direction, by_method in self.changes.items()
            },
            "models": [dataclasses.asdict(model) for model in self.models],
        }
        files.write_tensors(path, tensors, content)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> AlignmentSplit:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no split. The error names the file.
        """
        tensors, content = files.read_tensors(path)
        with files.understood(path, "split by alignment"):
            groups = {
                name: unpacked(tensors, about, f".{number}")
                for number, (name, about) in enumerate(zip(content["groups"], content["about_groups"], strict=True))
            }
            changes = {
                direction: {
                    method: dict(zip(runs, tensors[f"{direction}.{method}"].numpy(), strict=True))
                    for method, runs in by_method.items()
                }
                for direction, by_method in content["runs"].items()
            }
            base, tuned = map(Identity.of, content["models"])
            return cls(tuple(content["languages"]), groups, changes, (base, tuned))


def _random_runs(group: str, parts: Mapping[str, PerPrompt]) -> list[str]:
    """Return the names of the runs of a group's random sets."""
    names = (random_run(group, number) for number in range(len(parts)))
    return [name for name in names if name in parts]
