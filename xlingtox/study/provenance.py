"""Provenance: what a study was made of, in lines that a page and a terminal show, and as one value for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from xlingtox import languages
from xlingtox.html.tables import number
from xlingtox.study.recipes import method_name, reads_beta
from xlingtox.study.results import StudyResults
from xlingtox.text import seen

Line = tuple[str, str]
"""What is told, and the text that tells it: safe to display, but not escaped."""

_TABLES = {
    "toxic_prompts": "Toxic prompts",
    "neutral_prompts": "Neutral prompts",
    "labelled": "Labelled sentences",
    "labelled_elsewhere": "Labelled in other languages",
    "pairs": "Preference pairs",
    "validation": "Validation pairs",
    "parallel": "Parallel sentences",
    "held_out": "Held-out text",
    "requests": "Requests",
}
"""The tables of a study's materials, and what they are called."""

_NAMED = 4
"""At most so many languages are named where their number says enough."""


def model_name(results: StudyResults) -> str:
    """Return a short name of the model: a hub name whole, and the last part of a path."""
    if results.model is None:
        return "a language model"
    name = results.model.name
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return seen(PurePath(name.replace("\\", "/")).name or name if is_path else name)


def lines(results: StudyResults) -> list[Line]:
    """Return what a reader must know before the figures: model, data, recipe, judges, and what was dropped."""
    codes = results.languages
    told = [
        ("Model", _model(results)),
        ("Languages", f"{len(codes)}: {_named(codes)}" if len(codes) > 1 else _named(codes)),
    ]
    told += [_origin(row) for row in results.origins]
    told += [("Tuning", text) for text in [_tuning(results)] if text]
    if results.end_token is not None:
        preferred = (
            "part of what is preferred" if results.end_token.get("preferred") else "no part of what is preferred"
        )
        reason = seen(results.end_token.get("reason") or "")
        told.append(("End of text", f"{preferred}{': ' if reason else ''}{reason}"))
    told += [("Written by", text) for text in [_writers(results)] if text]
    if results.comparison or results.toxic_doses.doses or results.neutral_doses.doses:
        told += [("Judge", _judge(row, codes)) for row in judges(results)]
        seconds = (dataclasses.asdict(opinion.judge) for opinion in results.second_opinions)
        told += [("Second judge", _judge(row, codes)) for row in seconds]
    told += [("Note", seen(note)) for note in results.notes]
    if total := sum(value for value in results.seconds.values() if math.isfinite(value)):
        told.append(("Time", f"{duration(total)}, for the stages {', '.join(results.stages)}"))
    return told


def further_lines(results: StudyResults) -> list[Line]:
    """Return what is needed to do the study again: seed, settings, versions, and the time of each stage."""
    told = [("Seed", "unknown" if results.seed is None else str(results.seed))]
    if results.settings:
        told.append(("Settings", _pairs(flattened(results.settings))))
    if results.recipe:
        told.append(("Recipe", _pairs(flattened(results.recipe))))
    versions = (f"{seen(name)} {seen(release)}" for name, release in results.versions.items())
    seconds = (f"{seen(stage)} {duration(value)}" for stage, value in results.seconds.items())
    told += [("Versions", ", ".join(versions)), ("Time by stage", ", ".join(seconds))]
    return [(what, text) for what, text in told if text]


