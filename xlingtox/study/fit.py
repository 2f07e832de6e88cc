"""Check that model, materials and settings fit each other, before a study writes to its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset

from xlingtox import languages, tuning
from xlingtox.checking import checked
from xlingtox.data import check_columns, labelled_texts
from xlingtox.evaluation.fluency import check_held_out
from xlingtox.models.generation import check_lengths
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import localize
from xlingtox.neurons.probe import split
from xlingtox.scoring.protocol import check_covered
from xlingtox.study import second_judges, side_effects_stage
from xlingtox.study.plan import planned
from xlingtox.study.settings import Materials, Settings, pivot_of
from xlingtox.transfer import retrieval


@checked
def check_fit(lm: HookedLM, materials: Materials, settings: Settings) -> None:
    """Raise ValueError at once for anything that a stage would refuse hours later.

    Only what the planned stages work on is looked at.
    """
    lm.check_unedited("a study's folder does not show")
    stages = planned(materials, settings)
    if not stages:
        raise ValueError("these materials allow no stage: give parallel sentences, pairs, or labelled sentences")
    for name in ("labelled", "toxic_prompts", "neutral_prompts", "pairs", "parallel", "held_out"):
        if (table := getattr(materials, name)) is not None:
            check_columns(table, (), f"the materials' {name}")
    _check_prompts(lm, materials.toxic_prompts, "toxic prompts", materials, settings)
    if "localize" in stages:
        _check_localising(lm, materials, settings)
    if "amplify" in stages:
        assert materials.neutral_prompts is not None
        _check_prompts(lm, materials.neutral_prompts, "neutral prompts", materials, settings)
    if materials.held_out is not None:
        check_held_out(lm, materials.held_out)
    _check_languages(materials, stages)
    second_judges.check(materials)
    if "tune" in stages:
        assert materials.pairs is not None
        for name in ("pairs", "validation"):
            _check_in_source(getattr(materials, name), name, settings.source_language)
        recipe = settings.for_model(lm).seeded_recipe()
        tuning.check_recipe(lm, recipe)
        tuning.tunable_pairs(lm, materials.pairs, recipe=recipe, validation=materials.validation)
    if "frontier" in stages:
        localize.check_k(lm, k=settings.k)
        _check_frontier(materials, settings)
    if "side_effects" in stages:
        side_effects_stage.check(lm, materials, settings)
    if "retrieve" in stages:
        assert materials.parallel is not None
        retrieval.sentence_pairs(materials.parallel, pivot=pivot_of(materials.parallel, settings.source_language))


def _check_localising(lm: HookedLM, materials: Materials, settings: Settings) -> None:
    localize.check_k(lm, k=settings.k)
    if materials.labelled_elsewhere is not None:
        check_columns(materials.labelled_elsewhere, ("language", "text", "label"), "the materials' labelled_elsewhere")
    _check_in_source(materials.labelled, "labelled", settings.source_language)
    _, labels = labelled_texts(materials.labelled)
    split(labels, seed=settings.seed)
    if settings.source_language not in materials.toxic_prompts["language"]:
        raise ValueError(
            f"there are no toxic prompts in {languages.name(settings.source_language)}: the sources are found on them"
        )


def _check_in_source(table: Dataset | None, name: str, source_language: str) -> None:
    """Raise ValueError where a table names its languages, and has others than the source language."""
    if table is None or "language" not in table.column_names:
        return
    source, codes = languages.name(source_language), languages.in_order(table["language"])
    if source_language not in codes:
        raise ValueError(
            f"the materials' {name} has nothing in {source}, the source language: give rows of it, or set "
            f"source_language to one of {', '.join(codes)}"
        )
    if others := [code for code in codes if code != source_language]:
        raise ValueError(
            f"the materials' {name} has rows in {', '.join(others)} besides {source}, the source language: "
            "leave them out"
        )


def _check_frontier(materials: Materials, settings: Settings) -> None:
    _, labels = labelled_texts(materials.labelled)
    if len(set(labels)) < 2:
        raise ValueError("the labelled sentences are all of one class: methods are fitted on toxic and on other ones")
    assert materials.held_out is not None
    for what, table in (("toxic prompts", materials.toxic_prompts), ("held-out texts", materials.held_out)):
        counts = Counter(table["language"])
        if few := [code for code in counts if counts[code] < 2]:
            raise ValueError(
                f"there are fewer than 2 {what} in {languages.name(few[0])}: strengths are chosen on one half of them, "
                "and methods are measured on the other"
            )
    if settings.source_language not in materials.toxic_prompts["language"]:
        raise ValueError(
            f"there are no toxic prompts in {languages.name(settings.source_language)}: the effect in other languages "
            "is compared with the effect there"
        )


def _check_prompts(lm: HookedLM, table: Dataset, what: str, materials: Materials, settings: Settings) -> None:
    check_columns(table, ("language", "prompt"), what)
    prompts = lm.as_prompts(table)
    check_covered(materials.scorer, [prompt.language for prompt in prompts])
    check_lengths(lm, prompts, settings.max_new_tokens)


def _check_languages(materials: Materials, stages: Sequence[str]) -> None:
    """Raise ValueError where a table lacks a language that the toxic prompts have."""
    tables = {
        "held_out": materials.held_out,
        "neutral_prompts": materials.neutral_prompts if "amplify" in stages else None,
    }
    for name, table in tables.items():
        if table is None:
            continue
        if lacking := sorted(set(materials.toxic_prompts["language"]) - set(table["language"])):
            raise ValueError(f"the materials' {name} has nothing in {', '.join(lacking)}, which the toxic prompts have")
