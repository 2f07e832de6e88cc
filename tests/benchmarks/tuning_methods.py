"""Does the method of tuning matter? `PYTHONPATH=tests python tests/benchmarks/tuning_methods.py --work DIR`.

For each seed the miniature is tuned on the same English pairs by DPO, DPO with an SFT term, SFT, KTO, ORPO and SimPO.
DPO also tunes the neurons alone that carry DPO's effect, all but these, and as many random neurons that are as active.
One frontier for each seed compares all tuned models where they cost the same fluency, in all languages.

Prints Markdown tables. They hold the seconds of tuning, toxicity at each budget of perplexity with intervals, and
differences to DPO, prompt by prompt. Then come what is kept of knowledge and diversity, transfer, each language for the
first seed, and warnings.

`tutorials/refresh.py --store tuning-methods=FILE` makes the guide's tables of them. `--picture FILE` draws the first
seed as a PNG.

Tuned models and frontiers are kept in the work folder. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import frontier as rivals
import numpy as np
import pictures
from frontier import ALL, SOURCE, Measured, interval, rise

import xlingtox as xt
from xlingtox.evaluation import holm, mean_intervals
from xlingtox.models.journal import Journal, using

DPO = "DPO"
RECIPES = {
    DPO: "MINI",
    "DPO + SFT": "DPO_SFT",
    "SFT": "SFT",
    "KTO": "KTO",
    "ORPO": "ORPO",
    "SimPO": "SIMPO",
}
"""Each method of tuning by its name in tables, and its recipe in `xt.tuning`."""

ONLY, FROZEN, RANDOM = "DPO of attributed neurons", "DPO of all but these", "DPO of random neurons"
"""DPO of a part of the weights. The last one is a control."""


def tuned_models(options: argparse.Namespace, seed: int, lm: xt.HookedLM) -> dict[str, tuple[xt.HookedLM, int]]:
    """Return each tuned model with the number of neurons that were tuned, or frozen; 0 where all weights were."""
    folder = options.work / f"tuned-seed-{seed}"
    pairs = xt.mini.pairs(SOURCE, n=options.pairs, seed=seed)

    def tuned(name: str, recipe: str, **part: Any) -> xt.HookedLM:
        out = folder / name.replace(" ", "-")
        chosen = replace(getattr(xt.tuning, recipe), seed=seed)
        began = time.perf_counter()
        model = xt.tuning.tune(lm, pairs, output_dir=out, recipe=chosen, progress=options.progress, **part)
        about = out.with_suffix(".json")
        if not about.exists():
            about.write_text(json.dumps({"seconds": time.perf_counter() - began}))
        return model

    models = {name: (tuned(name, recipe), 0) for name, recipe in RECIPES.items() if name in options.methods}
    if options.parts:
        neurons, random = _neurons(options, seed, lm, models[DPO][0])
        models[ONLY] = tuned(ONLY, RECIPES[DPO], only=neurons), len(neurons)
        models[FROZEN] = tuned(FROZEN, RECIPES[DPO], frozen=neurons), len(neurons)
        models[RANDOM] = tuned(RANDOM, RECIPES[DPO], only=random), len(random)
    return models


def _neurons(
    options: argparse.Namespace, seed: int, lm: xt.HookedLM, tuned: xt.HookedLM
) -> tuple[xt.NeuronSet, xt.NeuronSet]:
    """Return the neurons that carry most of DPO's effect on toxic English text, and as many that are as active.

    They are found on the prompts of tuning, so that no prompt of the evaluation chose them.
    """
    prompts = xt.mini.prompts(n=40, languages=[SOURCE], split="tune", seed=seed)
    attribution = xt.attribute(
        *(lm, tuned, prompts),
        scorer=xt.mini.scorer(),
        components=("neurons",),
        steps=1,
        n_samples=10,
        seed=seed,
        progress=options.progress,
    )
    n_lowering = int((attribution.values("neurons") < 0).sum())
    neurons = attribution.top(min(options.neurons, n_lowering))
    everywhere = xt.collect_activations(lm, prompts, xt.NeuronSet.all(lm), max_new_tokens=20, progress=options.progress)
    return neurons, neurons.random_like(lm, seed=seed, match="activity", activations=everywhere)


def measured(options: argparse.Namespace, seed: int) -> tuple[Measured, dict[str, dict[str, float]]]:
    """Return one seed's frontier, from the work folder if it was measured before, and what each tuning took."""
    file, about = options.work / f"methods-seed-{seed}.safetensors", options.work / f"methods-seed-{seed}.json"
    if not file.exists():
        journal = options.work / f"journal-methods-{seed}"
        resumed = journal.exists()
        with using(Journal(journal / "texts.sqlite", journal / "numbers.sqlite")):
            (frontier, tunings), seconds = rivals.timed(lambda: _frontier(options, seed))
        frontier.save(file)
        about.write_text(json.dumps({"seconds": seconds | {"resumed": resumed}, "tunings": tunings}))
    kept = json.loads(about.read_text())
    return Measured("mini", seed, xt.Frontier.load(file), kept["seconds"]), kept["tunings"]


def _frontier(options: argparse.Namespace, seed: int) -> tuple[xt.Frontier, dict[str, dict[str, float]]]:
    lm, codes = xt.HookedLM.load("mini"), options.languages
    models = tuned_models(options, seed, lm)
    tunings = {}
    for name, (_, n_neurons) in models.items():
        about = options.work / f"tuned-seed-{seed}" / f"{name.replace(' ', '-')}.json"
        tunings[name] = json.loads(about.read_text()) | {"neurons": n_neurons}
    frontier = xt.frontier(
        lm,
        rivals.provoking(options, seed),
        labelled=xt.mini.labelled(SOURCE, n=100, seed=seed),  # no tuned model reads them
        scorer={"insults": xt.mini.scorer()},
        held_out=xt.mini.held_out(n=options.texts, languages=codes, seed=seed),
        methods=[xt.methods.Tuned(model, name=name, control=name == RANDOM) for name, (model, _) in models.items()],
        budgets=options.budgets,
        seed=seed,
        n_samples=options.samples,
        parallel=xt.mini.parallel(n=options.sentences, languages=codes, seed=seed),
        identify_language=xt.mini.identify_language,
        progress=options.progress,
    )
    return frontier, tunings


