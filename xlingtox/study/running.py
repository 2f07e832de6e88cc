"""Run a study: do each stage that is not done, keep its result, and write `results.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xlingtox import processes
from xlingtox._version import __version__
from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.scoring import ByLanguage, Cached, PerspectiveScorer
from xlingtox.scoring.protocol import Scorer, ScorerIdentity
from xlingtox.study import second_opinion, space, under_judges
from xlingtox.study.check import tried
from xlingtox.study.costs import Shape
from xlingtox.study.fit import check_fit
from xlingtox.study.in_progress import InProgress
from xlingtox.study.log_file import logging_to
from xlingtox.study.models import Models, ModelSource
from xlingtox.study.plan import LEFT_OUT, keys, planned
from xlingtox.study.progress_lines import ProgressLines, can_draw
from xlingtox.study.results import StudyResults
from xlingtox.study.second_judges import JUDGED, SecondJudge
from xlingtox.study.second_opinion import SecondOpinion
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.stages import WORK, verdicts_and_warnings
from xlingtox.study.study_check import StudyCheck
from xlingtox.study.study_folder import StudyFolder, stage_file
from xlingtox.text import seen

_LOG = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "transformer-lens", "trl", "scikit-learn")


@checked
def run(
    lm: HookedLM | ModelSource,
    materials: Materials,
    *,
    output_dir: str | Path,
    settings: Settings,
    progress: bool = True,
) -> StudyResults:
    """Do the study, or what is left of it, and write `results.json`.

    The stages find the sources, edit them, measure retrieval, tune the model on pairs in one language, compare it
    before and after, predict the reach, and find where tuning acts. Stages whose materials are missing are left out.

    A run that was stopped goes on where it was, to the same results: at most one batch is done twice. When a setting or
    a table has changed, only the stages that it matters to are done again.

    Args:
        lm: the model before tuning, without an edit on it. A `ModelSource` is loaded for a stage and then let go, so
            that the model before tuning and the tuned one are in memory together for attribution only.
        materials: the data that the stages work on.
        output_dir: the folder of the study. `stages/` in it holds the result of each stage that is done, and
            `study.log` what happened.
        settings: the stages, the sizes, the offsets, the recipe of tuning and the seed.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the materials or settings do not fit the model or each other; then the folder is left as it was. Or
            a file of the folder cannot be read.

    Example:
        >>> results = xt.study.run(lm, materials, output_dir="runs/study", settings=settings)  # doctest: +SKIP
        >>> xt.study.report.write(results, "runs/study/report.html")  # doctest: +SKIP
    """
    return run_models(Models(lm), materials, output_dir=output_dir, settings=settings, progress=progress)


def run_models(
    models: Models, materials: Materials, *, output_dir: str | Path, settings: Settings, progress: bool
) -> StudyResults:
    """Do a study of models that may be in memory already; see `run`."""
    base = models.base()
    settings = settings.for_model(base)
    check_fit(base, materials, settings)
    identity, room = base.identity(), space.device_memory(base.device)
    both_fit = processes.from_main(lambda: space.both_fit(Shape.of(base), room))
    stages = planned(materials, settings, both_fit=both_fit)
    notes = () if stages == planned(materials, settings) else (LEFT_OUT,)
    stage_keys = keys(identity, materials, settings, stages)
    first_look = _first_look(base, materials, settings, output_dir=Path(output_dir), keys=stage_keys, progress=progress)
    del base
    folder = StudyFolder(output_dir)
    folder.claim()
    study = InProgress(
        models,
        materials,
        settings,
        folder=folder.path,
        keys=stage_keys,
        scorer=_kept(materials.scorer, folder.path, progress=progress),
        progress=progress,
        second_scorers=tuple(_kept(scorer, folder.path, progress=progress) for scorer in materials.second_judges),
    )
    others = [SecondJudge(scorer, study, identity, stages) for scorer in study.second_scorers]
    if first_look is not None:
        processes.from_main(partial(first_look.save, folder.path / "check.json"))
    expected = {} if first_look is None else first_look.seconds
    seconds: dict[str, float] = {}
    log = logging_to(folder.path / "study.log") if processes.is_main() else contextlib.nullcontext()
    shown = progress and processes.is_main()
    with log, ProgressLines(stages, shown=shown, expected=expected) as lines:
        for sentence in () if first_look is None else first_look.notes:
            _LOG.info("%s", sentence)
        for sentence in () if first_look is None else first_look.warnings:
            _LOG.warning("%s", sentence)
        for name in stages:
            seconds[name] = _do(name, study, others if name in JUDGED else (), folder, lines)
        results = _results(study, identity, seconds, notes, [judge.opinion() for judge in others])
    processes.from_main(partial(results.save, folder.path / "results.json"))
    models.release()
    return results


def _do(
    name: str, study: InProgress, others: Sequence[SecondJudge], folder: StudyFolder, lines: ProgressLines
) -> float:
    """Do a stage that is not done, and again under each second judge. Return the seconds that it took in all."""
    seconds = 0.0
    with contextlib.ExitStack() as shown:
        is_shown = False
        for number, judge in enumerate((None, *others)):
            side, place = (study, name) if judge is None else (judge.side(), f"{name}, judged by {seen(judge.name)}")
            # What the models read is the same under every judge.
            keep = number < len(others)
            if (done := folder.done(name, side.keys[name], keep_numbers=keep)) is None:
                if not is_shown:
                    shown.enter_context(lines.stage(name))
                    is_shown = True
                done = folder.do(name, side.keys[name], partial(WORK[name], side), keep_numbers=keep)
                _LOG.info("%s: done in %.1f s", place, done.seconds)
            else:
                _LOG.info("%s: was done before", place)
            seconds += done.seconds
            if judge is None:
                study.done[name] = done.result
            else:
                judge.keep(name, done.result)
    if not is_shown:
        lines.skip(name)
    return seconds


def _first_look(
    base: HookedLM,
    materials: Materials,
    settings: Settings,
    *,
    output_dir: Path,
    keys: Mapping[str, str],
    progress: bool,
) -> StudyCheck | None:
    """Check a study before it works: what it will take, and whether anything stands in its way. A study that has begun
    was checked.

    Raises:
        ValueError: the study cannot be run, with a line for each reason.
    """

    def first_look() -> StudyCheck | None:
        if any(stage_file(output_dir, name, key).exists() for name, key in keys.items()):
            return None
        checked = tried(base, materials, settings, output_dir=output_dir, progress=progress and can_draw())
        if checked.problems:
            raise ValueError("\n".join(checked.problems))
        return checked

    return processes.from_main(first_look)


def _kept(scorer: Scorer, folder: Path, *, progress: bool) -> Scorer:
    """Return the scorer, with a cache in the study's folder if it has none. The main process alone asks it."""
    if isinstance(scorer, Cached | PerspectiveScorer) or not processes.is_main():
        return scorer
    return Cached(scorer, path=folder / "scores.sqlite", progress=progress)


