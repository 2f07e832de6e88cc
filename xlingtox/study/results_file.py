"""The content of `results.json`: the key of each attribute of `StudyResults`, and how it is written and read.

Most attributes stand under a key of their own name. `candidates` are under "potential" and "cosines", `sources` under
"actual" and `mixing` under "given"; the attributes of `comparison` are keys themselves. A file lacks the keys of stages
that were not run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from xlingtox import languages
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.groups import GroupChange
from xlingtox.evaluation.side_effects_result import SideEffects
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.study import doses, frontier_summary, patches, second_opinion, settings
from xlingtox.study.parts import (
    AttributionSummary,
    ProbeQuality,
    PromotedToken,
    PromotedTokens,
    Sample,
    TransferSummary,
)
from xlingtox.text import first_line
from xlingtox.transfer.prediction import Transfer
from xlingtox.verdicts import Verdict

STAGES = (*settings.STAGES, "judge")
"""The stages of a study, in the order in which they are run."""

STAGES_OF_OLDER_FILES = tuple(stage for stage in STAGES if stage not in ("attribute", "frontier", "side_effects"))
"""The stages of files that do not name them: all that there were then."""

_KEYS_OF_STAGES: Mapping[str, tuple[str, ...]] = {
    "localize": ("probe", "n_neurons", "potential", "actual"),
    "intervene": ("intervention", "control"),
    "compare": ("before", "after", "changes", "scorer"),
    "retrieve": ("retrieval",),
    "predict": ("transfer",),
    "attribute": ("attribution", "patched", "patched_sound"),
    "frontier": ("frontier",),
    "side_effects": ("side_effects",),
}
"""The keys that the file of a study with this stage always has. Older files lack some of the keys that later versions
added."""

_STORED_AS_THEY_ARE = (
    "n_neurons evidence warnings activations recipe training retrieval retrieval_intervals retrieval_by_layer "
    "n_parallel identified seconds versions seed stages source_language origins notes settings end_token judges pivot"
).split()
_KEYS = {"sources": "actual", "mixing": "given"}
"""The attributes whose key has another name."""

_FROM_SEVERAL_KEYS = frozenset({"languages", "candidates", "comparison", "toxic_doses", "neutral_doses"})
"""The attributes that are read from several keys."""


def content_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `results.json` holds, from the attributes of `StudyResults`.

    The keys are fixed, and later versions only add some.
    """
    candidates, transfer, model = attributes["candidates"], attributes["transfer"], attributes["model"]
    probe, comparison = attributes["probe"], attributes["comparison"]
    by_measure = attributes["transfer_by_measure"]
    content = {
        "languages": attributes["languages"],
        "probe": None if probe is None else dataclasses.asdict(probe),
        "potential": candidates.neurons,
        "cosines": candidates.scores,
        "actual": attributes["sources"].neurons,
        "promoted": _as_rows(attributes["promoted"]),
        **doses.content_of(attributes["toxic_doses"], doses.ON_TOXIC),
        **doses.content_of(attributes["neutral_doses"], doses.ON_NEUTRAL),
        "verdicts": _as_rows(attributes["verdicts"]),
        **({} if comparison is None else comparison.content()),
        "groups": _as_rows(attributes["groups"]),
        "samples": {code: _as_rows(samples) for code, samples in attributes["samples"].items()},
        "transfer": transfer and {name: getattr(transfer, name) for name in ("measure", "pearson_r", "p_value")},
        "transfer_by_measure": {measure: dataclasses.asdict(summary) for measure, summary in by_measure.items()},
        "attribution": _of_attribution(attributes["attribution"]),
        **{name: (effect := attributes[name]) and patches.content_of(effect) for name in ("patched", "patched_sound")},
        "frontier": (summary := attributes["frontier"]) and frontier_summary.content_of(summary),
        "side_effects": (effects := attributes["side_effects"]) and effects.content(),
        "given": attributes["mixing"],
        "model": None if model is None else dataclasses.asdict(model),
        **{name: attributes[name] for name in _STORED_AS_THEY_ARE},
    }
    if attributes["second_opinions"]:
        content["second_opinions"] = list(map(second_opinion.content_of, attributes["second_opinions"]))
    absent = _keys_of([stage for stage in _KEYS_OF_STAGES if stage not in attributes["stages"]])
    return {key: value for key, value in content.items() if key not in absent}


def _keys_of(stages: Iterable[str]) -> list[str]:
    return [key for stage in stages for key in _KEYS_OF_STAGES.get(stage, ())]