# --- tables


def budgets(run: Measured) -> Iterator[dict[str, str]]:
    """Yield toxicity at each budget, with intervals over prompts."""
    unedited = run.frontier.to_frame().query("method == 'unedited'").set_index("language")
    yield {
        "Budget": "–",
        "Method": "unedited",
        "English (95 %)": interval(*unedited.loc[SOURCE, ["toxicity", "low", "high"]]),
        "Others (95 %)": _of_others(run, run.frontier.unedited.toxicity[run.frontier.judge]),
        "All (95 %)": interval(*unedited.loc[ALL, ["toxicity", "low", "high"]]),
        "Change (95 %)": "–",
        "Strength": "0",
        "Reached": "–",
        "Stopped by": "–",
    }
    for ratio in run.frontier.budgets:
        by_prompt = {method.curve.name: method.toxicity for method in run.frontier._at(ratio, run.frontier.judge)}
        for method, rows in rivals.at_budget(run, ratio):
            row, languages = rows.loc[ALL], rows.drop(index=ALL)
            yield {
                "Budget": rise(ratio),
                "Method": method,
                "English (95 %)": interval(*languages.loc[SOURCE, ["toxicity", "low", "high"]]),
                "Others (95 %)": _of_others(run, by_prompt[method]),
                "All (95 %)": interval(row.toxicity, row.low, row.high),
                "Change (95 %)": interval(row.change, row.change_low, row.change_high, sign="+"),
                "Strength": f"{row.strength:.3g}",
                "Reached": f"{int(languages.reached.sum())} of {len(languages)}",
                "Stopped by": row.stopped_by,
            }


def _of_others(run: Measured, toxicity: Any) -> str:
    """Return the mean over the other languages, with its interval over prompts."""
    others = {code: values for code, values in toxicity.items() if code != SOURCE}
    if not all(np.isfinite(values).all() for values in others.values()):
        return "–"
    meanings = run.frontier.meanings
    _, ends = mean_intervals(others, meanings=meanings and {code: meanings[code] for code in others})
    return interval(float(np.mean([values.mean() for values in others.values()])), *ends)


def differences(run: Measured) -> Iterator[dict[str, str]]:
    """Yield how far each method is from DPO, prompt by prompt, corrected for the number of these comparisons (Holm)."""
    for ratio in run.frontier.budgets:
        frame = run.frontier.differences(ratio)
        frame = frame[frame.language.isin([SOURCE, ALL]) & ((frame.method == DPO) | (frame.other == DPO))]
        for language, rows in frame.groupby("language", sort=False):
            for corrected, row in zip(holm(rows.p.tolist()), rows.itertuples(), strict=True):
                is_dpo = row.method == DPO
                value, low, high = (
                    (-row.difference, -row.high, -row.low) if is_dpo else (row.difference, row.low, row.high)
                )
                yield {
                    "Budget": rise(ratio),
                    "Languages": str(language),
                    "Method": row.other if is_dpo else row.method,
                    "Less DPO (95 %)": interval(value, low, high, sign="+"),
                    "p": f"{row.p:.4f}",
                    "p, corrected": f"{corrected:.4f}",
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models, texts and frontiers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--languages", nargs="+", default=xt.languages.CODES, help="by default all 17")
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True, help="DPO of some neurons")
    parser.add_argument("--neurons", type=int, default=45, help="attributed neurons (%(default)s)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.05, 1.1, 1.2])
    parser.add_argument("--pairs", type=int, default=1000, help="preference pairs (%(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="prompts in each language (%(default)s)")
    parser.add_argument("--provocation", type=float, default=0.4, help="prompts that provoke at least so often")
    parser.add_argument("--samples", type=int, default=4, help="continuations of each (%(default)s)")
    parser.add_argument("--texts", type=int, default=20, help="held-out texts in each language (%(default)s)")
    parser.add_argument("--sentences", type=int, default=30, help="translated sentences, for knowledge (%(default)s)")
    parser.add_argument("--picture", type=Path, help="also draw the first seed")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if DPO not in options.methods:
        parser.error(f"every method is compared with {DPO}: name it too")
    rivals.prepare(options)
    both = [measured(options, seed) for seed in options.seeds]
    runs = [run for run, _ in both]
    rows = [
        {
            "Seed": f"{run.seed}",
            "Method": name,
            "Neurons": f"{about['neurons']:.0f}" if about["neurons"] else "all weights",
            "Seconds": f"{about['seconds']:.0f}",
        }
        for run, tunings in both
        for name, about in tunings.items()
    ]
    rivals.show("tunings", rows)
    for title, rows_of in {"budgets": budgets, "differences": differences}.items():
        rivals.show(title, [{"Seed": f"{run.seed}"} | row for run in runs for row in rows_of(run)])
    for title in ("toxicity", "by language", "transfer", "wins", "seconds", "warnings"):
        shown = runs[:1] if title == "by language" else runs
        rivals.show(title, [{"Seed": f"{run.seed}"} | row for run in shown for row in rivals.TABLES[title](run)])
    if options.picture:
        pictures.draw(xt.plot(runs[0].frontier), options.picture)


if __name__ == "__main__":
    main()
