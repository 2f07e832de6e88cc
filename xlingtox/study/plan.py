"""The plan of a study: which stages are run, in which order, and what the result of each depends on.

A stage has a key: a digest of everything that its result depends on. When a setting changes, only the stages that it
matters to have another key, and only these are done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xlingtox.models.identity import Identity
from xlingtox.study import side_effects_settings
from xlingtox.study.frontier_settings import FrontierSettings
from xlingtox.study.settings import OFF_BY_DEFAULT, STAGES, Materials, Settings


@dataclass(frozen=True)
class Stage:
    """A stage: what it works on, and what its result depends on.

    Attributes:
        needs: the stages that must be done before.
        tables: the materials without which it cannot be done.
        also: other materials that its result depends on, if they are there.
        settings: the settings that matter to it.
        after: stages whose results it uses if they are run too.
        judged: whether the scorer and the identifier of languages matter to it.
        several: whether it takes several judges at once, so that all of them matter to it.
        served: whether a server may write its texts.
    """

    needs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    judged: bool = False
    several: bool = False
    served: bool = False


_DOSES = ("unit", "n_doses", "dose_prompts", "dose_samples", "max_new_tokens", "seed")

STAGE: Mapping[str, Stage] = {
    "localize": Stage(
        tables=("labelled", "toxic_prompts"),
        also=("labelled_elsewhere", "toxic_words"),
        settings=("k", "n_null", "max_new_tokens", "source_language", "seed"),
    ),
    "promoted": Stage(needs=("localize",), tables=("toxic_prompts",), settings=("max_new_tokens", "seed")),
    "intervene": Stage(
        needs=("localize",),
        tables=("toxic_prompts", "held_out"),
        settings=(*_DOSES, "offsets", "n_random"),
        judged=True,
    ),
    "amplify": Stage(
        needs=("localize",),
        tables=("neutral_prompts", "held_out"),
        settings=(*_DOSES, "amplifications", "n_random_amplified"),
        judged=True,
    ),
    "retrieve": Stage(tables=("parallel",), settings=("source_language",)),
    "tune": Stage(tables=("pairs",), also=("validation",), settings=("recipe", "pairs_order", "seed")),
    "compare": Stage(
        needs=("localize", "tune"),
        tables=("toxic_prompts",),
        also=("held_out", "word_groups"),
        settings=("n_samples", "max_new_tokens", "source_language", "seed"),
        judged=True,
        served=True,
    ),
    "predict": Stage(needs=("retrieve", "compare"), settings=("source_language",)),
    "attribute": Stage(
        needs=("localize", "tune", "compare"),
        tables=("toxic_prompts",),
        settings=("attribution_prompts", "max_new_tokens", "seed"),
        judged=True,
    ),
    "frontier": Stage(
        tables=("labelled", "toxic_prompts", "held_out"),
        also=("parallel",),
        settings=("frontier", "k", "max_new_tokens", "source_language", "seed"),
        after=("tune",),
        judged=True,
        several=True,
    ),
    "side_effects": Stage(
        needs=("tune",),
        also=("neutral_prompts", "held_out", "requests", "identify_language"),
        settings=("side_effects", "max_new_tokens", "seed"),
    ),
}
"""Each stage that a user may name, in the order in which they are run."""


N_PROMOTED = 4
"""The words that sources promote are looked for in so many samples of each prompt."""


def samples_of_promoted(settings: Settings, stages: Iterable[str]) -> int:
    """Return how many samples of each prompt are written for `promoted`: all of the comparison's, if that will follow.

    The comparison needs these texts too, and then finds them, unless a server writes those.
    """
    return max(N_PROMOTED, settings.n_samples if "compare" in stages and settings.engine is None else 0)


LEFT_OUT = "The stage attribute is left out: it needs both models in memory at once, and they do not fit."
"""The note where attribution would not fit."""


def planned(materials: Materials, settings: Settings, *, both_fit: bool = True) -> list[str]:
    """Return the stages to run, in their order, with those that they need.

    Without a choice, these are all that the materials allow. The stages frontier and side_effects are among them only
    where the settings have a part for them.

    Args:
        both_fit: whether both models fit into memory at once, which the stage attribute needs.

    Raises:
        ValueError: a stage was asked for, and the materials for it or for one that it needs are missing.
    """
    asked, frontier = wanted(settings), settings.frontier
    if "frontier" in asked and frontier is not None and frontier.methods is None and materials.pairs is not None:
        asked = with_needs([*asked, "tune"])  # all methods are compared, those of a tuned model too
    if settings.stages is None:
        turned_on = [name for name in OFF_BY_DEFAULT if getattr(settings, name) is not None]
        required = with_needs(turned_on, frontier=frontier)
        fitting = [name for name in asked if name != "attribute" or both_fit]
        asked = [name for name in fitting if name in required or not lacking(name, materials)]
    for name in asked:
        if missing := lacking(name, materials):
            raise ValueError(
                f"the stage {name} needs the materials {' and '.join(missing)}: give them, or leave it out"
            )
    return asked


def wanted(settings: Settings) -> list[str]:
    """Return the stages that the settings ask for, whatever the materials allow.

    Without a choice, these are all; but some stages are asked for by their own settings.
    """
    if settings.stages is None:
        return [name for name in STAGES if name not in OFF_BY_DEFAULT or getattr(settings, name) is not None]
    return with_needs(settings.stages, frontier=settings.frontier)


def with_needs(names: Iterable[str], *, frontier: FrontierSettings | None = None) -> list[str]:
    """Return these stages and all that they need, in the order in which they are run.

    Args:
        frontier: the settings of the stage frontier. If they name a method of a tuned model, it needs the stage tune.
    """
    needed = set(names)
    for name in reversed(STAGES):
        if name in needed:
            needed.update(STAGE[name].needs)
            if name == "frontier" and frontier is not None and frontier.asks_for_tuned:
                needed.add("tune")
    return [name for name in STAGES if name in needed]


def lacking(name: str, materials: Materials) -> list[str]:
    """Return the materials that a stage, or one that it needs, lacks."""
    tables = dict.fromkeys(table for needed in with_needs([name]) for table in STAGE[needed].tables)
    return [table for table in tables if getattr(materials, table) is None]


def keys(
    model: Identity,
    materials: Materials,
    settings: Settings,
    names: Iterable[str],
    *,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the key of each of these stages: twelve hex digits.

    Args:
        known: the keys of stages that are done once for all judges, with other materials than these.
    """
    names = list(names)
    digests, values = materials.digests(), settings.as_json()
    if "side_effects" in names and settings.side_effects is not None:
        values["side_effects"] = side_effects_settings.for_key(settings.side_effects)
    by_stage: dict[str, str] = {}
    for name in names:
        if known is not None and name in known:
            by_stage[name] = known[name]
            continue
        stage = STAGE[name]
        about = _content(model, stage, digests, values)
        before = [*stage.needs, *(other for other in stage.after if other in by_stage)]
        by_stage[name] = _digest([name, about, [by_stage[needed] for needed in before]])
    return by_stage


