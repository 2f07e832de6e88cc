"""The stage `frontier`: which method makes the model least toxic, where all cost the same fluency.

It is off by default. Methods are fitted on labelled sentences in the source language, and turned up on some of the
study's prompts and held-out texts. Those that need a tuned model take the one that the study tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from datasets import Dataset

from xlingtox import files, processes
from xlingtox.data.columns import labelled_texts
from xlingtox.frontiers.frontier import frontier as compare_methods
from xlingtox.frontiers.result import Frontier
from xlingtox.study import frontier_summary
from xlingtox.study.frontier_settings import NEEDS_TUNED, methods_named
from xlingtox.study.frontier_summary import FrontierSummary
from xlingtox.study.in_progress import InProgress
from xlingtox.study.settings import first_rows


def frontier(study: InProgress) -> dict[str, Any]:
    """Do the stage: measure every method at strengths from nothing to far too much, and keep the tables."""
    settings, materials, models = study.settings, study.materials, study.models
    sizes = settings.frontier
    assert sizes is not None
    assert materials.labelled is not None
    assert materials.held_out is not None
    names = sizes.chosen(tuned="tune" in study.keys)
    base, tuned = models.base(), None
    if any(name in NEEDS_TUNED for name in names):
        models.tuned_in(study.tuned_folder)
        del base  # both are asked for together, so that none is loaded twice
        base, tuned = models.both()
    prompts, source, parallel = first_rows(materials.toxic_prompts, sizes.prompts), settings.source_language, None
    if materials.parallel is not None:
        codes = list(dict.fromkeys(prompts["language"]))
        parallel = first_sentences(materials.parallel, codes, source_language=source, n=sizes.texts)
    # A second judge that does not cover every language would leave out the others under all judges.
    covered = set(prompts["language"])
    scorers = [study.scorer, *(scorer for scorer in study.second_scorers if covered <= scorer.languages)]
    measured = compare_methods(
        base,
        prompts,
        labelled=balanced(materials.labelled, sizes.sentences),
        scorer={scorer.name: scorer for scorer in scorers},
        held_out=first_rows(materials.held_out, sizes.texts),
        methods=methods_named(names, k=settings.k, tuned=tuned),
        budgets=sizes.budgets,
        seed=settings.seed,
        n_samples=sizes.n_samples,
        max_new_tokens=settings.max_new_tokens,
        parallel=parallel,
        identify_language=materials.identify_language,
        source_language=source,
        progress=study.progress,
    )
    processes.from_main(partial(_write, measured, study))
    first, *others = (frontier_summary.content_of(FrontierSummary.of(measured, judge=name)) for name in measured.judges)
    again = dict(zip(measured.judges[1:], others, strict=True))
    return {"frontier": first, **({"frontier_again": again} if again else {})}


def balanced(labelled: Dataset, n: int) -> Dataset:
    """Return at most n sentences, spread over the table: half of them toxic, where there are as many of each label."""
    _, labels = labelled_texts(labelled)
    rows: dict[int, list[int]] = {
        label: [row for row, other in enumerate(labels) if other == label] for label in (0, 1)
    }
    fewest = min(map(len, rows.values()))
    wanted = {label: min(len(of_label), max(n // 2, n - fewest)) for label, of_label in rows.items()}
    kept = [row for label, of_label in rows.items() for row in _spread(of_label, wanted[label])]
    return labelled.select(sorted(kept))


def _spread(rows: list[int], n: int) -> list[int]:
    """Return n of these rows, evenly spread."""
    return [rows[place * len(rows) // n] for place in range(n)]


def first_sentences(parallel: Dataset, codes: Sequence[str], *, source_language: str, n: int) -> Dataset | None:
    """Return the first n parallel sentences of each language; None where the source language has no translations."""
    if "language" in parallel.column_names:
        rows = [row for row, code in enumerate(parallel["language"]) if code in codes]
        return first_rows(parallel.select(rows), n) if rows else None
    columns = [name for name in parallel.column_names if name in codes]
    if source_language not in columns or len(columns) < 2:
        return None
    return parallel.select_columns(columns).select(range(min(n, len(parallel))))


def _write(measured: Frontier, study: InProgress) -> None:
    """Keep the whole result, and its two tables for other programs."""
    measured.save(study.frontier_file)
    at_budgets = [measured.at_budget(budget).assign(budget=budget) for budget in measured.budgets]
    for name, table in (("strengths", measured.to_frame()), ("budgets", pd.concat(at_budgets))):
        files.write_text(study.frontier_file.with_suffix(f".{name}.csv"), table.to_csv(index=False))
