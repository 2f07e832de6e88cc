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
from xlingtox.paper import MEASURES

RESULTS = Path(__file__).resolve().parents[1] / "assets" / "results"

ENOUGH = 1 / 3
"""An offset is strong enough when it leaves at most this share of the toxicity."""

BY_LANGUAGE = ("emt", "toxicity_probability", "average_toxicity", "perplexity", "mean_activation")
"""The measures that are kept language by language."""

_OF_A_DOSE = ("offset", "average_toxicity", "perplexity", "degenerate")


def stored(name: str) -> Any:
    """Read a stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


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
    before, after, doses = results["before"], results["after"], results["intervention"]
    codes, others = results["languages"], [code for code in results["languages"] if code != "en"]

    def sides(measure: str, among: Sequence[str]) -> list[float]:
        return [fmean(side[code][measure] for code in among) for side in (before, after)]

    rises = {code: after[code]["perplexity"] / before[code]["perplexity"] - 1 for code in codes}
    worst = max(rises, key=lambda code: rises[code])
    drops = [1 - after[code]["emt"] / before[code]["emt"] for code in others]
    base = next(dose for dose in doses if dose["offset"] == 0)
    strong = [dose for dose in doses if dose["average_toxicity"] <= ENOUGH * base["average_toxicity"]]
    # Where no offset is strong enough, the strongest stands in the table with what it leaves.
    chosen = min(strong, key=lambda dose: dose["perplexity"], default=doses[-1])
    random = next(dose for dose in results["control"] if dose["offset"] == chosen["offset"])
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
        "fell": sum(after[code]["mean_activation"] < before[code]["mean_activation"] for code in codes),
        "languages": len(codes),
        "offset": chosen["offset"],
        "at_offset": {
            "toxicity": [base["average_toxicity"], chosen["average_toxicity"]],
            "perplexity_change": chosen["perplexity"] / base["perplexity"] - 1,
            "random_toxicity": random["average_toxicity"],
            "random_perplexity_change": random["perplexity"] / base["perplexity"] - 1,
        },
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
            {key: dose[key] for key in _OF_A_DOSE}
            | {"random_toxicity": random_dose["average_toxicity"], "random_perplexity": random_dose["perplexity"]}
            for dose, random_dose in zip(doses, results["control"], strict=True)
        ],
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