def _content(
    model: Identity, stage: Stage, digests: Mapping[str, str | None], values: Mapping[str, Any]
) -> dict[str, Any]:
    judges = ["scorer", "identify_language"] if stage.judged else []
    if stage.several and digests["second_judges"] is not None:
        judges.append("second_judges")
    return {
        "model": _model(model),
        "materials": {table: digests[table] for table in (*stage.tables, *stage.also, *judges)},
        "settings": {name: values.get(name) for name in stage.settings},
        **({"writer": "server"} if stage.served and values["engine"] is not None else {}),
    }


def text_key(model: Identity, materials: Materials, settings: Settings, tuned: str) -> str:
    """Return the key of what both models write for the comparison; no scorer matters to it.

    Args:
        tuned: the key of the stage in which the model was tuned.
    """
    names = ("n_samples", "max_new_tokens", "seed")
    values, digests = settings.as_json(), materials.digests()
    about = [*_model(model), digests["toxic_prompts"], [values[name] for name in names], tuned]
    # Where a server runs does not matter, but it draws other samples than the model here.
    return _digest(about if settings.engine is None else [*about, "server"])


def _model(model: Identity) -> list[str]:
    # A chat model answers otherwise than it continues text. Keys of other models are those of earlier versions.
    return [model.fingerprint, model.dtype, *([] if model.chat is None else [model.chat])]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:12]
