"""The result of `attribute`: how much each component carries of what tuning changed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.components import Component
from xlingtox.evaluation.shares import ALL, BASE, TUNED, Resampled
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet

Estimate: TypeAlias = Literal["linear", "integrated"]
"""The two estimates. `attribute` says what each is good for."""

ESTIMATES: tuple[Estimate, ...] = ("linear", "integrated")
"""Their names."""

_TOTALS = ("exact", "patched", "linear", "integrated")
"""The changes that are kept for each prompt, in the order of `Attribution.summary`."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Attribution:
    """The part that each neuron and head carries of what tuning changed in a measure, language by language.

    Attributes:
        measure: the name of the measure.
        languages: the language of each prompt that counts.
        units: for each kind of component, the layer and the index of each of its units.
        linear, integrated: for each kind, the two estimates of each unit in each language, in the order of
            `xt.languages`. Each is a mean over the prompts of the language.
        totals: what is known of each prompt: the measure in the base model (`base`), and four changes of it. `exact` is
            the whole change to the tuned model, `patched` the change when all components are patched, and `linear` and
            `integrated` are the sums of the estimates.
        groups: for each named set, the sums of its estimates for each prompt.
        steps: the largest number of points on the path.
        models: the base model and the tuned one.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> attribution = xt.attribute(lm, tuned, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> attribution.save(tmp_path / "attribution.safetensors")
        >>> xt.Attribution.load(tmp_path / "attribution.safetensors") == attribution
        True
    """

    measure: str
    languages: tuple[str, ...]
    units: Mapping[Component, Int[np.ndarray, "unit 2"]]
    linear: Mapping[Component, Float[np.ndarray, "language unit"]]
    integrated: Mapping[Component, Float[np.ndarray, "language unit"]]
    totals: Mapping[str, Float[np.ndarray, "prompt"]]
    groups: Mapping[str, Mapping[Estimate, Float[np.ndarray, "prompt"]]] = field(default_factory=dict)
    steps: int = 0
    models: tuple[Identity, Identity] | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether all numbers and both models are the same."""
        return equal(self, other) if isinstance(other, Attribution) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Attribution({self.measure} of {len(self.languages)} prompts changes by {self.exact:+.3g}; all "
            f"{' and '.join(kind.replace('_', ' ') for kind in self.units)} patched: {self.patched:+.3g}, "
            f"{self.completeness:.1%} of it attributed, remainder {self.remainder:+.3g})"
        )

    @property
    def codes(self) -> tuple[str, ...]:
        """The languages without repetition, in the order of the rows of `linear` and `integrated`."""
        return languages.in_order(self.languages)

    # --- the whole

    @property
    def exact(self) -> float:
        """The whole change of the measure from the base model to the tuned one: the mean over languages."""
        return self._mean("exact")

    @property
    def patched(self) -> float:
        """The change when all components that were asked for are patched from the tuned model into the base."""
        return self._mean("patched")

    @property
    def completeness(self) -> float:
        """The sum of the integrated estimates, over the change when all these components are patched: 1 at best."""
        return self._mean("integrated") / self.patched if self.patched else float("nan")

    @property
    def remainder(self) -> float:
        """The part of the whole change that no component was given: `exact` less the sum of integrated estimates."""
        return self.exact - self._mean("integrated")

    def _mean(self, total: str) -> float:
        return float(np.mean(list(self._means(self.totals[total]).values())))

    def _means(self, of_prompts: Float[np.ndarray, "prompt"]) -> dict[str, float]:
        """Return the mean over the prompts of each language."""
        codes = np.array(self.languages)
        return {code: float(of_prompts[codes == code].mean()) for code in self.codes}

    def summary(self) -> pd.DataFrame:
        """Return a row for each language, and one for `all`, the mean over languages.

        Columns `language, n_prompts, exact, patched, linear, integrated, completeness, remainder`, as the attributes of
        these names.
        """
        counts = Counter(self.languages)
        by_total = {total: self._means(self.totals[total]) for total in _TOTALS}
        rows = []
        for code in (*self.codes, ALL):
            exact, patched, linear, integrated = (
                float(np.mean(list(means.values()))) if code == ALL else means[code] for means in by_total.values()
            )
            n_prompts = len(self.languages) if code == ALL else counts[code]
            complete = integrated / patched if patched else float("nan")
            rows.append((code, n_prompts, exact, patched, linear, integrated, complete, exact - integrated))
        names = ["language", "n_prompts", *_TOTALS, "completeness", "remainder"]
        return pd.DataFrame(rows, columns=names)

    # --- the parts

    @checked
    def values(
        self, component: Component, *, language: str = ALL, estimate: Estimate = "linear"
    ) -> Float[np.ndarray, "unit"]:
        """Return one estimate of each unit of a kind, in the order of `units`.

        Raises:
            ValueError: this kind was not asked for, or there are no prompts in this language.
        """
        table = self.linear if estimate == "linear" else self.integrated
        if component not in table:
            raise ValueError(f"there is no attribution to {component}: it is to {', '.join(table)}")
        if language == ALL:
            return table[component].mean(0)
        if language not in self.codes:
            raise ValueError(f"there are no prompts in {language!r} that count: expected {', '.join(self.codes)}")
        return table[component][self.codes.index(language)]

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each unit and language, and one for `all`, the mean over languages.

        Columns `component, layer, index, language, linear, integrated`. In kinds that have one unit a layer, `index` is
        0. The embeddings are in layer 0, the final norm and the unembedding behind the last layer.
        """
        tables_of = []
        for component, units in self.units.items():
            for language in (*self.codes, ALL):
                linear, integrated = (
                    self.values(component, language=language, estimate=estimate) for estimate in ESTIMATES
                )
                columns = {"component": component, "layer": units[:, 0], "index": units[:, 1], "language": language}
                tables_of.append(pd.DataFrame({**columns, "linear": linear, "integrated": integrated}))
        return pd.concat(tables_of, ignore_index=True)

    def by_layer(self) -> pd.DataFrame:
        """Return the sum over the units of each kind in each layer.

        Columns `component, layer, language, linear, integrated`. Sums of linear estimates count twice what passes
        through two components.
        """
        keys = ["component", "layer", "language"]
        return self.to_frame().groupby(keys, sort=False, as_index=False)[["linear", "integrated"]].sum()

    @checked
    def top(
        self,
        k: int,
        *,
        sign: Literal[-1, 1] = -1,
        component: Literal["neurons", "heads"] = "neurons",
        language: str = ALL,
        estimate: Estimate = "linear",
    ) -> NeuronSet:
        """Return the k neurons, or heads, that move the measure most, with their estimates as scores.

        Args:
            sign: -1 for those that lower the measure, 1 for those that raise it.
            estimate: the linear one orders single units as exact patching does.

        Raises:
            ValueError: there are fewer than k units that move the measure in this direction, or there is no such
                component or language.

        Example:
            >>> tuned = xt.Offset(sources, -1.0).bake(lm)
            >>> attribution = xt.attribute(lm, tuned, prompts, n_samples=1, max_new_tokens=4, progress=False)
            >>> attribution.top(3, component="heads").site
            'heads'
        """
        values = self.values(component, language=language, estimate=estimate)
        n_moving = int((values * sign > 0).sum())
        if not 1 <= k <= n_moving:
            verb = "raise" if sign > 0 else "lower"
            raise ValueError(f"k is {k}: expected 1 to {n_moving}, the {component} that {verb} {self.measure}")
        chosen = np.argsort(-sign * values, kind="stable")[:k]
        pairs = [(int(layer), int(index)) for layer, index in self.units[component][chosen]]
        return NeuronSet.of(pairs, scores=values[chosen].tolist(), site=component)

    @checked
    def shared(
        self,
        k: int,
        *,
        sign: Literal[-1, 1] = -1,
        component: Literal["neurons", "heads"] = "neurons",
        estimate: Estimate = "linear",
    ) -> pd.DataFrame:
        """Return which units are among the top k of a language, and of how many languages.

        Columns `layer, index, n_languages, languages`, those of most languages first.

        Raises:
            ValueError: as `top`.
        """
        counts: dict[tuple[int, int], list[str]] = {}
        for code in self.codes:
            for unit in self.top(k, sign=sign, component=component, language=code, estimate=estimate):
                counts.setdefault(unit, []).append(code)
        rows = [(layer, index, len(codes), " ".join(codes)) for (layer, index), codes in counts.items()]
        rows.sort(key=lambda row: (-row[2], row[:2]))
        return pd.DataFrame(rows, columns=["layer", "index", "n_languages", "languages"])

    @checked
    def groups_frame(self, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return what each named set carries: a row for each set and language, and one for `all`.

        Columns `group, language, linear, integrated, share, low, high`. `share` is the integrated sum over the whole
        change `exact`; `low` and `high` are its bootstrap interval over prompts. They are NaN where a language has one
        prompt, or where the prompts do not show that there is a change.
        """
        drawn = Resampled(self.languages, level=level, n_resamples=n_resamples, seed=seed)
        runs = {BASE: np.zeros(len(self.languages)), TUNED: self.totals["exact"]}
        runs |= {name: group["integrated"] for name, group in self.groups.items()}
        linear = {name: self._means(group["linear"]) for name, group in self.groups.items()}
        rows = [
            (
                name := str(share.run),
                share.language,
                float(np.mean(list(linear[name].values()))) if share.language == ALL else linear[name][share.language],
                *(share.part, share.share, share.low, share.high),
            )
            for share in drawn.shares(runs)
        ]
        names = ["group", "language", "linear", "integrated", "share", "low", "high"]
        return pd.DataFrame(rows, columns=names)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row for each kind of component, over all languages."""
        rows = []
        for component, units in self.units.items():
            linear, integrated = (self.values(component, estimate=estimate).sum() for estimate in ESTIMATES)
            share = integrated / self.exact if self.exact else float("nan")
            numbers = [tables.number(float(linear), signed=True), tables.number(float(integrated), signed=True)]
            rows.append([component.replace("_", " "), f"{len(units)}", *numbers, tables.percent(float(share))])
        caption = (
            f"{self.measure.replace('_', ' ')} changes by {self.exact:+.3g}. All of these together, patched: "
            f"{self.patched:+.3g}; attributed {self.completeness:.1%} of it; remainder {self.remainder:+.3g}"
        )
        columns = ["Component", "Units", "Sum of linear", "Sum of integrated", "Share of the change"]
        return tables.table(escaped(caption), columns, rows)

    # --- files

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        arrays: dict[str, np.ndarray] = {f"totals.{name}": values for name, values in self.totals.items()}
        for component, units in self.units.items():
            arrays |= {f"units.{component}": units}
            arrays |= {f"linear.{component}": self.linear[component]}
            arrays |= {f"integrated.{component}": self.integrated[component]}
        for number, group in enumerate(self.groups.values()):
            arrays |= {f"groups.{number}.{estimate}": values for estimate, values in group.items()}
        about = {
            "measure": self.measure,
            "languages": self.languages,
            "components": list(self.units),
            "groups": list(self.groups),
            "steps": self.steps,
            "models": self.models and [dataclasses.asdict(model) for model in self.models],
        }
        files.write_tensors(path, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Attribution:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no attribution.
        """
        tensors, about = files.read_tensors(path)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        with files.understood(path, "attribution"):
            models = about["models"]

            def parts(name: str) -> dict[Any, np.ndarray]:
                return {kind: arrays[f"{name}.{kind}"] for kind in about["components"]}

            groups: dict[str, dict[Estimate, np.ndarray]] = {
                name: {estimate: arrays[f"groups.{number}.{estimate}"] for estimate in ESTIMATES}
                for number, name in enumerate(about["groups"])
            }
            return cls(
                about["measure"],
                tuple(about["languages"]),
                parts("units"),
                parts("linear"),
                parts("integrated"),
                {name: arrays[f"totals.{name}"] for name in ("base", *_TOTALS)},
                groups,
                about["steps"],
                models and (Identity.of(models[0]), Identity.of(models[1])),
            )