def _results(
    study: InProgress,
    model: Identity,
    seconds: Mapping[str, float],
    notes: Sequence[str],
    opinions: Sequence[SecondOpinion],
) -> StudyResults:
    """Put the results of all stages together, with notes on the run."""
    materials, settings = study.materials, study.settings
    content: dict[str, Any] = {}
    for result in (*study.done.values(), verdicts_and_warnings(study)):
        content |= result
    if opinions:
        content["second_opinions"] = [second_opinion.content_of(opinion) for opinion in opinions]
        content["warnings"] += under_judges.warnings(study.scorer.name, content["verdicts"], opinions)
    judges = map(dataclasses.asdict, _judges(materials.scorer))
    prompt_languages = list(dict.fromkeys(materials.toxic_prompts["language"]))
    content |= {
        "languages": list(study.done["compare"]["before"]) if "compare" in study.done else prompt_languages,
        "stages": list(study.done),
        "source_language": settings.source_language,
        "origins": [dict(origin) for origin in materials.origins],
        "notes": [*materials.notes, *notes],
        "settings": settings.as_json(),
        "judges": [judge | {"languages": list(judge["languages"])} for judge in judges],
        "identified": materials.identify_language is not None,
        "given": materials.mixing,
        "model": dataclasses.asdict(model),
        "seconds": dict(seconds),
        "versions": {"python": platform.python_version(), "xlingtox": __version__}
        | {name: version(name) for name in _PACKAGES},
        "seed": settings.seed,
    }
    return StudyResults.of(content)


def _judges(scorer: Scorer) -> tuple[ScorerIdentity, ...]:
    """Return who judges: the members of several scorers in one, each with the languages that go to it."""
    uncached = scorer.scorer if isinstance(scorer, Cached) else scorer
    return uncached.members if isinstance(uncached, ByLanguage) else (ScorerIdentity.of(scorer),)
