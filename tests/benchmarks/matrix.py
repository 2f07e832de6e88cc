"""Tune on each language, evaluate in all: `PYTHONPATH=tests python tests/benchmarks/matrix.py --work DIR`.

The miniature is tuned on the pairs of each of its 17 languages, and each tuned model is evaluated in all 17. Next to
each stands a model that was tuned on the same pairs with shuffled labels. For each seed, pairs, prompts, samples and
texts are drawn anew.

Prints Markdown tables. They hold the drops of the first seed, and their means with those of the control. They show the
languages as teachers and as pupils, how far the seeds agree, and what is related to the rest. Then come predictions of
a language that was left out, and the neurons that write toxicity in English: do they fall whichever language was tuned
on? Perplexity, seconds and warnings are last.

`tutorials/refresh.py --store matrix=FILE` makes the guide's tables of them. `--picture FILE` draws the first seed.

A run that was stopped goes on where it was, and a matrix that was measured before is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import frontier as rivals
import numpy as np
import pictures
from frontier import interval, number
from scipy import stats

import xlingtox as xt
from xlingtox.matrix.cells import own as own_cells
from xlingtox.matrix.relations import left_over
from xlingtox.mini import corpus

MEASURE = "average_toxicity"


@dataclass(frozen=True)
class Measured:
    """One seed's matrix, with the seconds that it took: on the clock, and of processor time."""

    seed: int
    matrix: xt.TransferMatrix
    seconds: dict[str, float]


def measured(options: argparse.Namespace, seed: int) -> Measured:
    """Return the matrix of one seed, from the work folder if it was measured before."""
    file, about = options.work / f"matrix-seed-{seed}.safetensors", options.work / f"matrix-seed-{seed}.json"
    if not file.exists():
        folder = options.work / f"seed-{seed}"
        resumed = folder.exists()
        matrix, seconds = rivals.timed(lambda: _matrix(options, seed, folder))
        matrix.save(file)
        about.write_text(json.dumps(seconds | {"resumed": resumed}))
    return Measured(seed, xt.TransferMatrix.load(file), json.loads(about.read_text()))


def _matrix(options: argparse.Namespace, seed: int, folder: Path) -> xt.TransferMatrix:
    lm, codes = xt.HookedLM.load("mini"), options.languages
    return xt.transfer_matrix(
        *(lm, xt.mini.pairs(codes, n=options.pairs, seed=seed), rivals.provoking(options, seed)),
        scorer=xt.mini.scorer(),
        output_dir=folder,
        recipe=replace(xt.tuning.MINI, seed=seed),
        held_out=xt.mini.held_out(n=options.texts, languages=codes, seed=seed),
        parallel=xt.mini.parallel(n=options.sentences, languages=codes, seed=seed),
        properties={"mixing": mixing(codes)},
        neurons=_sources(lm, options, seed) if options.neurons else None,
        shuffled=options.shuffled,
        n_samples=options.samples,
        seed=seed,
        identify_language=xt.mini.identify_language,
        keep_models=False,
        progress=options.progress,
    )


def _sources(lm: xt.HookedLM, options: argparse.Namespace, seed: int) -> xt.NeuronSet:
    """Return the neurons that write along an English probe and are active on toxic English prompts, as in the demo."""
    probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=2000, seed=seed), progress=options.progress)
    candidates = xt.localize.by_cosine(lm, probe, k=100)
    english = xt.mini.prompts(n=30, languages=["en"], seed=seed)
    activations = xt.collect_activations(lm, english, candidates, max_new_tokens=20, progress=options.progress)
    return candidates.where(activations.mean(language="en") > 0)


