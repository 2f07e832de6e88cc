"""StudyResults: everything that a study measured, as one value that is kept in one file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from xlingtox import files
from xlingtox import languages as language_table
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import Dose
from xlingtox.evaluation.metrics import Change
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.text import first_line
from xlingtox.transfer.prediction import Transfer

_ALWAYS_THERE = (
    "languages probe n_neurons potential actual intervention control before after changes scorer retrieval transfer"
).split()
_IN_A_NOTEBOOK = ("toxicity_probability", "average_toxicity", "degenerate", "perplexity", "mean_activation")


@checked
@dataclass(frozen=True)
class ProbeQuality:
    """The quality of the study's probe: it tells toxic from other sentences, here on held-out ones.

    Attributes:
        accuracy: share of the sentences that it sorts rightly.
        auc: area under the ROC curve.
        baseline: the accuracy of always guessing the commoner class.

    Example:
        >>> xt.study.results.ProbeQuality(probe.accuracy, probe.auc, probe.baseline).baseline
        0.5
    """

    accuracy: float
    auc: float
    baseline: float


@checked
@dataclass(frozen=True)
class PromotedToken:
    """A token that a source makes more likely, with the languages in whose text it occurs.

    Example:
        >>> xt.study.results.PromotedToken(" idiot", ("en", "fr", "de")).languages
        ('en', 'fr', 'de')
    """

    token: str
    languages: tuple[str, ...]


@checked
@dataclass(frozen=True)
class PromotedTokens:
    """The tokens that one source promotes: the source's value vector, read through the output embedding.

    Attributes:
        layer, index: the source.
        cosine: between its value vector and the probe.
        mean_activation: on English toxic prompts.
        tokens: the most promoted first.

    Example:
        >>> [token.token for token in results.promoted[0].tokens]  # doctest: +SKIP
        [' fool', ' idiot', ...]
    """

    layer: int
    index: int
    cosine: float
    mean_activation: float
    tokens: tuple[PromotedToken, ...]


@checked
@dataclass(frozen=True)
class Sample:
    """A prompt, and its greedy continuations before and after tuning.

    Example:
        >>> results.samples["en"][0].after  # doctest: +SKIP
        ' Then he rests in the garden.'
    """

    prompt: str
    before: str
    after: str


@checked
@dataclass(frozen=True)
class TransferSummary:
    """Retrieval before tuning against the drop in one measure, as a study's file keeps it.

    Attributes:
        pearson_r, p_value: over the languages that were not tuned, two-sided.
        drop: language to (before - after) / before.
        drop_intervals: 95 %, over prompts; may be empty.
        predictors: the rows of `Transfer.to_frame()`; may be empty.

    Example:
        >>> results.transfer_by_measure["average_toxicity"].pearson_r  # doctest: +SKIP
        0.57
    """

    pearson_r: float
    p_value: float
    drop: Mapping[str, float] = field(default_factory=dict)
    drop_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    predictors: tuple[Mapping[str, Any], ...] = ()


@checked
@dataclass(frozen=True, repr=False)
class StudyResults:
    """Everything that a study measured: `study.run` returns it, and findings, report, figures and picture read it.

    It is kept in one file, `results.json`. The file calls `candidates` "potential" and "cosines", `sources` "actual",
    and `mixing` "given"; it has the attributes of `comparison` at its top level.

    Attributes:
        languages: those of the prompts, English first.
        probe: how good the probe is.
        n_neurons: MLP neurons of the model.
        candidates: the neurons whose value vectors point most nearly along the probe, with their cosines as scores
            (the paper's potential sources).
        sources: the candidates that are active on English toxic prompts (the paper's actual sources).
        comparison: every measure in every language, before and after tuning.
        intervention, control: the doses after toxic prompts, with offsets on the sources and on random neurons.
        retrieval: language to retrieval accuracy against English, before tuning.
        transfer: retrieval against the drop in the study's main measure.
        amplification, amplification_control: the doses after neutral prompts; empty where they were not measured.
        activations: the mean activation of each candidate on English toxic prompts.
        promoted: the tokens of each source.
        recipe: the hyperparameters of tuning.
        training: the rows of the training log.
        changes_of_others: measure to the change in its mean over the languages that were not tuned.
        samples: language to a few prompts with their continuations.
        retrieval_intervals: 95 %, over sentences.
        retrieval_by_layer: language to the accuracy in each layer, the embedding's output first.
        n_parallel: language to sentences among which the translation was sought.
        transfer_by_measure: measure to retrieval against the drop in it.
        identified: whether the language of continuations was identified, for the share of degenerate text.
        mixing: language to what is known of how the training text mixed it with others.
        model: the model before tuning.
        seconds: stage to how long it took.
        versions: package to its version.
        seed: of sampling, of the random sets, and of tuning.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> results.to_frame()[["language", "emt_before", "emt_after", "retrieval"]]  # doctest: +SKIP
    """

    languages: tuple[str, ...]
    probe: ProbeQuality
    n_neurons: int
    candidates: NeuronSet
    sources: NeuronSet
    comparison: Comparison
    intervention: tuple[Dose, ...]
    control: tuple[Dose, ...]
    retrieval: Mapping[str, float]
    transfer: Transfer
    amplification: tuple[Dose, ...] = ()
    amplification_control: tuple[Dose, ...] = ()
    activations: tuple[float, ...] = ()
    promoted: tuple[PromotedTokens, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[Mapping[str, float], ...] = ()
    changes_of_others: Mapping[str, Change] = field(default_factory=dict)
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    retrieval_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    retrieval_by_layer: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    n_parallel: Mapping[str, int] = field(default_factory=dict)
    transfer_by_measure: Mapping[str, TransferSummary] = field(default_factory=dict)
    identified: bool = False
    mixing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    model: Identity | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        sides = self.comparison.before, self.comparison.after
        if lacking := [code for code in self.languages if any(code not in side for side in sides)]:
            raise ValueError(f"{', '.join(lacking)} is listed among the languages and has no measures")
        if not self.languages:
            raise ValueError("there is no language")

    def __repr__(self) -> str:
        model = "a model" if self.model is None else self.model.name
        before, after = self.means("average_toxicity", self.languages)
        return (
            f"StudyResults({model}, {len(self.languages)} languages, {len(self.sources)} sources, "
            f"average toxicity {before:.3f} to {after:.3f})"
        )

    @property
    def untuned_languages(self) -> tuple[str, ...]:
        """All languages but English, on which the model was tuned."""
        return tuple(code for code in self.languages if code != "en")

    @checked
    def means(self, measure: str, languages: Sequence[str]) -> tuple[float, float]:
        """Return a measure's mean over some languages, before and after tuning."""
        sides = self.comparison.before, self.comparison.after
        before, after = (fmean(getattr(side[code], measure) for code in languages) for side in sides)
        return before, after

    def to_frame(self) -> pd.DataFrame:
        """Return a row a language: `language`, each measure with `_before` and `_after`, and `retrieval`.

        `retrieval` is NaN where it was not measured, as for English.
        """
        rows: list[dict[str, Any]] = []
        for code in self.languages:
            row: dict[str, Any] = {"language": code}
            for measure in COMPARED:
                row[f"{measure}_before"] = getattr(self.comparison.before[code], measure)
                row[f"{measure}_after"] = getattr(self.comparison.after[code], measure)
            rows.append(row | {"retrieval": self.retrieval.get(code, math.nan)})
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row a language, before and after tuning."""
        rows = [
            [tables.language_name(code)]
            + [tables.both(*self.means(measure, [code])) for measure in _IN_A_NOTEBOOK]
            + [tables.percent(self.retrieval[code]) if code in self.retrieval else "–"]
            for code in self.languages
        ]
        model = "" if self.model is None else f" of {escaped(self.model.name)}"
        caption = f"Study{model}: before → after English tuning, scored by {escaped(self.comparison.scorer.name)}"
        columns = [COMPARED[measure].label for measure in _IN_A_NOTEBOOK]
        return tables.table(caption, ["Language", *columns, "Retrieval accuracy"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write `results.json`, one JSON file; null stands for NaN."""
        files.write_results(path, self._content())

    @classmethod
    @checked
    def load(cls, path: str | Path) -> StudyResults:
        """Read the `results.json` of a study.

        Raises:
            ValueError: a key that every study has is missing, or a value is not what it should be.
        """
        content = files.read_json(path)
        with files.understood(path, "results of a study", "give the results.json that a study wrote"):
            return cls._of(content)

    @classmethod
    @checked
    def of(cls, content: Mapping[str, Any]) -> StudyResults:
        """Return the results that the content of a `results.json` describes, with null or NaN for missing numbers.

        Raises:
            ValueError: a key that every study has is missing, or a value is not what it should be.
        """
        try:
            return cls._of(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"these are no results of a study: {error}") from error

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> StudyResults:
        missing = [key for key in _ALWAYS_THERE if key not in content]
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")
        # Null stands for None in a recipe, and elsewhere for a number that is not defined.
        stored = _with_one_nan(content) | {"recipe": content.get("recipe", {})}
        parts: dict[str, Any] = {name: _read(name, read, stored) for name, read in _READERS.items()}
        return cls(**parts, transfer=_read("transfer", lambda row: _transfer(row, parts), stored))

    def _content(self) -> dict[str, Any]:
        """Return what `results.json` holds: the keys are fixed, and later versions only add some."""
        transfer = {name: getattr(self.transfer, name) for name in ("measure", "pearson_r", "p_value")}
        plain = {name: getattr(self, name) for name in _STORED_AS_THEY_ARE}
        return {
            "languages": self.languages,
            "probe": dataclasses.asdict(self.probe),
            "potential": self.candidates.neurons,
            "cosines": self.candidates.scores,
            "actual": self.sources.neurons,
            "promoted": [dataclasses.asdict(row) for row in self.promoted],
            **{name: [dataclasses.asdict(dose) for dose in getattr(self, name)] for name in _DOSES},
            **dataclasses.asdict(self.comparison),
            "changes_of_others": {name: dataclasses.asdict(change) for name, change in self.changes_of_others.items()},
            "samples": {code: [dataclasses.asdict(sample) for sample in rows] for code, rows in self.samples.items()},
            "transfer": transfer,
            "transfer_by_measure": {
                name: dataclasses.asdict(summary) for name, summary in self.transfer_by_measure.items()
            },
            "given": self.mixing,
            "model": None if self.model is None else dataclasses.asdict(self.model),
            **plain,
        }


def _read(name: str, read: Callable[[Any], Any], stored: Mapping[str, Any]) -> Any:
    """Return one part of the results, from the whole content or from the value that stands under its key."""
    key = _KEYS.get(name, name)
    try:
        return read(stored if name in _OF_ALL else stored.get(key, {}))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"{key} cannot be read, {reason}") from error


def _doses(rows: Sequence[Mapping[str, Any]]) -> tuple[Dose, ...]:
    return tuple(Dose(**row) for row in _list(rows))


def _candidates(stored: Mapping[str, Any]) -> NeuronSet:
    return NeuronSet.of(stored["potential"], scores=stored.get("cosines") or None)


def _promoted(rows: Sequence[Mapping[str, Any]]) -> tuple[PromotedTokens, ...]:
    tokens = (
        tuple(PromotedToken(entry["token"], tuple(entry["languages"])) for entry in row["tokens"]) for row in rows
    )
    return tuple(PromotedTokens(**dict(row) | {"tokens": promoted}) for row, promoted in zip(rows, tokens, strict=True))


def _intervals(rows: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {code: (low, high) for code, (low, high) in rows.items()}


def _summaries(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, TransferSummary]:
    return {
        measure: TransferSummary(
            row["pearson_r"],
            row["p_value"],
            drop=dict(row.get("drop", {})),
            drop_intervals=_intervals(row.get("drop_intervals", {})),
            predictors=tuple(map(dict, row.get("predictors", ()))),
        )
        for measure, row in rows.items()
    }


def _transfer(row: Mapping[str, Any], parts: Mapping[str, Any]) -> Transfer:
    """Return retrieval against the drop in the main measure, over the languages that have both."""
    summary = parts["transfer_by_measure"].get(row["measure"])
    drop = summary.drop if summary and summary.drop else parts["comparison"].relative_drop(row["measure"])
    codes = [code for code in parts["languages"] if code != "en" and code in drop and code in parts["retrieval"]]
    return Transfer(
        measure=row["measure"],
        retrieval={code: parts["retrieval"][code] for code in codes},
        drop={code: drop[code] for code in codes},
        pearson_r=row["pearson_r"],
        p_value=row["p_value"],
        retrieval_intervals=parts["retrieval_intervals"],
        drop_intervals=summary.drop_intervals if summary else {},
    )


def _with_one_nan(value: Any) -> Any:
    """Return the value with the same NaN in place of every null, NaN and infinity, so that equal results are equal."""
    if isinstance(value, Mapping):
        return {key: _with_one_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_one_nan(item) for item in value]
    return math.nan if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _list(value: Any) -> list[Any]:
    if isinstance(value, list) or value == {}:
        return list(value)
    raise TypeError(f"expected a list, not {value!r}"[:80])


def _model(row: Any) -> Identity | None:
    if _is_missing(row):
        return None
    if "name" not in row:
        raise KeyError("name")
    return Identity.of(row)


def _is_missing(value: Any) -> bool:
    """Return whether this stands for no value: an absent key, or null."""
    return value == {} or (isinstance(value, float) and math.isnan(value))


_DOSES = ("intervention", "control", "amplification", "amplification_control")
_STORED_AS_THEY_ARE = (
    "n_neurons activations recipe training retrieval retrieval_intervals retrieval_by_layer n_parallel identified "
    "seconds versions seed"
).split()
_KEYS = {"sources": "actual", "mixing": "given"}
"""The keys of `results.json` that are not called as the attributes are."""

_OF_ALL = frozenset({"candidates", "comparison"})
"""The parts that are read from several keys."""

_READERS: Mapping[str, Callable[[Any], Any]] = {
    "languages": lambda codes: language_table.in_order(_list(codes)),
    "probe": lambda row: ProbeQuality(**row),
    "n_neurons": lambda n: n,
    "candidates": _candidates,
    "activations": lambda means: tuple(_list(means)),
    "sources": NeuronSet.of,
    "promoted": _promoted,
    **dict.fromkeys(_DOSES, _doses),
    "recipe": dict,
    "training": lambda rows: tuple(map(dict, _list(rows))),
    "comparison": Comparison.of,
    "changes_of_others": lambda rows: {measure: Change(**row) for measure, row in rows.items()},
    "samples": lambda rows: {code: tuple(Sample(**row) for row in samples) for code, samples in rows.items()},
    "retrieval": dict,
    "retrieval_intervals": _intervals,
    "retrieval_by_layer": lambda rows: {code: tuple(layers) for code, layers in rows.items()},
    "n_parallel": dict,
    "transfer_by_measure": _summaries,
    "identified": lambda flag: flag or False,
    "mixing": lambda rows: {code: dict(row) for code, row in rows.items()},
    "model": _model,
    "seconds": dict,
    "versions": dict,
    "seed": lambda seed: None if _is_missing(seed) else seed,
}
"""Each attribute, and how it is read from what stands under its key."""