def as_json(results: StudyResults) -> dict[str, Any]:
    """Return the provenance as one value of a JSON file."""
    model = results.model
    return {
        "model": None if model is None else dict(vars(model)),
        "languages": {code: languages.name(code) for code in results.languages},
        "source_language": results.source_language,
        "stages": list(results.stages),
        "data": [dict(row) for row in results.origins],
        "notes": list(results.notes),
        "recipe": dict(results.recipe),
        "end_token": results.end_token and dict(results.end_token),
        "judges": [dict(row) for row in judges(results)],
        "second_judges": [dataclasses.asdict(opinion.judge) for opinion in results.second_opinions],
        "settings": dict(results.settings),
        "seed": results.seed,
        "seconds": dict(results.seconds),
        "versions": dict(results.versions),
    }


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dots in its keys.

    Example:
        >>> from xlingtox.study.provenance import flattened
        >>> flattened({"k": 100, "recipe": {"steps": 20, "lora": None}})
        {'k': 100, 'recipe.steps': 20, 'recipe.lora': None}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        nested = isinstance(item, Mapping) and item
        flat |= flattened(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return flat


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> from xlingtox.study.provenance import duration
        >>> duration(84), duration(1380), duration(9000)
        ('84 seconds', '23 minutes', '2.5 hours')
    """
    if not seconds >= 90:
        return f"{number(seconds, 0 if seconds >= 10 else 1)} seconds"
    return f"{number(seconds / 60, 0)} minutes" if seconds < 5400 else f"{number(seconds / 3600, 1)} hours"


def shown(value: Any) -> str:
    """Return a setting's value in words: "–" for None, "yes" and "no", and lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(shown, value)) if isinstance(value, list | tuple) else seen(value)


def _pairs(flat: Mapping[str, Any]) -> str:
    return "; ".join(f"{seen(key)} {shown(value)}" for key, value in flat.items())


def _model(results: StudyResults) -> str:
    model = results.model
    if model is None:
        return "unknown"
    revision = f", revision {model.revision}" if model.revision else ""
    dtype = f", {model.dtype}" if model.dtype != "None" else ""
    edit = f", under {model.edit}" if model.edit else ""
    return seen(f"{model.name}{revision}{dtype}{edit}, fingerprint {model.fingerprint}")


def _origin(row: Mapping[str, Any]) -> Line:
    """Return one line about a table of data: how much, from where, and the hash by which it is known again."""
    counts = row.get("languages") or {}
    codes = list(counts)
    where = f" in {_named(codes)}" if 0 < len(codes) <= _NAMED else f" in {len(codes)} languages" if codes else ""
    each = set(counts.values()) if isinstance(counts, Mapping) else set()
    per_language = f", {next(iter(each))} each" if len(each) == 1 and len(codes) > 1 else ""
    loader = f", loader {row['loader']}" if row.get("loader") else ""
    path = f" from {row['path']}" if row.get("path") else ""
    made = f", made from {_TABLES.get(row['made_from'], row['made_from']).lower()}" if row.get("made_from") else ""
    digest = f", hash {row['hash']}" if row.get("hash") else ""
    table, count = str(row.get("table", "data")), row.get("n", "?")
    return seen(_TABLES.get(table, table)), seen(f"{count}{where}{per_language}{loader}{path}{made}{digest}")


def _end(policy: Mapping[str, Any]) -> str:
    part = "a part" if policy.get("preferred") else "no part"
    reason = f": {seen(policy['reason'])}" if policy.get("reason") else ""
    return f"{part} of what is preferred{reason}"


def _tuning(results: StudyResults) -> str:
    recipe, source = results.recipe, seen(languages.name(results.source_language))
    if not recipe:
        return ""
    order = {
        "reversed": ", chosen and rejected exchanged",
        "shuffled": ", chosen and rejected shuffled",
    }.get(str(results.settings.get("pairs_order")), "")
    length = f"{shown(recipe['steps'])} steps" if recipe.get("steps") else f"{shown(recipe.get('epochs'))} epochs"
    size = recipe.get("batch_size")
    if isinstance(size, int) and isinstance(recipe.get("accumulation", 1), int):
        length += f" of {size * recipe.get('accumulation', 1)} pairs"
    lora = recipe.get("lora")
    bits = f", base of {shown(lora['bits'])} bits" if isinstance(lora, Mapping) and lora.get("bits") else ""
    weights = f"an adapter of rank {shown(lora.get('rank'))}{bits}" if isinstance(lora, Mapping) else "all weights"
    rates = [
        f"{name} {shown(recipe[key])}"
        for key, name in (("learning_rate", "learning rate"), ("beta", "beta"))
        if key in recipe and (key != "beta" or reads_beta(recipe))
    ]
    return ", ".join([f"{method_name(recipe)} on {source} pairs{order}: {length}", *rates, weights])


def _writers(results: StudyResults) -> str:
    """Say which servers wrote the comparison's texts; nothing where the models wrote them."""
    engine = results.settings.get("engine")
    if not isinstance(engine, Mapping) or results.comparison is None:
        return ""
    places = [seen(engine.get("url")), seen(engine.get("tuned_url") or engine.get("url"))]
    where = f"a server at {places[0]}" if places[0] == places[1] else f"servers at {places[0]} and {places[1]}"
    return f"{where}, for the samples of the comparison; all other text by the model on the study's machine"


def judges(results: StudyResults) -> list[dict[str, Any]]:
    """Return the scorers with the languages that each judged; of an older file, the one of its comparison."""
    if results.judges:
        return [dict(row) for row in results.judges]
    scorer = results.comparison.scorer if results.comparison else None
    return [{"name": scorer.name, "revision": scorer.revision, "languages": list(scorer.languages)}] if scorer else []


def _judge(row: Mapping[str, Any], codes: Sequence[str]) -> str:
    covered = list(row.get("languages") or ())
    studied = [code for code in codes if code in covered]
    whole = f"all {len(codes)} languages" if len(codes) > 1 else _named(codes)
    coverage = whole if len(studied) == len(codes) else _named(studied) or "none of the languages"
    revision = f", revision {row['revision']}" if row.get("revision") else ""
    return f"{seen(row.get('name', 'unknown'))}{seen(revision)}: {coverage}"


def _named(codes: Sequence[str]) -> str:
    return ", ".join(seen(languages.name(code)) for code in codes)