def mixing(codes: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return the logarithm of the share of training documents that mix two languages, for each pair of languages.

    A document of one language is mixed if it is translated or switches. Its partner is drawn as `corpus` does. Shares
    differ by a factor of hundreds, since most documents mix with English: hence the logarithm. The mean of two
    languages' own rates would say nothing about a pair that the two languages do not say alone.
    """
    total = sum(row.text for row in corpus.MIXING.values())

    def share(language: str, partner: str) -> float:
        own = corpus.MIXING[language]
        mixed = own.translated + (1 - own.translated) * own.switched
        others = {code: row.switched for code, row in corpus.MIXING.items() if code not in (language, "en")}
        to_english = 0.0 if language == "en" else corpus.ENGLISH_PARTNER
        drawn = to_english if partner == "en" else (1 - to_english) * others[partner] / sum(others.values())
        return own.text / total * mixed * drawn

    return {
        (source, target): math.log10(share(source, target) + share(target, source))
        for source, target in itertools.permutations(codes, 2)
    }


# --- tables


def drops(run: Measured) -> Iterator[dict[str, str]]:
    """Yield the relative drop of average toxicity: a row for each language that was tuned on."""
    for source, row in zip(run.matrix.sources, run.matrix.drops(MEASURE), strict=True):
        yield {"Tuned on": source} | {
            target: percent(drop) for target, drop in zip(run.matrix.targets, row, strict=True)
        }


def levels(run: Measured) -> Iterator[dict[str, str]]:
    """Yield the mean drop in the language that was tuned on, and in the others, with the control."""
    same = _same(run.matrix)
    for measure in (MEASURE, "emt", "toxicity_probability"):
        if measure not in run.matrix.measures:
            continue
        true, shuffled = run.matrix.drops(measure), run.matrix.shuffled_drops(measure)
        cells = {}
        for name, drop in (("", true), (", shuffled labels", shuffled)):
            others = drop[~same]
            cells[f"In the language tuned on{name}"] = percent(_mean(drop[same]))
            cells[f"In the others{name}"] = percent(_mean(others))
            cells[f"Least and most in the others{name}"] = f"{percent(_least(others))} to {percent(_most(others))}"
        yield {"Measure": measure} | cells


def prices(run: Measured) -> Iterator[dict[str, str]]:
    """Yield what tuning costs: text that is not sound, and the perplexity of held-out text."""
    frame = run.matrix.to_frame()
    for measure in ("degenerate", "perplexity"):
        rows = frame[frame.measure == measure]
        for place, some in (("the language tuned on", rows[rows.same]), ("the others", rows[~rows.same])):
            if len(some):
                yield {
                    "Measure": measure,
                    "Where": place,
                    "Before": number(some.before.mean(), 2),
                    "After": number(some.after.mean(), 2),
                    "Most": number(some.after.max(), 2),
                    "Shuffled labels": number(some.shuffled.mean(), 2),
                }


def own(run: Measured) -> Iterator[dict[str, str]]:
    """Yield how much more a language's own tuning does than transfer into it."""
    for row in run.matrix.own_language(MEASURE).itertuples():
        yield {
            "Language": row.language,
            "Own tuning": percent(row.own),
            "Tuning on another": percent(row.transferred),
            "Difference (95 %)": interval(row.difference, row.low, row.high, sign="+"),
        }


def effects(run: Measured) -> Iterator[dict[str, str]]:
    """Yield each language's effect as a teacher and as a pupil."""
    frame = run.matrix.effects(MEASURE)
    for code in xt.languages.in_order(frame.language):
        cells = {"Language": code}
        for role in ("teacher", "pupil"):
            for row in frame[(frame.language == code) & (frame.role == role)].itertuples():
                cells[f"As a {role} (95 %)"] = interval(row.effect, row.low, row.high, sign="+")
        yield cells


def agreement(runs: Sequence[Measured]) -> Iterator[dict[str, str]]:
    """Yield how far two seeds put languages, and pairs of languages, in the same order (Spearman)."""
    for one, other in itertools.combinations(runs, 2):
        cells = {"Seeds": f"{one.seed}, {other.seed}"}
        for role in ("teacher", "pupil"):
            both = [_effects(run.matrix, role) for run in (one, other)]
            cells[f"{role.capitalize()}s"] = _spearman(*both)
        both = [run.matrix.drops(MEASURE)[~_same(run.matrix)] for run in (one, other)]
        cells["Drops of all pairs"] = _spearman(*both)
        left = [_left_over(run.matrix) for run in (one, other)]
        cells["What is left over"] = _spearman(*left)
        yield cells


def relations(run: Measured) -> Iterator[dict[str, str]]:
    """Yield how each property of a pair goes with what the two languages alone leave over."""
    for row in run.matrix.relations(MEASURE).itertuples():
        yield {
            "Property": row.property,
            "r": number(row.r, 2, "+"),
            "p": number(row.p, 4),
            "p, corrected": number(row.p_corrected, 4),
            "Pairs": f"{row.n}",
        }


def predictions(run: Measured) -> Iterator[dict[str, str]]:
    """Yield the error of each predictor on a language that was left out, next to that of a guess."""
    for row in run.matrix.predictions(MEASURE).itertuples():
        yield {
            "Left out": row.left_out,
            "Predictor": row.predictor,
            "Error": number(row.error),
            "Guess": number(row.guess),
            "p": number(row.p, 4),
            "Cells": f"{row.n}",
        }


def neurons(run: Measured) -> Iterator[dict[str, str]]:
    """Yield how far the neurons fall in all targets, by the language that was tuned on, next to random neurons."""
    frame = run.matrix.to_frame()
    rows = {name: frame[frame.measure == name] for name in ("activation", "activation_control")}
    if not len(rows["activation"]):
        return
    for source in (*run.matrix.sources, "all"):
        cells = {"Tuned on": source}
        for name, label in (("activation", "sources"), ("activation_control", "random")):
            some = rows[name] if source == "all" else rows[name][rows[name].source == source]
            cells |= {
                f"Before, {label}": number(some.before.mean(), 4),
                f"Change, {label}": number((some.after - some.before).mean(), 4, "+"),
                f"Change under shuffled labels, {label}": number((some.shuffled - some.before).mean(), 4, "+"),
                f"Interval below zero, {label}": f"{int((some.high < 0).sum())} of {len(some)}",
            }
        yield cells


def findings(run: Measured) -> Iterator[dict[str, str]]:
    yield from rivals.sentences("Finding", run.matrix.headline)


def seconds(run: Measured) -> Iterator[dict[str, str]]:
    sizes = run.matrix.values[MEASURE].shape
    yield {
        "Models": f"{sizes[0]}",
        "Targets": f"{sizes[1]}",
        "Prompts of each": f"{sizes[2]}",
        **rivals.times(run.seconds),
    }


def warnings(run: Measured) -> Iterator[dict[str, str]]:
    yield from rivals.sentences("Warning", run.matrix.warnings)


TABLES = {
    "findings": findings,
    "drops": drops,
    "levels": levels,
    "prices": prices,
    "own": own,
    "effects": effects,
    "relations": relations,
    "predictions": predictions,
    "neurons": neurons,
    "seconds": seconds,
    "warnings": warnings,
}


def _same(matrix: xt.TransferMatrix) -> np.ndarray:
    return own_cells(matrix.sources, matrix.targets)


def _effects(matrix: xt.TransferMatrix, role: str) -> np.ndarray:
    frame = matrix.effects(MEASURE)
    return frame[frame.role == role].set_index("language").effect.sort_index().to_numpy()


def _left_over(matrix: xt.TransferMatrix) -> np.ndarray:
    """Return what teachers and pupils leave over of the drops off the diagonal."""
    return left_over(matrix.drops(MEASURE), matrix.sources, matrix.targets)[~_same(matrix)]


def _spearman(one: np.ndarray, other: np.ndarray) -> str:
    if len(one) < 3 or np.isnan(one).any() or np.isnan(other).any():
        return "–"
    return number(float(stats.spearmanr(one, other).statistic), 2, "+")


def percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.0f} %".replace("-", "−")


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _least(values: np.ndarray) -> float:
    return float(np.nanmin(values)) if np.isfinite(values).any() else math.nan


