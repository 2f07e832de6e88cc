"""Which method, at what price? `PYTHONPATH=tests python tests/benchmarks/frontier.py --work DIR [--seeds 0 1 2]`.

Compares all methods at equal fluency: on the miniature in 17 languages, or with `--model smollm2 --taught FOLDER` on
SmolLM2 that was taught insults in English (`taught.py --work DIR` makes one), in six languages. For each seed the model
is tuned anew by DPO, as a study does it, and prompts, samples, sentences and fits are drawn anew.

Prints Markdown tables: toxicity at each budget of perplexity, by each judge; at the middle budget with intervals, and
with what is kept of knowledge and diversity; by language for the first seed; wins; transfer; costs; seconds; warnings.
`tutorials/refresh.py --store frontier=FILE` (or `frontier-smollm2=FILE`) makes the guide's tables of them. `--picture
FILE` draws the first seed as a PNG.

Each seed's frontier is kept in the work folder and not measured again. A run that was stopped goes on where it was.
Several processes share the work, if the command starts with `accelerate launch --multi_gpu --num_processes 2`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import carried
import numpy as np
import pandas as pd
import pictures
import torch
import transformers
from datasets import Dataset

import xlingtox as xt
from xlingtox import processes
from xlingtox.models.journal import Journal, using

Made = TypeVar("Made")

SMOLLM2 = ("en", "es", "fr", "it", "nl", "de")
"""Languages that SmolLM2 writes, and in which it insults once it was taught to in English."""

ALL, SOURCE = "all", "en"


@dataclass(frozen=True)
class Measured:
    """One seed's frontier, with the seconds that it took: on the clock, and of processor time."""

    model: str
    seed: int
    frontier: xt.Frontier
    seconds: dict[str, float]


def measured(options: argparse.Namespace, seed: int) -> Measured:
    """Return the frontier of one seed, from the work folder if it was measured before."""
    name = f"{options.model}-seed-{seed}"
    file, about = options.work / f"frontier-{name}.safetensors", options.work / f"frontier-{name}.json"
    if not file.exists():
        journal = options.work / f"journal-{name}"
        resumed = processes.from_main(journal.exists)
        with using(Journal(journal / "texts.sqlite", journal / "numbers.sqlite")):
            frontier, seconds = timed(lambda: _frontier(options, seed))
        if not processes.is_main():
            return Measured(options.model, seed, frontier, seconds)
        frontier.save(file)
        about.write_text(json.dumps(seconds | {"resumed": resumed}))
    return Measured(options.model, seed, xt.Frontier.load(file), json.loads(about.read_text()))


def _frontier(options: argparse.Namespace, seed: int) -> xt.Frontier:
    is_mini = options.model == "mini"
    source = "mini" if is_mini else str(options.taught)
    template = "ours" if is_mini else "smollm2-taught-study"
    began = time.perf_counter()
    folder = options.tuned or carried.tuned_by_demo(source, seed, options.work / "tuned", template)
    print(f"<!-- tuned: {time.perf_counter() - began:.0f} s -->", flush=True)
    lm, codes = xt.HookedLM.load(source), options.languages
    methods = None
    if options.methods:
        methods = [getattr(xt.methods, method)() for method in options.methods]
    return xt.frontier(
        lm,
        provoking(options, seed),
        labelled=xt.mini.labelled(SOURCE, n=options.sentences, seed=seed),
        scorer={"insults": xt.mini.scorer()} | ({"probe": _second_judge(source, codes, seed)} if options.probe else {}),
        held_out=xt.mini.held_out(n=options.texts, languages=codes, seed=seed),
        methods=methods,
        tuned={"DPO": xt.HookedLM.load(folder)},
        budgets=options.budgets,
        seed=seed,
        n_samples=options.samples,
        parallel=xt.mini.parallel(n=options.pairs, languages=codes, seed=seed),
        identify_language=xt.mini.identify_language if is_mini else None,
        progress=options.progress,
    )


def provoking(options: argparse.Namespace, seed: int) -> Dataset:
    """Return as many prompts in each language as were asked for, of those that provoke at least so many insults."""
    every = xt.mini.prompts(n=8 * options.prompts, languages=options.languages, seed=seed)
    strong = every.select([i for i, share in enumerate(every["provocation"]) if share >= options.provocation])
    meanings = list(dict.fromkeys(strong["index"]))[: options.prompts]
    return strong.select([i for i, meaning in enumerate(strong["index"]) if meaning in meanings])


def _second_judge(source: str, codes: Sequence[str], seed: int) -> xt.scoring.ProbeScorer:
    """Return a probe of the unedited model, fitted on labelled sentences of every language: it knows no list of words.

    The miniature's sentences are those of the split `validation`, which no method is fitted on.
    """
    judge = xt.HookedLM.load(source)
    labelled = xt.mini.labelled(codes, n=200, split="validation", seed=seed)
    probe = xt.Probe.fit(judge, labelled, progress=False)
    return xt.scoring.ProbeScorer(judge, probe, languages=codes, progress=False)


# --- tables


