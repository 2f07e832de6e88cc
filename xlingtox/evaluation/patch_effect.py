"""PatchEffect: how much of the change from one model to another groups of neurons or heads carry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.evaluation.shares import BASE, TUNED, PerPrompt, Resampled
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.identity import Identity

Values = Mapping[str, PerPrompt]
"""The values of each measure, one for each prompt."""

PatchMatch = Literal["layers", "activity"]
"""What the random neurons of a control share with their group: its layers, or also its activity."""

RANDOM = " (random)"
"""The end of the name of a run with random neurons."""

_CONTROLS: Mapping[str | None, str] = {
    "heads": "Random heads of the same layers",
    "layers": "Random neurons of the same layers",
    "activity": "Random neurons of the same layers, equally active",
    None: "Random neurons",
}
"""Names of the controls, for tables and figures."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class PatchEffect:
    """The effect of patching: one model's behaviour when groups of neurons or heads act as they do in another model.

    A group that carries the whole change makes the base model behave like the tuned one. Its share is then 1.

    Attributes:
        languages: the language of each prompt.
        runs: the values of each measure in each run, one for each prompt. The runs are `base` (the model before),
            `tuned` (the model after), one for each group under its name, and one for each group's control (`name
            (random)`), the mean over its random sets. The measures are `probe` (its logit at the last prompt token),
            `toxic_mass` (the probability of the toxic tokens as the next one), `log_probability` (that of given
            continuations, in nats, the mean over those of a prompt; NaN for a prompt without any) and `toxicity` (the
            mean score of new continuations).
        models: which models were used, base and tuned; None where that is not known.
        match: what the random neurons share with their group: "layers", or also their "activity" in the base model.
            "heads" where all groups with a control are of heads, which share layers. None where there are none, or
            where that is not known.

    Example:
        >>> import numpy as np
        >>> runs = {"base": [4.0, 6.0], "tuned": [2.0, 4.0], "some": [3.0, 5.0]}
        >>> effect = xt.PatchEffect(("en", "es"), {run: {"probe": np.array(row)} for run, row in runs.items()})
        >>> effect.to_frame()[["language", "share"]].values.tolist()
        [['en', 0.5], ['es', 0.5], ['all', 0.5]]
        >>> effect.save(tmp_path / "effect.json")
        >>> xt.PatchEffect.load(tmp_path / "effect.json") == effect
        True
    """

    languages: tuple[str, ...]
    runs: Mapping[str, Values]
    models: tuple[Identity, Identity] | None = None
    match: PatchMatch | Literal["heads"] | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether all values, both models and the kind of control are the same; NaN equals NaN."""
        if not isinstance(other, PatchEffect):
            return NotImplemented
        return (
            (self.languages, self.models, self.match) == (other.languages, other.models, other.match)
            and list(self.runs) == list(other.runs)
            and all(list(values) == list(other.runs[run]) for run, values in self.runs.items())
            and all(
                np.array_equal(values, other.runs[run][measure], equal_nan=True)
                for run, values_by_measure in self.runs.items()
                for measure, values in values_by_measure.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @checked
    def to_frame(self, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return one row for each measure, group and language, and one for `all`, the mean over languages.

        Columns `measure, group, language, base, tuned, patched, share, low, high`. `share` is
        `(patched - base) / (tuned - base)`: 0 where the group carries nothing of the change, 1 where it carries all,
        NaN where there is no change.

        `low` and `high` are its bootstrap interval over prompts. They are NaN where each language has one prompt. They
        are also NaN where the prompts do not show that there is a change: a share of what may be nothing can be
        anything.
        """
        drawn = Resampled(self.languages, level=level, n_resamples=n_resamples, seed=seed)
        rows = [
            (measure, *share)
            for measure in self.runs[BASE]
            for share in drawn.shares({run: values[measure] for run, values in self.runs.items()})
        ]
        names = ["measure", "group", "language", "base", "tuned", "patched", "share", "low", "high"]
        return pd.DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        measures, groups = ", ".join(self.runs[BASE]), ", ".join(self.groups)
        return f"PatchEffect({len(self.languages)} prompts: {measures} with {groups} patched)"

    @property
    def groups(self) -> dict[str, str | None]:
        """The name of each group, and the name of the run of its random neurons; None where it has none."""
        names = [run for run in self.runs if run not in (BASE, TUNED) and not run.endswith(RANDOM)]
        return {name: name + RANDOM if name + RANDOM in self.runs else None for name in names}

    @property
    def control(self) -> str:
        """The random neurons in words, for tables and figures."""
        return _CONTROLS[self.match]

    @checked
    def shares(self, *, language: str = "all") -> dict[tuple[str, str], tuple[float, float, float]]:
        """Return the share of each measure and run, of a group or its control, with its 95 % interval.

        Keys are (measure, run), values (share, low, high), as in `to_frame`.

        Raises:
            ValueError: there are no prompts in this language.
        """
        table = self.to_frame()
        if language not in (known := list(dict.fromkeys(table["language"]))):
            raise ValueError(f"unknown language {language!r}: expected one of {', '.join(known)}")
        rows = table[table["language"] == language]
        shares = (
            (float(share), float(low), float(high))
            for share, low, high in zip(rows.share, rows.low, rows.high, strict=True)
        )
        return dict(zip(zip(rows["measure"], rows["group"], strict=True), shares, strict=True))

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each measure and group, over all languages."""
        shares = self.shares()

        def cell(measure: str, run: str | None) -> str:
            if run is None:
                return "–"
            share, low, high = shares[measure, run]
            interval = f" ({tables.percent(low)} to {tables.percent(high)})" if math.isfinite(low) else ""
            return tables.percent(share) + interval

        rows = [
            [escaped(group), escaped(measure.replace("_", " ")), cell(measure, group), cell(measure, control)]
            for measure in self.runs[BASE]
            for group, control in self.groups.items()
        ]
        columns = ["Group", "Measured by", "Share of the change (95 % interval)", self.control]
        return tables.table("What patched neurons carry of the change, over all languages", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, in which null stands for NaN."""
        runs = {
            run: {measure: values.tolist() for measure, values in values_by_measure.items()}
            for run, values_by_measure in self.runs.items()
        }
        models = self.models and [dataclasses.asdict(model) for model in self.models]
        content = {"languages": self.languages, "runs": runs, "models": models, "match": self.match}
        files.write_results(path, content)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> PatchEffect:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no effect of patching. The error names the file.
        """
        content = files.read_results(path)
        with files.understood(path, "effect of patching"):
            runs = {
                run: {measure: np.array(values) for measure, values in values_by_measure.items()}
                for run, values_by_measure in content["runs"].items()
            }
            models = content.get("models")
            both = (Identity.of(models[0]), Identity.of(models[1])) if isinstance(models, list) else None
            # Earlier versions drew random neurons from the same layers only. NaN stands for null in the file.
            drawn = any(run.endswith(RANDOM) for run in runs)
            match: Any = content.get("match", "layers" if drawn else None)
            return cls(tuple(content["languages"]), runs, both, None if isinstance(match, float) else match)
