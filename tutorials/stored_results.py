"""Stored results in assets/results: how they are made from a study, a notebook, or what a benchmark printed.

Each is a JSON file that says by which command it was made, when, on which machine and with which version.
"""

import datetime
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from xlingtox import __version__
from xlingtox.evaluation import falls
from xlingtox.paper import MEASURES
from xlingtox.study.doses import ON_TOXIC, response_of

RESULTS = Path(__file__).resolve().parents[1] / "assets" / "results"

BY_LANGUAGE = ("emt", "toxicity_probability", "average_toxicity", "perplexity", "mean_activation")
"""The measures that are kept language by language."""

_OF_A_DOSE = ("offset", "average_toxicity", "low", "high", "perplexity", "degenerate")


def stored(name: str) -> Any:
    """Read a stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def rows_below(name: str, title: str) -> list[Mapping[str, str]]:
    """Return the rows of one table of a stored result that a benchmark printed."""
    return [row for row in stored(name)["rows"] if row["table"] == title]


def store(name: str, source: Path, *, command: str | None, machine: str | None) -> None:
    """Make a stored result anew, and keep its command and machine unless others are given."""
    file = RESULTS / f"{name}.json"
    before = stored(name) if file.exists() else {}
    about = {
        "command": command or before.get("command"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine or before.get("machine"),
        "version": __version__,
    }
    if None in about.values():
        sys.exit(f"{name} is new: give --command and --machine")
    made: dict[str, Any]
    if source.suffix == ".json":
        made = {"made": "python tutorials/refresh.py --store", **study_summary(json.loads(source.read_text("utf-8")))}
    elif source.suffix == ".ipynb":
        made = {"rows": patched_shares(json.loads(source.read_text("utf-8")))}
    else:
        made = {"rows": printed_rows(source.read_text("utf-8"))}
    file.write_text(json.dumps(about | made, indent=1, ensure_ascii=False) + "\n", "utf-8")


def study_summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a study's `results.json` that the pages show."""
    before, after, doses = results["before"], results["after"], response_of(results, ON_TOXIC)
    codes, others = results["languages"], [code for code in results["languages"] if code != "en"]

    def sides(measure: str, among: Sequence[str]) -> list[float]:
        return [fmean(side[code][measure] for code in among) for side in (before, after)]

    rises = {code: after[code]["perplexity"] / before[code]["perplexity"] - 1 for code in codes}
    worst = max(rises, key=lambda code: rises[code])
    drops = [1 - after[code]["emt"] / before[code]["emt"] for code in others]
    transfer = results["transfer_by_measure"]
    emt = next(row for row in transfer["emt"]["predictors"] if row["predictor"] == "retrieval")
    first, then = sides("perplexity", codes)
    return {
        "seconds": results["seconds"],
        "sources": len(results["actual"]),
        "neurons": results["n_neurons"],
        "beside_paper": {measure: sides(measure, codes) for measure in MEASURES},
        "groups": [row for row in results["groups"] if row["language"] in ("en", "others")],
        "emt": {"en": sides("emt", ["en"]), "others": sides("emt", others)},
        "average_toxicity": {
            "en": sides("average_toxicity", ["en"]),
            "others": sides("average_toxicity", others),
            "others_change": [results["changes_of_others"]["average_toxicity"][end] for end in ("low", "high")],
        },
        "drops": [min(drops), max(drops)],
        "degenerate": sides("degenerate", codes),
        "perplexity_change": then / first - 1,
        "worst": [worst, rises[worst]],
        "languages": len(codes),
        "verdicts": results["verdicts"],
        "warnings": results["warnings"],
        "activity": sources_activity(results),
        "unit": doses.unit,
        "n_random": doses.n_random,
        "transfer": {measure: {"r": row["pearson_r"], "p": row["p_value"]} for measure, row in transfer.items()},
        "r_interval": [emt["pearson_low"], emt["pearson_high"]],
        "error": emt["error"],
        "guess": emt["guess"],
        "error_p": emt["error_p"],
        "by_language": {
            code: {measure: [before[code][measure], after[code][measure]] for measure in BY_LANGUAGE}
            | {"retrieval": results["retrieval"].get(code)}
            for code in codes
        },
        "doses": [
            {key: getattr(dose, key) for key in _OF_A_DOSE}
            | {f"control_{key}": getattr(control, key) for key in _OF_A_DOSE[1:]}
            for dose, control in zip(doses.doses, doses.control, strict=True)
        ],
    }


def sources_activity(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far the sources moved: on each model's own text, and on the same text next to their control.

    A row is the mean over languages: before, after, and the ends of the interval of the change. With it stands in how
    many languages the interval lies below zero.
    """
    codes, rows, specific = results["languages"], results["mean_same_text"], results["specific"]
    sides = [fmean(results[side][code]["mean_activation"] for code in codes) for side in ("before", "after")]
    overall = results["mean_changes"]["mean_activation"]

    def below(intervals: Mapping[str, Sequence[float]]) -> int:
        return len(falls({code: (low, high) for code, (low, high) in intervals.items()}).below)

    same = {name: {code: results["same_text"][code][name][2:] for code in codes} for name in rows}
    chance = falls(dict.fromkeys(codes, (0.0, 0.0)))
    return {
        "own": [*sides, overall["low"], overall["high"]],
        "own_below": below({code: results["changes"][code]["mean_activation"] for code in codes}),
        "same": {name: rows[name] for name in ("sources", "control")},
        "same_below": {name: below(same[name]) for name in ("sources", "control")},
        "specific": specific["all"],
        "specific_below": below({code: specific[code][1:] for code in codes}),
        "silent": sum("sources" in results["silent"][code] for code in codes),
        "by_chance": [chance.expected_by_chance, chance.most_by_chance],
    }


def patched_shares(notebook: Mapping[str, Any]) -> list[dict[str, str]]:
    """Read the notebook's table of what patched neurons carry, in the mean over languages."""
    texts = [
        "".join(output.get("data", {}).get("text/plain", ""))
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
    ]
    (table,) = [text for text in texts if text.startswith("group ") and "(random)" in text]
    lines = table.splitlines()
    groups = re.split(r"\s{2,}", lines[0].strip())[1:]
    shares = lines[-1].split()[1:]
    return [{"neurons": group, "share": share} for group, share in zip(groups, shares, strict=True)]


def printed_rows(text: str) -> list[dict[str, str]]:
    """Read the Markdown tables of a text; each row is named after the line that stands before its table."""
    rows: list[dict[str, str]] = []
    title, columns = "", None
    for line in text.splitlines():
        if not line.startswith("|"):
            title, columns = line.strip() or title, None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if columns is None:
            columns = cells
        elif not set("".join(cells)) <= set("-: "):
            rows.append({"table": title} | dict(zip(columns, cells, strict=True)))
    return rows