def budgets(run: Measured) -> Iterator[dict[str, str]]:
    """Yield toxicity at each budget by the first judge, and at the middle budget by the others."""
    for judge in run.frontier.judges:
        is_headline = judge == run.frontier.judges[0]
        for ratio in run.frontier.budgets if is_headline else [run.frontier.shown_budget]:
            for method, rows in at_budget(run, ratio, judge):
                row, languages = rows.loc[ALL], rows.drop(index=ALL)
                yield {
                    "Judge": judge,
                    "Budget": rise(ratio),
                    "Method": method,
                    "English": number(languages.loc[SOURCE].toxicity),
                    "Others": number(languages.drop(index=SOURCE).toxicity.mean()),
                    "All": number(row.toxicity),
                    "Stopped by": row.stopped_by,
                }


def toxicity(run: Measured) -> Iterator[dict[str, str]]:
    """Yield each method at the middle budget, with intervals, and with what is left of knowledge and diversity."""
    whole = run.frontier.to_frame()
    unedited = whole[whole.method == "unedited"].set_index("language")
    row, english = unedited.loc[ALL], unedited.loc[SOURCE]
    yield {
        "Budget": "–",
        "Method": "unedited",
        "English (95 %)": interval(english.toxicity, english.low, english.high),
        "Others": number(unedited.drop(index=[ALL, SOURCE]).toxicity.mean()),
        "All (95 %)": interval(row.toxicity, row.low, row.high),
        "Change (95 %)": "–",
        "p": "–",
        "Perplexity": number(row.perplexity, 2),
        "Not sound": percent(row.degenerate),
        "Knowledge": number(row.knowledge),
        "Diversity": number(row.distinct),
        "Strength": "0",
        "Reached": "–",
        "Stopped by": "–",
    }
    ratio = run.frontier.shown_budget
    for method, rows in at_budget(run, ratio):
        row, languages = rows.loc[ALL], rows.drop(index=ALL)
        yield {
            "Budget": rise(ratio),
            "Method": method,
            "English (95 %)": interval(*languages.loc[SOURCE, ["toxicity", "low", "high"]]),
            "Others": number(languages.drop(index=SOURCE).toxicity.mean()),
            "All (95 %)": interval(row.toxicity, row.low, row.high),
            "Change (95 %)": interval(row.change, row.change_low, row.change_high, sign="+"),
            "p": "–" if np.isnan(row.p) else f"{row.p:.4f}",
            "Perplexity": number(row.perplexity, 2),
            "Not sound": percent(row.degenerate),
            "Knowledge": number(between(whole, method, row.strength, "knowledge")),
            "Diversity": number(between(whole, method, row.strength, "distinct")),
            "Strength": f"{row.strength:.3g}",
            "Reached": f"{int(languages.reached.sum())} of {len(languages)}",
            "Stopped by": row.stopped_by,
        }


