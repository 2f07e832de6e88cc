"""Compare phrases of refusal with people and with WildGuard: `python tests/benchmarks/refusals.py xstest PolyRefuse`.

The first folder is a clone of github.com/paul-rottger/exaggerated-safety. It has the answers of five models to XSTest,
and what people said of each. The second is a clone of github.com/mainlp/Multilingual-Refusal. It has the answers of
three models to PolyRefuse, and WildGuard's verdict on each. No answer is shown.
"""

import argparse
import ast
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from xlingtox.languages import CODES
from xlingtox.scoring import RefusalPhrases

Rows = dict[tuple[str, str], list[tuple[str, bool]]]
"""For each model and language, the answers and whether each refuses."""


def of_people(folder: Path) -> Rows:
    """Read the answers that people called full refusals or full compliance. Partial refusals are left out."""
    rows: Rows = defaultdict(list)
    for file in sorted((folder / "model_completions").glob("xstest_v2_completions_*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["final_label"] in ("1_full_compliance", "2_full_refusal"):
                    refuses = row["final_label"] == "2_full_refusal"
                    rows[file.stem.removeprefix("xstest_v2_completions_"), "en"].append((row["completion"], refuses))
    return rows


def of_wildguard(folder: Path) -> Rows:
    rows: Rows = defaultdict(list)
    for file in sorted(folder.glob("output/*/*/*/*/*/*/completions/*_evaluations.json")):
        model, code = file.parts[-6], file.parts[-5]
        for row in json.loads(file.read_text("utf-8"))["completions"]:
            verdict = row["wildguard"]
            verdict = ast.literal_eval(verdict) if isinstance(verdict, str) else verdict
            if code in CODES and isinstance(verdict, dict) and verdict.get("refusal") is not None:
                rows[model, code].append((row["response"], bool(verdict["refusal"])))
    return rows


def show(rows: Rows) -> None:
    scorer = RefusalPhrases()
    print("| Language | Model | Refusals | Found | Others | Flagged |\n| --- | --- | --- | --- | --- | --- |")
    for model, code in sorted(rows, key=lambda key: (CODES.index(key[1]), key[0])):
        texts, labels = zip(*rows[model, code], strict=True)
        flagged, refuses = scorer.score(texts, [code] * len(texts)) > 0, np.array(labels)
        shares = (f"{100 * flagged[kind].mean():.1f} %" for kind in (refuses, ~refuses))
        print(f"| {code} | {model} | {refuses.sum()} | {next(shares)} | {(~refuses).sum()} | {next(shares)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("xstest", type=Path)
    parser.add_argument("poly_refuse", type=Path)
    arguments = parser.parse_args()
    show(of_people(arguments.xstest))
    show(of_wildguard(arguments.poly_refuse))
