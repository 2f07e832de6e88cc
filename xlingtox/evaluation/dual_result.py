"""Dual multilinguality as a result: what value vectors promote, and before which texts neurons fire, by language."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.named_sets import ALL
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.verdicts import Verdict

Side: TypeAlias = Literal["value", "key"]
"""The value side is what neurons write to the residual stream, and the key side is when they fire."""

Control: TypeAlias = Literal["random", "own tokens", "firing"]
"""What the number of languages at once is compared with."""

BEFORE, AFTER = "before", "after"
"""Names of the two models. A result of one model has only the first."""

_CONTROLS: Mapping[Control, str] = {
    "random": "random sets",
    "own tokens": "random sets, by tokens of one language only",
    "firing": "others that fire in the source language",
}

ALPHA = 0.05
"""The level of the tests of one set, side and model, corrected for the number of languages."""


@checked
@dataclass(frozen=True)
class InLanguage:
    """One side of one set in one language, next to random sets of neurons.

    Attributes:
        neurons, model: the names of the set and of the model.
        side: "value": the share of the promoted tokens that are toxic tokens of this language. "key": how much more
            active the chosen neurons are before toxic than before neutral text.
        language: a code, or "all" for the mean over languages.
        value: what was measured.
        chance, chance_low, chance_high: the mean of the random sets, and their 2.5th and 97.5th percentile.
        low, high: the 95 % interval of `value - chance`: over neurons on the value side, over prompts on the key side.
        p: the share of sets, the observed one among them, that reach the value. On the key side it is the higher one of
            this and of the p-value over prompts.
        corrected: the same after Holm's correction for the number of languages; NaN for "all", which is one test.
    """

    neurons: str
    model: str
    side: Side
    language: str
    value: float
    chance: float
    chance_low: float
    chance_high: float
    low: float
    high: float
    p: float
    corrected: float

    @property
    def stands(self) -> bool:
        """Whether the value is above chance after the correction for the number of languages."""
        return self.corrected <= ALPHA and self.value > self.chance


@checked
@dataclass(frozen=True)
class AtOnce:
    """The number of languages at once in which one side of a set is above chance, next to random sets.

    Languages depend on each other, so the chance level is counted and not computed: each random set is compared with
    the others, language by language, as the observed set is.

    Attributes:
        neurons, model, side: as in `InLanguage`.
        control: "random" for the random sets of `InLanguage`. On the value side also "own tokens", where tokens that
            several languages share are left out. On the key side also "firing": random neurons of the same layers that
            fire before toxic text in the source language too. They tell whether the set is special among these.
        tested: how many languages were tested.
        above: in how many of them the set lies above the 95th percentile of the random sets.
        chance, chance_high: the mean of that number among the random sets, and its 95th percentile.
        p: the share of sets, the observed one among them, that are above in as many languages.
        of_one: the mean over neurons of the number of languages that one neuron reaches: languages of whose toxic
            tokens it promotes at least one, or in which it is more active before toxic text.
        of_one_chance, of_one_low, of_one_high: the same of the random sets: mean, 2.5th and 97.5th percentile.
        of_one_p: the share of sets, the observed one among them, whose neurons reach as many languages.
    """

    neurons: str
    model: str
    side: Side
    control: Control
    tested: int
    above: int
    chance: float
    chance_high: float
    p: float
    of_one: float
    of_one_chance: float
    of_one_low: float
    of_one_high: float
    of_one_p: float


@checked
@dataclass(frozen=True)
class Firing:
    """The number of neurons of a set that fire more before toxic than before neutral text in the source language.

    Attributes:
        chosen: these neurons. They are chosen on one half of the prompts, and the key side is tested on the others.
        of: how many neurons the set has.
        chance, chance_low, chance_high: how many are chosen among as many random neurons of the same layers: their
            mean, 2.5th and 97.5th percentile.
        p: the share of sets, the observed one among them, of which as many are chosen.
    """

    chosen: NeuronSet
    of: int
    chance: float
    chance_low: float
    chance_high: float
    p: float


@checked
@dataclass(frozen=True, repr=False, eq=False)
class DualMultilinguality:
    """Whether sets of neurons are multilingual on both sides: in what they promote, and in what makes them fire.

    Attributes:
        in_languages: each set, model, side and language, with its chance level.
        at_once: in how many languages at once.
        firing: for each set, its neurons that fire before toxic text in the source language.
        listed: for each language, how many tokens stand for a listed word or begin one.
        shared: for each language, how many of these are listed in another language too. They count in both.
        without_words: the languages in which no token stands for a listed word; the value side does not count them.
        source_language: the language in which neurons were chosen by their firing.
        k: how many promoted tokens of each neuron were looked at.
        n_random: how many random sets there are.
        n_prompts: how many prompts tested the key side in each language, toxic and neutral ones.
        models: the model, and the one after tuning if there is one. Both read what the first one wrote.

    Example:
        >>> dual = xt.dual_multilinguality(lm, sources, xt.mini.prompts(n=8, languages=["en", "es"]),
        ...     xt.mini.prompts(n=8, languages=["en", "es"], kind="neutral"),
        ...     toxic_words={code: xt.mini.toxic_words()[code] for code in ("en", "es")}, n_random=99,
        ...     max_new_tokens=2, progress=False)
        >>> dual.to_frame()["side"].unique().tolist()
        ['value', 'key']
        >>> dual.save(tmp_path / "dual.json")
        >>> xt.DualMultilinguality.load(tmp_path / "dual.json") == dual
        True
    """

    in_languages: tuple[InLanguage, ...]
    at_once: tuple[AtOnce, ...]
    firing: Mapping[str, Firing]
    listed: Mapping[str, int]
    shared: Mapping[str, int]
    without_words: tuple[str, ...]
    source_language: str
    k: int
    n_random: int
    n_prompts: Mapping[str, tuple[int, int]]
    models: tuple[Identity, ...]

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of the models in the tables: "before", and "after" if there is one."""
        return (BEFORE, AFTER)[: len(self.models)]

    def __repr__(self) -> str:
        def counted(name: str, side: Side) -> str:
            standing, tested = self.standing(name, side=side), self._once(name, BEFORE, side).tested
            return f"{side} side in {len(standing)} of {tested}"

        sets = [f"{name}: {counted(name, 'value')}, {counted(name, 'key')}" for name in self.firing]
        return f"DualMultilinguality({'; '.join(sets)} languages)"

    @checked
    def standing(self, neurons: str, *, side: Side, model: str = BEFORE) -> tuple[str, ...]:
        """Return the languages in which this side of a set is above chance, corrected for their number.

        Raises:
            ValueError: there is no set or model of this name.

        Example:
            >>> dual = xt.dual_multilinguality(lm, sources, xt.mini.prompts(n=8, languages=["en", "es"]),
            ...     xt.mini.prompts(n=8, languages=["en", "es"], kind="neutral"),
            ...     toxic_words={code: xt.mini.toxic_words()[code] for code in ("en", "es")}, n_random=99,
            ...     max_new_tokens=2, progress=False)
            >>> set(dual.standing("sources", side="value")) <= {"en", "es"}
            True
        """
        self._check(neurons, model)
        rows = [row for row in self.in_languages if (row.neurons, row.model, row.side) == (neurons, model, side)]
        return tuple(row.language for row in rows if row.stands)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each set, model, side and language, and one for "all", the mean over languages.

        Columns `neurons, model, side, language, value, chance, chance_low, chance_high, difference, low, high, p,
        corrected, stands`: `difference` is `value - chance`, and the others are those of `InLanguage`.
        """
        names = [field.name for field in dataclasses.fields(InLanguage)]
        table = pd.DataFrame([dataclasses.astuple(row) for row in self.in_languages], columns=names)
        table.insert(names.index("low"), "difference", table["value"] - table["chance"])
        return table.assign(stands=[row.stands for row in self.in_languages])

    def at_once_frame(self) -> pd.DataFrame:
        """Return one row for each set, model and side: in how many languages at once. Columns as in `AtOnce`."""
        names = [field.name for field in dataclasses.fields(AtOnce)]
        return pd.DataFrame([dataclasses.astuple(row) for row in self.at_once], columns=names)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Two claims on each set in each model, one for each side.

        "Found" says that the side is above chance in at least half of the languages other than the source language.
        "Weak" says that it is in at least one of them. All are corrected for the number of languages.
        """
        return tuple(
            verdict
            for name in self.firing
            for model in self.model_names
            for verdict in (self._on_values(name, model), self._on_keys(name, model))
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks: in how many languages each side of each set is above chance."""
        rows = []
        for row in self.at_once:
            standing = f"{len(self.standing(row.neurons, side=row.side, model=row.model))} of {row.tested}"
            cells = [
                standing if row.control == "random" else "–",
                f"{row.above}",
                f"{tables.number(row.chance, 1)}, at most {tables.number(row.chance_high, 0)}",
                tables.number(row.p),
                f"{tables.number(row.of_one, 1)} ({tables.number(row.of_one_chance, 1)})",
            ]
            model = [row.model] if len(self.models) > 1 else []
            rows.append([escaped(row.neurons), *model, row.side, _CONTROLS[row.control], *cells])
        columns = ["Neurons", *(["Model"] if len(self.models) > 1 else []), "Side", "Beside", "Above chance, corrected"]
        columns += ["Above the 95th percentile", "By chance", "p", "Languages of one neuron (by chance)"]
        return tables.table(f"Dual multilinguality of {escaped(self.models[0])}", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, in which null stands for NaN."""
        firing = {
            name: dataclasses.asdict(row) | {"chosen": [row.chosen.neurons, row.chosen.scores]}
            for name, row in self.firing.items()
        }
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("in_languages", "at_once", "models"):
            content[name] = [dataclasses.asdict(row) for row in content[name]]
        files.write_results(path, content | {"firing": firing})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> DualMultilinguality:
        """Read a file that `save` wrote; raise ValueError, with the path, where the file holds something else."""
        content = files.read_results(path)
        with files.understood(path, "dual multilinguality"):
            firing = {
                name: Firing(**row | {"chosen": NeuronSet.of(row["chosen"][0], scores=row["chosen"][1])})
                for name, row in content["firing"].items()
            }
            made: dict[str, Any] = {
                "in_languages": tuple(InLanguage(**row) for row in content["in_languages"]),
                "at_once": tuple(AtOnce(**row) for row in content["at_once"]),
                "firing": firing,
                "without_words": tuple(content["without_words"]),
                "n_prompts": {code: (int(n[0]), int(n[1])) for code, n in content["n_prompts"].items()},
                "models": tuple(Identity.of(model) for model in content["models"]),
            }
            return cls(**content | made)

    def _check(self, neurons: str, model: str) -> None:
        if neurons not in self.firing or model not in self.model_names:
            raise ValueError(
                f"no {neurons!r} in the model {model!r}: there are {', '.join(self.firing)}, "
                f"in {' and '.join(self.model_names)}"
            )

    def _once(self, neurons: str, model: str, side: Side, control: Control = "random") -> AtOnce:
        self._check(neurons, model)
        (row,) = [
            row
            for row in self.at_once
            if (row.neurons, row.model, row.side, row.control) == (neurons, model, side, control)
        ]
        return row

    def _degree(self, neurons: str, model: str, side: Side) -> Literal["found", "weak", "not found"]:
        tested = {
            row.language for row in self.in_languages if (row.neurons, row.model, row.side) == (neurons, model, side)
        } - {ALL, self.source_language}
        others = tested & set(self.standing(neurons, side=side, model=model))
        return "found" if others and 2 * len(others) >= len(tested) else "weak" if others else "not found"

    def _counted(self, neurons: str, model: str, side: Side) -> str:
        row, standing = self._once(neurons, model, side), self.standing(neurons, side=side, model=model)
        named = f": {', '.join(map(languages.name, standing))}" if standing else ""
        return (
            f"Corrected, this holds in {len(standing)} of {row.tested} languages{named}. The set is above the 95th "
            f"percentile of random sets in {row.above}, and such sets are in {row.chance:.1f} on average, and in more "
            f"than {row.chance_high:.0f} in one of twenty (p = {row.p:.3f})."
        )

    def _where(self, model: str) -> str:
        return f" {model} tuning" if len(self.models) > 1 else ""

    def _on_values(self, neurons: str, model: str) -> Verdict:
        claim = f"The value vectors of {neurons!r} promote toxic tokens of many languages{self._where(model)}."
        if not self.listed:
            return Verdict(claim, "not found", "No token stands for a listed word in any language.")
        one = self._once(neurons, model, "value")
        unshared = self._once(neurons, model, "value", "own tokens")
        missing = ", ".join(map(languages.name, self.without_words))
        return Verdict(
            claim,
            self._degree(neurons, model, "value"),
            f"{self._counted(neurons, model, 'value')} "
            f"Without tokens that languages share it is above in {unshared.above}. "
            f"One neuron promotes toxic tokens of {one.of_one:.1f} languages on average, a random one of "
            f"{one.of_one_chance:.1f}." + (f" No token stands for a listed word in {missing}." if missing else ""),
        )

    def _on_keys(self, neurons: str, model: str) -> Verdict:
        source, firing = languages.name(self.source_language), self.firing[neurons]
        claim = f"Neurons of {neurons!r} that fire before toxic text in {source} do so in many languages"
        claim += f"{self._where(model)}."
        chosen = (
            f"{len(firing.chosen)} of {firing.of} neurons fire more before toxic than before neutral text in {source}, "
            f"and {firing.chance:.1f} of as many random ones ({firing.chance_low:.0f} to {firing.chance_high:.0f})."
        )
        if not len(firing.chosen):
            return Verdict(claim, "not found", chosen)
        one, firing_too = self._once(neurons, model, "key"), self._once(neurons, model, "key", "firing")
        reason = (
            f"{chosen} {self._counted(neurons, model, 'key')} One of them is more active before toxic text in "
            f"{one.of_one:.1f} languages on average, an equally active one in {one.of_one_chance:.1f}, and "
            f"any other that fires before toxic text in {source} in {firing_too.of_one_chance:.1f}."
        )
        return Verdict(claim, self._degree(neurons, model, "key"), reason)


def no_row(neurons: str, model: str, side: Side, language: str) -> InLanguage:
    """Return the row of a set of which nothing could be measured."""
    return InLanguage(neurons, model, side, language, *[math.nan] * 8)


def no_at_once(neurons: str, model: str, side: Side, tested: int, *, control: Control = "random") -> AtOnce:
    """Return the row of a set that is above chance in no language, because nothing could be measured."""
    return AtOnce(neurons, model, side, control, tested, 0, *[math.nan] * 8)