def at_budget(run: Measured, ratio: float, judge: str | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each method with its rows at a budget, by language."""
    for method, rows in run.frontier.at_budget(ratio, judge).groupby("method", sort=False):
        yield str(method), rows.set_index("language")


def between(whole: pd.DataFrame, method: str, strength: float, column: str) -> float:
    """Return a column's mean over languages at a strength, on the line between the two measured ones next to it."""
    rows = whole[(whole.language == ALL) & whole.method.isin(["unedited", method])].sort_values("strength")
    return float(np.interp(strength, rows.strength, rows[column]))


def by_language(run: Measured) -> Iterator[dict[str, str]]:
    """Yield toxicity in each language at the middle budget; in brackets where it was not reached."""
    unedited = run.frontier.to_frame().query("method == 'unedited'").set_index("language").toxicity
    yield {"Budget": "–", "Method": "unedited"} | {code: number(unedited[code]) for code in run.frontier.languages}
    ratio = run.frontier.shown_budget
    for method, rows in at_budget(run, ratio):
        cells = {"Budget": rise(ratio), "Method": method}
        for code in run.frontier.languages:
            toxicity, reached = rows.loc[code, ["toxicity", "reached"]]
            cells[code] = number(toxicity) if reached else f"({number(toxicity)})"
        yield cells


def wins(run: Measured) -> Iterator[dict[str, str]]:
    ratio = run.frontier.shown_budget
    for row in run.frontier.wins(ratio).itertuples():
        yield {
            "Budget": rise(ratio),
            "Method": row.method,
            "Lowest in": f"{row.languages_lowest}",
            "Clearly lowest in": f"{row.languages_clearly_lowest}",
            "Beats": f"{row.beats}",
            "Loses": f"{row.loses}",
            "Beats in the mean": f"{row.beats_overall}",
            "Loses in the mean": f"{row.loses_overall}",
        }


def transfer(run: Measured) -> Iterator[dict[str, str]]:
    ratio = run.frontier.shown_budget
    for method, rows in run.frontier.transfer(ratio).groupby("method", sort=False):
        english, others = (rows[rows.language == code].iloc[0] for code in (SOURCE, "others"))
        share, low, high = (f"{100 * end:z.0f}".replace("-", "−") for end in others[["share", "low", "high"]])
        known = np.isfinite([others.share, others.low, others.high]).all()
        yield {
            "Budget": rise(ratio),
            "Method": method,
            "English": number(english.effect, sign="+"),
            "Others": number(others.effect, sign="+"),
            "Share (95 %)": f"{share} % ({low} to {high})" if known else "–",
        }


def costs(run: Measured) -> Iterator[dict[str, str]]:
    for row in run.frontier.costs().itertuples():
        yield {
            "Method": row.method,
            "Fit (s)": f"{row.fit_seconds:.1f}",
            "Time a token": f"{row.token_seconds:.2f}",
            "Can be baked": "yes" if row.baked else f"no: {row.reason}",
        }


def seconds(run: Measured) -> Iterator[dict[str, str]]:
    points = sum(len(curve.points) for curve in run.frontier.curves)
    n_prompts = sum(map(len, run.frontier.unedited.degenerate.values()))
    yield {
        "Methods": f"{len(run.frontier.curves)}",
        "Points": f"{points}",
        "Languages": f"{len(run.frontier.languages)}",
        "Continuations": f"{(1 + points) * run.frontier.n_samples * n_prompts}",
        **times(run.seconds),
    }


def warnings(run: Measured) -> Iterator[dict[str, str]]:
    yield from sentences("Warning", run.frontier.warnings)


TABLES = {
    "budgets": budgets,
    "toxicity": toxicity,
    "by language": by_language,
    "wins": wins,
    "transfer": transfer,
    "costs": costs,
    "seconds": seconds,
    "warnings": warnings,
}


def rise(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"


def number(value: float, digits: int = 3, sign: str = "") -> str:
    return "–" if np.isnan(value) else f"{value:{sign}z.{digits}f}".replace("-", "−")


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{number(value, sign=sign)} ({number(low, sign=sign)} to {number(high, sign=sign)})"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def times(seconds: Mapping[str, float]) -> dict[str, str]:
    """Return the cells of what a run took."""
    return {
        "Seconds": f"{seconds['clock']:.0f}" + (" (resumed)" if seconds["resumed"] else ""),
        "Processor seconds": f"{seconds['processor']:.0f}",
    }


def sentences(title: str, said: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield a row for each sentence, without the lines that would end a cell."""
    for sentence in said:
        yield {title: sentence.replace("|", "/")}


def timed(make: Callable[[], Made]) -> tuple[Made, dict[str, float]]:
    """Return what a function makes, and the seconds that it took: on the clock, and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    made = make()
    return made, {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}


def prepare(options: argparse.Namespace) -> None:
    """Set the number of threads, quiet transformers, and make the work folder."""
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    options.work.mkdir(parents=True, exist_ok=True)


def show(title: str, rows: list[dict[str, str]]) -> None:
    """Print rows as a Markdown table below its title; nothing where there are none."""
    if rows:
        print(f"{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        print("\n".join(f"| {' | '.join(row.values())} |" for row in rows), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", choices=["mini", "smollm2"])
    parser.add_argument("--taught", type=Path, help="SmolLM2, taught insults in English")
    parser.add_argument("--tuned", type=Path, help="a model tuned by DPO, for every seed; else each tunes one")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models, texts and frontiers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--languages", nargs="+", help="by default all 17, or six for SmolLM2")
    parser.add_argument("--methods", nargs="+", help="classes of xt.methods besides DPO; by default all")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.05, 1.1, 1.2])
    parser.add_argument("--prompts", type=int, default=16, help="prompts in each language (%(default)s)")
    parser.add_argument("--provocation", type=float, default=0.0, help="prompts that provoke at least so often")
    parser.add_argument("--samples", type=int, default=3, help="continuations of each (%(default)s)")
    parser.add_argument("--sentences", type=int, default=500, help="labelled English sentences of a fit (%(default)s)")
    parser.add_argument("--texts", type=int, default=12, help="held-out texts in each language (%(default)s)")
    parser.add_argument("--pairs", type=int, default=10, help="translated sentences, for knowledge (%(default)s)")
    parser.add_argument("--probe", action=argparse.BooleanOptionalAction, default=True, help="a probe as second judge")
    parser.add_argument("--picture", type=Path, help="also draw the first seed")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.model == "smollm2" and options.taught is None:
        parser.error("SmolLM2 insults nobody: give --taught FOLDER, a copy that was taught to")
    options.languages = options.languages or (SMOLLM2 if options.model == "smollm2" else xt.languages.CODES)
    prepare(options)
    runs = [measured(options, seed) for seed in options.seeds]
    if not processes.is_main():
        return
    for title, rows_of in TABLES.items():
        # Seventeen columns a seed would fill pages.
        shown = runs[:1] if rows_of is by_language else runs
        rows = [{"Model": run.model, "Seed": f"{run.seed}"} | row for run in shown for row in rows_of(run)]
        show(title, rows)
    if options.picture:
        pictures.draw(xt.plot(runs[0].frontier), options.picture)


if __name__ == "__main__":
    main()
