"""The differences of several studies: in model, data, settings, recipe, judges, versions and languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlingtox import languages
from xlingtox.study import provenance
from xlingtox.study.results import StudyResults
from xlingtox.study.results_file import STAGES
from xlingtox.text import seen

_ELSEWHERE = ("settings.recipe", "settings.seed", "settings.stages", "settings.source_language", "recipe.seed")
"""Settings that stand among the facts of a study under another name already."""

_SEED = "seed"
_VERSIONS = "versions."


@dataclass(frozen=True)
class Difference:
    """One fact that is not the same in all studies.

    Attributes:
        key: the name of the fact, such as "recipe.steps".
        values: its value in each study, in words; "–" where a study has none.

    Example:
        >>> str(xt.study.differences.Difference("recipe.steps", ("10", "20")))
        'recipe.steps 10 → 20'
    """

    key: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key} {(' → ' if len(self.values) == 2 else ' / ').join(self.values)}"


def between(studies: Mapping[str, StudyResults]) -> list[Difference]:
    """Return what is not the same in all studies; versions of packages come last."""
    facts = [_facts(results) for results in studies.values()]
    keys = dict.fromkeys(key for of_study in facts for key in of_study)
    found = [Difference(key, tuple(of_study.get(key, "–") for of_study in facts)) for key in keys]
    return [difference for difference in found if len(set(difference.values)) > 1]


def sentence(studies: Mapping[str, StudyResults]) -> str:
    """Say in one sentence in what the studies differ, but for the versions of packages."""
    found = [str(difference) for difference in between(studies) if _is_told(difference)]
    these = "These two" if len(studies) == 2 else f"These {len(studies)}"
    if not found:
        return f"{these} do not differ in model, data or settings."
    return f"{these} differ in: {'; '.join(found)}."


def _is_told(difference: Difference) -> bool:
    """Return whether the sentence tells it: not what follows from another model or stage, nor what `lacking` tells."""
    if difference.key in ("languages", "stages", "model.fingerprint") or difference.key.startswith(_VERSIONS):
        return False
    return len(set(difference.values) - {"–"}) > 1


def lacking(studies: Mapping[str, StudyResults]) -> list[str]:
    """Return a sentence for each study that lacks languages or stages that another has."""
    codes = languages.in_order(code for results in studies.values() for code in results.languages)
    stages = [stage for stage in STAGES if any(stage in results.stages for results in studies.values())]
    sentences = []
    for name, results in studies.items():
        without = [seen(languages.name(code)) for code in codes if code not in results.languages]
        skipped = [stage for stage in stages if stage not in results.stages]
        sentences += [f"{seen(name)} lacks {', '.join(without)}."] if without else []
        sentences += [f"{seen(name)} did not run {', '.join(skipped)}."] if skipped else []
    return sentences


def seeds_of_one(studies: Mapping[str, StudyResults]) -> list[list[str]]:
    """Return the names of the studies in groups: those of one group differ in nothing but their seed and versions."""
    groups: dict[str, list[str]] = {}
    for name, results in studies.items():
        facts = {key: value for key, value in _facts(results).items() if key != _SEED}
        # Tables that are drawn with another seed have another hash.
        alike = {key: value for key, value in facts.items() if not key.startswith((_VERSIONS, "data."))}
        groups.setdefault(repr(sorted(alike.items())), []).append(name)
    return list(groups.values())


def _facts(results: StudyResults) -> dict[str, str]:
    """Return what a study was made of, in words by a name for each; what is not known is left out."""
    model, source = results.model, results.source_language
    values: dict[str, Any] = {
        "model": model and model.name,
        "model.revision": model and model.revision,
        "model.dtype": model and model.dtype,
        "model.fingerprint": model and model.fingerprint,
        "languages": ", ".join(languages.name(code) for code in results.languages),
        "source language": languages.name(source),
        "stages": ", ".join(results.stages),
        "seed": results.seed,
        **_judges(results),
        **{f"data.{row.get('table')}": _origin(row) for row in results.origins},
        "end of text": results.end_token and provenance.shown(bool(results.end_token.get("preferred"))),
        **provenance.flattened({"settings": results.settings, "recipe": results.recipe}),
        **{f"{_VERSIONS}{name}": release for name, release in results.versions.items()},
    }
    return {
        seen(key): seen(provenance.shown(value))
        for key, value in values.items()
        if value not in (None, {}, "None") and not key.startswith(_ELSEWHERE)
    }


def _judges(results: StudyResults) -> dict[str, Any]:
    judges = provenance.judges(results)
    return {"judge": ", ".join(f"{row.get('name')} {row.get('revision') or ''}".strip() for row in judges) or None}


def _origin(row: Mapping[str, Any]) -> str:
    parts = (row.get("n"), row.get("loader"), row.get("path"), row.get("hash"))
    return " ".join(str(part) for part in parts if part is not None)