def _most(values: np.ndarray) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models, cells and matrices")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--languages", nargs="+", default=xt.languages.CODES, help="by default all 17")
    parser.add_argument("--pairs", type=int, default=500, help="preference pairs in each language (%(default)s)")
    parser.add_argument("--prompts", type=int, default=12, help="prompts in each language (%(default)s)")
    parser.add_argument("--provocation", type=float, default=0.4, help="prompts that provoke at least so often")
    parser.add_argument("--samples", type=int, default=8, help="continuations of each (%(default)s)")
    parser.add_argument("--texts", type=int, default=20, help="held-out texts in each language (%(default)s)")
    parser.add_argument("--sentences", type=int, default=200, help="translated sentences, for retrieval (%(default)s)")
    parser.add_argument("--shuffled", action=argparse.BooleanOptionalAction, default=True, help="the control")
    parser.add_argument("--neurons", action=argparse.BooleanOptionalAction, default=True, help="read the sources")
    parser.add_argument("--picture", type=Path, help="also draw the first seed")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rivals.prepare(options)
    runs = [measured(options, seed) for seed in options.seeds]
    for title, rows_of in TABLES.items():
        # Seventeen columns a seed would fill pages.
        shown = runs[:1] if rows_of is drops else runs
        rivals.show(title, [{"Seed": f"{run.seed}"} | row for run in shown for row in rows_of(run)])
    rivals.show("agreement", list(agreement(runs)))
    if options.picture:
        pictures.draw(xt.plot(runs[0].matrix), options.picture)


if __name__ == "__main__":
    main()
