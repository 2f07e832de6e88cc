"""Second judges: the stages that depend on a judge are done again under each, on texts that are there already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from xlingtox import processes
from xlingtox.evaluation.comparison import Comparison
from xlingtox.languages import in_order
from xlingtox.models.generation import Continuations
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import Scorer, ScorerIdentity
from xlingtox.study import doses, plan, second_opinion, stages
from xlingtox.study.in_progress import InProgress
from xlingtox.study.settings import Materials, Settings

JUDGED = ("intervene", "amplify", "compare", "predict", "attribute")
"""The stages that are done again under each second judge. The stage frontier asks all judges at once."""

_OFFSETS = {"intervene": ("offsets", doses.ON_TOXIC), "amplify": ("amplifications", doses.ON_NEUTRAL)}
"""The setting that holds the doses of a stage, and the keys under which their results stand."""


class SecondJudge:
    """One judge besides the first, with the results of the stages that were done under it.

    It judges what the first one judged: the same texts, at the same doses, in the languages that it covers.
    """

    def __init__(self, scorer: Scorer, study: InProgress, model: Identity, names: Sequence[str]) -> None:
        """
        Args:
            scorer: the judge, with a cache.
            study: the study under the first judge.
            model: the model before tuning.
            names: the planned stages.
        """
        self._scorer, self._study, self._model, self._names = scorer, study, model, names
        self._materials = under(scorer, study.materials)
        self._done: dict[str, dict[str, Any]] = {}

    @property
    def name(self) -> str:
        """The name of the judge."""
        return self._scorer.name

    def side(self) -> InProgress:
        """Return the study under this judge, with all that was done so far."""
        study, settings = self._study, self._settings()
        shared = {name: key for name, key in study.keys.items() if name not in JUDGED}
        done = {name: result for name, result in study.done.items() if name not in (*JUDGED, "frontier")}
        keys = plan.keys(self._model, self._materials, settings, self._names, known=shared)
        side = dataclasses.replace(
            study,
            materials=self._materials,
            settings=settings,
            keys=keys,
            scorer=self._scorer,
            done=done | self._done | self._frontier(),
        )
        if "compare" in keys:
            processes.from_main(lambda: _share_texts(study.written_folder, side.written_folder, self._materials))
        return side

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Keep the result of a stage that was done under this judge."""
        self._done[name] = result

    def opinion(self) -> second_opinion.SecondOpinion:
        """Return what the study finds under this judge."""
        side = self.side()
        responses = {
            name: doses.response_of(side.done.get(stage, {}), keys)
            for name, (stage, keys) in {
                "toxic_doses": ("intervene", doses.ON_TOXIC),
                "neutral_doses": ("amplify", doses.ON_NEUTRAL),
            }.items()
        }
        compared = side.done.get("compare")
        return second_opinion.SecondOpinion(
            ScorerIdentity.of(self._scorer),
            in_order(self._materials.toxic_prompts["language"]),
            comparison=None if compared is None else Comparison.of(compared),
            **responses,
            verdicts=tuple(stages.judged_verdicts(side)),
            warnings=tuple(stages.warnings(side)),
        )

    def _settings(self) -> Settings:
        """Return the settings with the doses that the first judge saw."""
        settings = self._study.settings
        for stage, (name, keys) in _OFFSETS.items():
            if getattr(settings, name) is None and (done := self._study.done.get(stage)) is not None:
                offsets: dict[str, Any] = {name: tuple(float(dose["offset"]) for dose in done[keys.doses])}
                settings = dataclasses.replace(settings, **offsets)
        return settings

    def _frontier(self) -> dict[str, dict[str, Any]]:
        """Return the comparison of methods under this judge, where the stage frontier asked it."""
        content = self._study.done.get("frontier", {}).get("frontier_again", {}).get(self.name)
        return {} if content is None else {"frontier": {"frontier": content}}


def under(scorer: Scorer, materials: Materials) -> Materials:
    """Return the materials that another judge judges: those in the languages that it covers."""
    tables = {
        name: _covered(table, scorer)
        for name in ("toxic_prompts", "neutral_prompts", "held_out")
        if (table := getattr(materials, name)) is not None
    }
    return dataclasses.replace(materials, scorer=scorer, second_judges=(), **tables)


def _covered(table: Dataset, scorer: Scorer) -> Dataset:
    rows = [row for row, code in enumerate(table["language"]) if code in scorer.languages]
    return table if len(rows) == len(table) else table.select(rows)


def check(materials: Materials) -> None:
    """Raise ValueError unless each judge has a name of its own, and covers a language of the prompts."""
    names = [scorer.name for scorer in (materials.scorer, *materials.second_judges)]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"two judges are called {twice[0]}: give each a name of its own")
    codes = in_order(materials.toxic_prompts["language"])
    for scorer in materials.second_judges:
        if not scorer.languages.intersection(codes):
            raise ValueError(
                f"the second judge {scorer.name} covers none of the prompts' languages, {', '.join(codes)}: leave it "
                "out, or take one that covers some"
            )


def _share_texts(whole: Path, part: Path, materials: Materials) -> None:
    """Give a comparison of fewer prompts what was written after these prompts for the whole one.

    A text depends on its prompt, the number of its sample and the seed, but not on the other prompts.
    """
    codes = set(materials.toxic_prompts["language"])
    for name in ("before.json", "after.json"):
        if (part / name).exists() or not (whole / name).exists():
            continue
        written = Continuations.load(whole / name)
        kept = [i for i, prompt in enumerate(written.prompts) if prompt.language in codes]
        texts = (text for i in kept for text in written.texts[i * written.n_samples : (i + 1) * written.n_samples])
        part.mkdir(parents=True, exist_ok=True)
        rows = dataclasses.replace(written, prompts=tuple(written.prompts[i] for i in kept), texts=tuple(texts))
        rows.save(part / name)