def _of_attribution(summary: AttributionSummary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {
        "by_language": summary.by_language,
        "by_layer": summary.by_layer,
        **{name: scored(getattr(summary, name)) for name in ("neurons", "heads")},
    }


def scored(neurons: NeuronSet) -> list[list[float]]:
    """Return each neuron or head as its layer, its index and its score."""
    return [[layer, index, score] for (layer, index), score in zip(neurons, neurons.scores, strict=True)]


def _as_rows(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(value) for value in values]


def attributes_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of `StudyResults`, from what `results.json` holds.

    Raises:
        ValueError: a key that the study's stages write is missing, or a value cannot be read.
    """
    stages = _stages(content)
    required = [*(["languages"] if "stages" not in content else []), *_keys_of(stages)]
    if missing := [key for key in required if key not in content]:
        raise ValueError(f"missing {', '.join(missing)}")
    # Null stands for None in what was set, and elsewhere for a number that is not defined.
    kept = {key: content.get(key, {}) for key in ("recipe", "settings", "origins", "end_token", "judges")}
    stored = _with_one_nan(content) | kept | {"stages": stages}
    stored.setdefault("source_language", "en")
    attributes: dict[str, Any] = {name: _read(name, read, stored) for name, read in _READERS.items()}
    if "predict" not in stages:
        return attributes | {"transfer": None}
    return attributes | {"transfer": _read("transfer", lambda row: _transfer(row, attributes), stored)}


def _stages(content: Mapping[str, Any]) -> list[str]:
    """Return the stages that the file names, or all that there were where it names none."""
    stages = content.get("stages", list(STAGES_OF_OLDER_FILES))
    if not isinstance(stages, list) or (unknown := [stage for stage in stages if stage not in STAGES]):
        what = unknown if isinstance(stages, list) else stages
        raise ValueError(f"stages cannot be read, expected some of {', '.join(STAGES)}, not {what!r}"[:200])
    return [stage for stage in STAGES if stage in stages]


def _languages(stored: Mapping[str, Any]) -> list[str]:
    """Return the languages of a study; where it names none, those of its comparison, doses, prompts or retrieval."""
    if "languages" in stored:
        return _list(stored["languages"])
    if "before" in stored:
        return list(stored["before"])
    for keys in (doses.ON_TOXIC, doses.ON_NEUTRAL):
        if rows := stored.get(keys.doses):
            return list(rows[0]["toxicity_by_language"])
    prompts = [row["languages"] for row in stored["origins"] or () if row["table"] == "toxic_prompts"]
    return list(prompts[0]) if prompts else [stored["source_language"], *stored.get("retrieval", ())]


def _read(name: str, read: Callable[[Any], Any], stored: Mapping[str, Any]) -> Any:
    """Return one attribute, from the whole content or from the value under its key."""
    key = _KEYS.get(name, name)
    try:
        return read(stored if name in _FROM_SEVERAL_KEYS else stored.get(key, {}))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"{key} cannot be read, {reason}") from error


def _candidates(stored: Mapping[str, Any]) -> NeuronSet:
    return NeuronSet.of(stored.get("potential", ()), scores=stored.get("cosines") or None)


def _promoted(rows: Sequence[Mapping[str, Any]]) -> tuple[PromotedTokens, ...]:
    tokens = (
        tuple(PromotedToken(entry["token"], tuple(entry["languages"])) for entry in row["tokens"]) for row in rows
    )
    return tuple(PromotedTokens(**dict(row) | {"tokens": promoted}) for row, promoted in zip(rows, tokens, strict=True))


def _intervals(rows: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {code: (low, high) for code, (low, high) in rows.items()}


def summaries(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, TransferSummary]:
    """Return retrieval against the drop in each measure, from what a file holds."""
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


def _transfer(row: Mapping[str, Any], attributes: Mapping[str, Any]) -> Transfer:
    """Return retrieval against the drop in the main measure, over the languages that have both."""
    summary = attributes["transfer_by_measure"].get(row["measure"])
    comparison = attributes["comparison"]
    if comparison is None:
        raise ValueError("it stands against a drop, and nothing was compared")
    drop = summary.drop if summary and summary.drop else comparison.relative_drop(row["measure"])
    retrieval = attributes["retrieval"]
    # A language that was not toxic before has no drop.
    with_drop = {code for code in drop if math.isfinite(drop[code])}
    source, listed = attributes["source_language"], attributes["languages"]
    codes = [code for code in listed if code != source and code in with_drop and code in retrieval]
    return Transfer(
        measure=row["measure"],
        retrieval={code: retrieval[code] for code in codes},
        drop={code: drop[code] for code in codes},
        pearson_r=row["pearson_r"],
        p_value=row["p_value"],
        retrieval_intervals=attributes["retrieval_intervals"],
        drop_intervals=summary.drop_intervals if summary else {},
        pivot=attributes["pivot"],
    )


def _attribution(content: Any) -> AttributionSummary | None:
    if _is_missing(content):
        return None
    neurons, heads = (_list(content[name]) for name in ("neurons", "heads"))
    return AttributionSummary(
        by_language=tuple(map(dict, _list(content["by_language"]))),
        by_layer=tuple(map(dict, _list(content["by_layer"]))),
        neurons=_read_scored(neurons, "neurons"),
        heads=_read_scored(heads, "heads"),
    )


def _read_scored(rows: Sequence[Sequence[Any]], site: Literal["neurons", "heads"]) -> NeuronSet:
    return NeuronSet.of([(layer, index) for layer, index, _ in rows], scores=[row[2] for row in rows], site=site)


def _with_one_nan(value: Any) -> Any:
    """Replace every null, NaN and infinity by one and the same NaN, so that equal results compare equal."""
    if isinstance(value, Mapping):
        return {key: _with_one_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_one_nan(item) for item in value]
    return math.nan if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _list(value: Any) -> list[Any]:
    if isinstance(value, list) or value == {}:
        return list(value)
    raise TypeError(f"expected a list, not {value!r}"[:80])


def _mapping(value: Any) -> dict[str, Any]:
    """Return a row of a file as a dict; an empty one for null."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"expected an object, not {value!r}"[:80])
    return dict(value or {})


def _model(row: Any) -> Identity | None:
    if _is_missing(row):
        return None
    if "name" not in row:
        raise KeyError("name")
    return Identity.of(row)


def _is_missing(value: Any) -> bool:
    """Return whether this stands for no value: an absent key, or null."""
    return value == {} or (isinstance(value, float) and math.isnan(value))


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "languages": lambda content: languages.in_order(_languages(content)),
    "probe": lambda row: None if row == {} else ProbeQuality(**row),
    "n_neurons": lambda n: 0 if n == {} else n,
    "candidates": _candidates,
    "activations": lambda means: tuple(_list(means)),
    "sources": lambda neurons: NeuronSet.of(_list(neurons)),
    "promoted": _promoted,
    "toxic_doses": lambda content: doses.response_of(content, doses.ON_TOXIC),
    "neutral_doses": lambda content: doses.response_of(content, doses.ON_NEUTRAL),
    "evidence": lambda rows: tuple(map(dict, _list(rows))),
    "verdicts": lambda rows: tuple(Verdict(**row) for row in _list(rows)),
    "warnings": lambda sentences: tuple(_list(sentences)),
    "recipe": dict,
    "training": lambda rows: tuple(map(dict, _list(rows))),
    "comparison": lambda content: Comparison.of(content) if "compare" in content["stages"] else None,
    "groups": lambda rows: tuple(GroupChange(**row) for row in _list(rows)),
    "samples": lambda rows: {code: tuple(Sample(**row) for row in samples) for code, samples in rows.items()},
    "retrieval": dict,
    "retrieval_intervals": _intervals,
    "retrieval_by_layer": lambda rows: {code: tuple(layers) for code, layers in rows.items()},
    "n_parallel": dict,
    "transfer_by_measure": summaries,
    "attribution": _attribution,
    "patched": patches.effect_of,
    "patched_sound": patches.effect_of,
    "frontier": lambda content: None if _is_missing(content) else frontier_summary.summary_of(content),
    "side_effects": lambda content: None if _is_missing(content) else SideEffects.of(content),
    "identified": lambda flag: flag or False,
    "mixing": lambda rows: {code: dict(row) for code, row in rows.items()},
    "model": _model,
    "seconds": dict,
    "versions": dict,
    "seed": lambda seed: None if _is_missing(seed) else seed,
    "stages": tuple,
    "source_language": lambda code: code,
    "origins": lambda rows: tuple(map(_mapping, _list(rows))),
    "notes": lambda sentences: tuple(_list(sentences)),
    "settings": _mapping,
    "end_token": lambda row: _mapping(row) or None,
    "judges": lambda rows: tuple(map(_mapping, _list(rows))),
    "pivot": lambda code: None if _is_missing(code) else code,
    "second_opinions": lambda rows: tuple(map(second_opinion.opinion_of, _list(rows))),
}
"""Each attribute, and the function that makes it of the value under its key ({} where there is none)."""
