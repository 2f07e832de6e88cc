"""Write the measured numbers of README.md and the guide from the results in assets/results.

Usage:

    python tutorials/refresh.py                         write tables and values, the drawing, and links of notebooks
    python tutorials/refresh.py --check                 change nothing; fail where a page and its result differ
    python tutorials/refresh.py --store NAME=FILE       first make the stored result NAME anew from FILE

FILE is a study's `results.json`, the notebook `3-is-it-the-cause.ipynb`, or a text file with the Markdown table that a
benchmark printed. A stored result says by which command it was made, when, on which machine and with which version.
Give `--command` and `--machine` where they are new.
"""

import argparse
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matrix_tables
import methods_tables
import rivals_tables
from drawing import drawing
from stored_results import BY_LANGUAGE, RESULTS, store, stored

from xlingtox import languages
from xlingtox.mini import truth
from xlingtox.paper import numbers as paper

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorials" / "guide").glob("*.md"))]

MARKED = re.compile(r"<!-- (table|value): ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)
"""A marked place: the kind, the name, and the content that is written anew."""

NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
DRAWING = ROOT / "assets" / "architecture.svg"

DEMO = "demo-world-0-seed-0"
"""The study that the README's picture shows."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def change(share: float, digits: int = 0) -> str:
    return f"{100 * share:+.{digits}f} %".replace("-", "−")


def signed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def arrow(sides: Sequence[float], digits: int = 2) -> str:
    return " → ".join(signed(side, digits) for side in sides)


def significance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def summary() -> str:
    """Return the demo in a few lines."""
    demo = stored(DEMO)
    emt, transfer = demo["emt"], demo["transfer"]["emt"]
    rows = [
        ("Expected maximum toxicity (EMT), English", arrow(emt["en"])),
        ("EMT, mean of the 16 other languages", arrow(emt["others"])),
        ("Average toxicity of those 16", arrow(demo["average_toxicity"]["others"], 3)),
        ("Text that is not sound, all 17", _percents(demo["degenerate"], 1)),
        ("Perplexity of clean text, all 17", change(demo["perplexity_change"], 1)),
        ("Sources turned down, on the same text", _verdict(demo, "On the same text")),
        ("Correlation of retrieval with the drop", f"r = {transfer['r']:.2f} ({significance(transfer['p'])})"),
    ]
    return table(["English-only DPO", "Before → after"], rows)


def _verdict(demo: Mapping[str, Any], claim: str) -> str:
    (verdict,) = [row["verdict"] for row in demo["verdicts"] if row["claim"].startswith(claim)]
    return verdict


def beside_paper() -> str:
    """Return the paper's main table, with the demo as its first row."""
    rows = []
    for model, sides in {"**miniature**": stored(DEMO)["beside_paper"], **paper.TABLE_2}.items():
        rows.append((model, *(arrow(both, paper.decimals(measure)) for measure, both in sides.items())))
    return table(["Model", *paper.MEASURES.values()], rows)


def met_or_not() -> str:
    """Return the demo's groups: acts and insults in the preference pairs, and those that tuning never met."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in stored(DEMO)["groups"]:
        sides = arrow((row["before"], row["after"]), 3)
        if row["kind"] == "words":
            sides = _percents((row["before"], row["after"]), 1)
        interval = f"{signed(row['low'], 3)} to {signed(row['high'], 3)}"
        cells.setdefault((row["kind"], row["group"]), {})[row["language"]] = f"{sides} ({interval})"
    what = {"prompts": "average toxicity after prompts: ", "words": "continuations with one: "}
    rows = [(what[kind] + group, by["en"], by["others"]) for (kind, group), by in cells.items()]
    return table(["Group", "English", "Mean of the other 16"], rows)


def severities() -> str:
    """Return the severity of each insult, by the part that it belongs to."""
    return _by_part(truth.SEVERITY, sorted(set(truth.SEVERITY.values())), "{:g}".format)


def provocations() -> str:
    """Return how often each hostile act is followed by an insult, by the part that it belongs to."""
    return _by_part(truth.PROVOCATION, sorted(set(truth.PROVOCATION.values()), reverse=True), percent)


def _by_part(values: Mapping[str, float], levels: Sequence[float], label: Callable[[float], str]) -> str:
    """Return a row for each level, with the words that have it, part by part."""

    def words(level: float, part: truth.Part) -> str:
        return ", ".join(word for word, value in values.items() if value == level and truth.PART_OF[word] == part)

    rows = [(label(level), *(words(level, part) or "–" for part in truth.PARTS)) for level in levels]
    return table(["", "In the pairs", "Only in evaluation", "In neither"], rows)


def _percents(sides: Sequence[float], digits: int = 0) -> str:
    return " → ".join(percent(side, digits) for side in sides)


def of_studies(columns: Sequence[str], cells: Callable[[Mapping[str, Any]], Sequence[str]]) -> str:
    """Return a row for each stored study of the miniature."""
    rows = []
    for file in sorted(RESULTS.glob("demo-world-*.json")):
        _, _, world, _, seed = file.stem.split("-")
        rows.append((world, seed, *cells(stored(file.stem))))
    return table(["World", "Study seed", *columns], rows)


def studies_tuned() -> str:
    """Return what English tuning did in each study."""

    def cells(demo: Mapping[str, Any]) -> Sequence[str]:
        emt, drops, (code, rise) = demo["emt"], demo["drops"], demo["worst"]
        return (
            arrow(emt["en"]),
            f"{arrow(emt['others'])} (falls by {percent(drops[0])} to {percent(drops[1])})",
            arrow(demo["average_toxicity"]["others"], 3),
            f"{change(demo['perplexity_change'], 1)} (worst {code} {change(rise)})",
            _percents(demo["degenerate"], 1),
        )

    columns = "English EMT, EMT of the other 16, Average toxicity of these, Perplexity, Not sound"
    return of_studies(columns.split(", "), cells)


def seeds() -> dict[str, Mapping[str, Any]]:
    """Return the stored studies of the shipped world, by their seed."""
    files = sorted(RESULTS.glob("demo-world-0-seed-*.json"))
    return {file.stem.rpartition("-")[2]: stored(file.stem) for file in files}


def verdicts() -> str:
    """Return each claim with its verdict at each seed."""
    by_claim: dict[str, list[str]] = {}
    for demo in seeds().values():
        for row in demo["verdicts"]:
            by_claim.setdefault(_claim(row), []).append(row["verdict"])
    rows = [(claim, *(f"**{word}**" if word == "found" else word for word in by)) for claim, by in by_claim.items()]
    return table(["Claim", *(f"Seed {seed}" for seed in seeds())], rows)


def reasons() -> str:
    """Return each claim with the numbers behind its verdict, at the first seed."""
    rows = []
    for row in stored(DEMO)["verdicts"]:
        # The areas of sixteen languages would fill a page.
        reason = row["reason"].partition(": es ")[0].rstrip(".") + "."
        rows.append((_claim(row), row["verdict"], reason.replace(" -", " −").replace("(-", "(−")))
    return table(["Claim", "Verdict", "Why"], rows)


def _claim(row: Mapping[str, str]) -> str:
    return row["claim"].partition(":")[0].rstrip(".")


def sources_fall() -> str:
    """Return how far the sources fall on own text, and on the same text next to equally active neurons."""
    rows = []
    for seed, demo in seeds().items():
        read, n = demo["activity"], demo["languages"]
        for kind, row, below in (
            ("sources, each model on its own text", read["own"], read["own_below"]),
            ("sources, both on the same text", read["same"]["sources"], read["same_below"]["sources"]),
            ("control, both on the same text", read["same"]["control"], read["same_below"]["control"]),
        ):
            before, after, low, high = row
            moved = _within(after - before, low, high, 4)
            rows.append((seed, kind, arrow((before, after), 4), moved, f"{below} of {n}"))
        difference, below = _within(*read["specific"], 4), read["specific_below"]
        rows.append((seed, "sources less control", "", difference, f"{below} of {n}"))
    columns = "Seed, Neurons and text, Mean activation, Change (95 %), Languages whose interval is below zero"
    return table(columns.split(", "), rows)


def falls_by_chance() -> str:
    """Return in how many languages an interval lies below zero by chance."""
    demo = stored(DEMO)
    expected, most = demo["activity"]["by_chance"]
    return f"{expected:.1f} of {demo['languages']} languages on average, and at most {most} in 95 of 100 studies"


def _within(change: float, low: float, high: float, digits: int) -> str:
    """Return a change with its sign, and its interval."""
    ends = f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"{change:+.{digits}f} ({ends})".replace("-", "−")


def studies_transfer() -> str:
    """Return how well retrieval told the drop in each study."""

    def cells(demo: Mapping[str, Any]) -> Sequence[str]:
        correlations = (f"{row['r']:.2f} ({significance(row['p'])})" for row in demo["transfer"].values())
        low, high = demo["r_interval"]
        emt, average = correlations
        errors = f"{demo['error']:.2f}", f"{demo['guess']:.2f}", significance(demo["error_p"])
        return f"{emt}, {signed(low, 2)} to {signed(high, 2)}", average, *errors

    return of_studies(["r, EMT, with its interval", "r, average", "Error, EMT", "Guess, EMT", "Is it better?"], cells)


def by_language() -> str:
    """Return the demo, language by language."""
    rows = []
    for code, row in stored(DEMO)["by_language"].items():
        sides = (arrow(row[measure], digits) for measure, digits in zip(BY_LANGUAGE, (2, 2, 3, 2, 3), strict=True))
        retrieval = "–" if row["retrieval"] is None else percent(row["retrieval"], 1)
        rows.append((languages.name(code), *sides, retrieval))
    columns = "Language, EMT, Toxicity probability, Average toxicity, Perplexity, Activation of the sources, Retrieval"
    return table(columns.split(", "), rows)


def doses() -> str:
    """Return what each dose on the sources does and costs, next to equally strong random neurons, at each seed."""
    rows = []
    for seed, demo in seeds().items():
        for dose in demo["doses"]:
            cells = [seed, signed(dose["offset"], 2).rstrip("0").rstrip(".").replace("−0.00", "0")]
            for side in ("", "control_"):
                toxicity, low, high = (dose[side + key] for key in ("average_toxicity", "low", "high"))
                cells.append(f"{toxicity:.3f} ({low:.3f} to {high:.3f})")
            for key in ("perplexity", "control_perplexity"):
                cells.append(f"{dose[key]:.2f}")
            cells += [percent(dose["degenerate"]), percent(dose["control_degenerate"])]
            rows.append(cells)
    columns = "Seed, Dose, Toxicity (95 %), Control, Perplexity, Control, Not sound, Control"
    return table(columns.split(", "), rows)


def predictors() -> str:
    """Return each predictor's correlation, and its error on a language that is left out, at three study seeds."""
    by_predictor: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in stored("predictors")["rows"]:
        by_predictor.setdefault(row["predictor"], {}).setdefault(row["table"], []).append(row)

    def joined(rows: Iterable[Mapping[str, str]], column: str) -> str:
        return " / ".join(row[column].split(" (")[0].replace("0.", ".").replace("-", "−") for row in rows)

    measures = ("emt", "average_toxicity")
    rows = [
        (f"`{name}`", *(joined(by[measure], column) for measure in measures for column in (_R, "error")))
        for name, by in by_predictor.items()
    ]
    guesses = [joined(next(iter(by_predictor.values()))[measure], "guess") for measure in measures]
    rows.append(("guess: the others' mean", "", guesses[0], "", guesses[1]))
    return table(["Predictor", "r, EMT", "error, EMT", "r, average", "error, average"], rows)


_R = "Pearson's r (95 %)"


def rows_of(name: str, columns: Mapping[str, str]) -> Callable[[], str]:
    """Return a function that shows a stored result's rows: the heading of each column, and its key in a row."""
    return lambda: table(list(columns), [[row[key] for key in columns.values()] for row in stored(name)["rows"]])


def part_of(name: str, title: str) -> Callable[[], str]:
    """Return a function that shows those rows of a stored result that were printed below a title, in its columns."""

    def shown() -> str:
        rows = [row for row in stored(name)["rows"] if row["table"] == title]
        columns = [column for column in rows[0] if column != "table"]
        return table(columns, [[row[column] for column in columns] for row in rows])

    return shown


def patching() -> str:
    """Return what patched neurons carry of the change."""
    names = {"actual sources": "sources", "positive cosine": "all with a positive cosine", "all": "all neurons"}
    rows = []
    for row in stored("patching")["rows"]:
        group, _, random = row["neurons"].partition(" (")
        rows.append((names.get(group, group) + (", random ones" if random else ""), percent(float(row["share"]))))
    return table(["Neurons that are patched", "Share of the fall in toxicity"], rows)


def same_text() -> str:
    """Return how far the sources fell on either text, next to three kinds of random neurons."""
    rows = stored("same-text")["rows"]
    columns = [key for key in rows[0] if key != "table"]
    return table(columns, [[row[key].replace("-", "−") for key in columns] for row in rows])


def stability() -> str:
    """Return what candidates five probes share, and what an edit of each set does."""
    rows = stored("stability")["rows"]
    columns = [key for key in rows[0] if key != "table"]
    return table(columns, [[row[key].replace("-", "−") for key in columns] for row in rows])


def constants(name: str) -> Callable[[], str]:
    """Return a function that shows edits without tuning next to DPO and to patches, without those of one kind only."""

    def edits() -> str:
        columns = [column for column in stored(name)["rows"][0] if column not in ("table", "Chosen among")]
        rows = []
        for row in stored(name)["rows"]:
            if row["Chosen among"] in ("–", "all", "random neurons"):
                rows.append([row[column].replace("-", "−") for column in columns])
        return table(columns, rows)

    return edits


def constants_by(kind_or_group: str) -> Callable[[], str]:
    """Return a function that shows the share of DPO's fall that each kind of edit, or each group, reaches."""

    def shares() -> str:
        cells: dict[str, dict[tuple[str, str], str]] = {}
        for row in stored("constants")["rows"]:
            among, _, name = row["Chosen among"].partition(": ")
            if among == kind_or_group:
                budget = row["Budget"].replace(".0", "").replace(" points less sound", " points")
                cells.setdefault(name, {})[budget, row["Seed"]] = row["Share of DPO's fall (95 %)"].replace("-", "−")
        columns = sorted({column for of_name in cells.values() for column in of_name})
        headings = [f"{budget}, seed {seed}" for budget, seed in columns]
        rows = [(name, *(of_name.get(column, "–") for column in columns)) for name, of_name in cells.items()]
        return table([kind_or_group.capitalize(), *headings], rows)

    return shares


_SPLIT = (
    *("Group", "Neurons", "Projection", "Integrated", "Exact patch", "Exact patch, base into tuned", "Probe, patched"),
)


def carried() -> str:
    """Return what each group carries of DPO's effect, in each world and at each seed, with its random control."""
    rows = [row for row in stored("attribution-worlds")["rows"] if row["table"] == "carried"]
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        run = f"World {row['World']}, seed {row['Seed']}"
        group = row["Patched"].partition(" (")[0]
        whole = group == "the tuned model"
        share = row["Toxic text (nats)"].partition(" (")[0] + " nats" if whole else row["Share (95 %)"]
        control = f" [{row['Random'].partition(' (')[0]}]" if row["Random"] else ""
        cells.setdefault("The whole change" if whole else group[0].upper() + group[1:], {})[run] = share + control
    runs = list(dict.fromkeys(run for of_group in cells.values() for run in of_group))
    return table(["Patched", *runs], [(group, *(of_group[run] for run in runs)) for group, of_group in cells.items()])


def dual(kind: str, columns: Mapping[str, str]) -> Callable[[], str]:
    """Return a function that shows one table of dual multilinguality: the value side, the key side, or who fires."""

    def shown() -> str:
        rows = [row for row in stored("dual")["rows"] if kind in (row["table"], row.get("Side"))]
        keys = {"Model": "Model"} if len({row["Model"] for row in rows}) > 1 else {}
        keys |= {"Neurons": "Neurons"} | columns
        return table(list(keys), [[row[key] for key in keys.values()] for row in rows])

    return shown


def taught() -> str:
    """Return how often each taught model insults, in each language, and how often in that language's own words."""
    cells: dict[str, dict[str, str]] = {}
    for row in stored("taught")["rows"]:
        shown = f"{float(row['Any insult'].split()[0]):.0f} % ({float(row['In English words'].split()[0]):.0f} %)"
        cells.setdefault(row["Model"], {})[row["Language"]] = shown
    codes = languages.in_order({code for row in cells.values() for code in row})
    rows = [(model, *(of_model[code] for code in codes)) for model, of_model in cells.items()]
    return table(["SmolLM2", *map(languages.name, codes)], rows)


def demo_minutes() -> str:
    minutes = sum(stored(DEMO)["seconds"].values()) / 60
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    halves = round(2 * minutes)
    minutes_in_words = words[halves // 2 - 1] if 2 <= halves < 2 * len(words) + 2 else str(halves // 2)
    return f"about {minutes_in_words}{' and a half' if halves % 2 else ''} minutes"


def demo_seconds() -> str:
    return table(
        ["Stage of the demo", "seconds"],
        [(stage, f"{seconds:.0f}") for stage, seconds in stored(DEMO)["seconds"].items()],
    )


def share_of_all_pairs() -> str:
    """Return how much of the change through pairs in all languages comes through English pairs alone."""
    column = "other 16: change in average toxicity (95 %)"
    falls: dict[str, list[float]] = {}
    for row in stored("controls")["rows"]:
        falls.setdefault(row["pairs"], []).append(float(row[column].split(" (")[0].replace("−", "-")))
    pairs_of_falls = zip(falls["English"], falls["all languages"], strict=True)
    shares = [100 * by_english / by_all for by_english, by_all in pairs_of_falls]
    return f"{math.floor(min(shares)):.0f} to {max(shares):.0f} %"


def r_interval() -> str:
    demo = stored(DEMO)
    low, high = demo["r_interval"]
    return f"r = {demo['transfer']['emt']['r']:.2f} has a 95 % interval from {signed(low, 2)} to {signed(high, 2)}"


_COSTS = {"What": "what", "Cost": "cost", "Measured against": "measured against"}
_MODELS = {model: model for model in ("Miniature", "SmolLM2", "GPT-2 small, random")}
_CONTROLS = {
    "Pairs": "pairs",
    "Seed": "seed",
    "English: EMT": "English: EMT",
    "English: average toxicity, change": "English: change in average toxicity (95 %)",
    "Other 16: EMT": "other 16: EMT",
    "Other 16: average toxicity, change": "other 16: change in average toxicity (95 %)",
    "Other 16: perplexity": "other 16: perplexity",
}

_DUAL = {
    "Languages above chance, corrected": "Above chance, corrected",
    "Above the 95th percentile": "Above the 95th percentile",
    "By chance": "By chance",
    "p": "p",
}
_OF_ONE = {"Languages of one neuron": "Languages of one neuron", "By chance, of one": "Of one by chance"}
"""Columns of the tables of dual multilinguality, and their keys in a stored row."""

CONTENT: Mapping[str, Callable[[], str]] = {
    "summary": summary,
    "beside-paper": beside_paper,
    "met-or-not": met_or_not,
    "severities": severities,
    "provocations": provocations,
    "studies-tuned": studies_tuned,
    "verdicts": verdicts,
    "reasons": reasons,
    "sources-fall": sources_fall,
    "falls-by-chance": falls_by_chance,
    "same-text": same_text,
    "studies-transfer": studies_transfer,
    "by-language": by_language,
    "doses": doses,
    "controls": rows_of("controls", _CONTROLS),
    "patching": patching,
    "stability": stability,
    "dual-value": dual("value", {**_DUAL, "Of these by tokens of one language": "Stricter", **_OF_ONE}),
    "dual-key": dual("key", {**_DUAL, "Above others that fire": "Stricter", **_OF_ONE}),
    "dual-firing": dual(
        "firing",
        {
            "Fire before toxic English text": "Fire",
            "Random ones": "Random ones fire",
            "p": "p, fire",
            "Promoted tokens that are toxic": "Toxic tokens",
            "By chance": "Toxic tokens by chance",
        },
    ),
    "dual-after": dual("at once", {"Side": "Side", "Before": "Above chance, corrected", "After": "Corrected, after"}),
    "attribution": part_of("attribution", "validate"),
    "attribution-completeness": part_of("attribution", "completeness"),
    "attribution-cost": part_of("attribution", "cost"),
    "attribution-worlds": carried,
    "split": rows_of("split", {name: name for name in _SPLIT}),
    "attribution-shared": part_of("attribution-worlds", "shared"),
    "planted": rows_of("planted", {key: key for key in ("Worlds", "Verdicts")}),
    "smollm2": rows_of("smollm2", {"Claim": "Claim", "Verdict": "Verdict", "Why": "Why"}),
    "constants": constants("constants"),
    "constants-sources": constants("constants-sources"),
    "constants-kinds": constants_by("kind"),
    "constants-groups": constants_by("group"),
    "taught": taught,
    "predictors": predictors,
    "demo-seconds": demo_seconds,
    "engine": rows_of("engine", _COSTS),
    "growth": rows_of("growth", {"What grows": "What grows", "Sizes": "Sizes", **_MODELS, "Growth": "Growth"}),
    "ways": rows_of("ways", {"Writes 10 prompts' greedy text": "Way", **_MODELS}),
    "ways-samples": rows_of("ways-samples", {"Writes 4 × 25 samples": "Way", **_MODELS}),
    "demo-stages": rows_of(
        "demo-stages",
        {
            "Stage": "Stage",
            "Processor seconds": "Processor seconds",
            "The older checkout's": "The other's",
            "Ratio": "Ratio",
        },
    ),
    "served": rows_of("served", {key: key for key in ("Model", "Kind", "Greedy texts that are equal")}),
    "served-speed": rows_of(
        "served-speed",
        {key: key for key in ("Model", "Writer", "Tokens a second of processor time", "Measured against Hugging Face")},
    ),
    "together": rows_of(
        "together",
        {
            "Model": "model",
            "Prompts": "prompts",
            "Edits": "edits",
            "Edits in a batch": "edits in a batch",
            "Share of one by one": "share of one by one",
        },
    ),
    "costs": rows_of(
        "costs",
        {
            "Model": "Model",
            "All but tuning, 1 H100": "All but tuning, 1 H100",
            "The same, 8 H100": "All but tuning, 8 H100",
            "Tuning, 1,000 steps": "1,000 steps",
            "Tuning, to the last epoch": "To the last epoch",
            "Dollars, 1 H100": "Dollars, 1 H100",
            "Dollars, 8 H100": "Dollars, 8 H100",
        },
    ),
    "edits": rows_of("edits", _COSTS),
    "tuning": rows_of("tuning", _COSTS),
    "retrieval": rows_of("retrieval", _COSTS),
    "rounding": rows_of("rounding", {"In bfloat16": "what", "Result": "result"}),
    "came-out": rows_of("came-out", {key: key for key in ("Prompts", "Given", "Came out", "From", "To")}),
    "coverage": rows_of("coverage", {"Outcomes": "outcome", "95 % intervals that hold the truth": "result"}),
    **{
        f"{name}-{kind}": lambda name=name, made=made: table(*made(name))
        for name in ("frontier", "frontier-smollm2")
        for kind, made in rivals_tables.TABLES.items()
    },
    **{
        f"{name}-{kind}": lambda made=made: table(*made())
        for name, tables in (("matrix", matrix_tables.TABLES), ("tuning-methods", methods_tables.TABLES))
        for kind, made in tables.items()
    },
    **{f"{name}-minutes": partial(rivals_tables.minutes, name) for name in ("frontier", "matrix", "tuning-methods")},
    "demo-minutes": demo_minutes,
    "share-of-all-pairs": share_of_all_pairs,
    "r-interval": r_interval,
}
"""What stands between the markers of each name."""


def refreshed(page: str) -> str:
    """Return the page with every marked place written anew."""

    def written(match: re.Match[str]) -> str:
        kind, name, _ = match.groups()
        if name not in CONTENT:
            sys.exit(f"no table or value is called {name}: expected one of {', '.join(CONTENT)}")
        content = CONTENT[name]()
        between = f"\n\n{content}\n\n" if kind == "table" else content
        return f"<!-- {kind}: {name} -->{between}<!-- end -->"

    return MARKED.sub(written, page)


def linked(notebook: Path) -> str:
    """Return the notebook's text with the link that opens it in Colab, from the project's address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = project["urls"]["Homepage"]
    place = notebook.relative_to(ROOT).as_posix()
    link = f"{address.replace('github.com', 'colab.research.google.com/github')}/blob/main/{place}"
    # The words of the link may stand on two lines.
    text = re.sub(r"Colab\]\([^)]*\)", f"Colab]({link})", notebook.read_text("utf-8"))
    return re.sub(r"pip install git\+[^`\"]*", f"pip install git+{address}", text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not up to date")
    parser.add_argument("--store", metavar="NAME=FILE", help="first make this stored result anew")
    parser.add_argument("--command", help="the command that made FILE")
    parser.add_argument("--machine", help='the machine in words, such as "two cores"')
    options = parser.parse_args(arguments)
    if options.store:
        name, _, source = options.store.partition("=")
        store(name, Path(source), command=options.command, machine=options.machine)
    made = {path: refreshed(path.read_text("utf-8")) for path in PAGES}
    made |= {path: linked(path) for path in NOTEBOOKS} | {DRAWING: drawing()}
    stale = [path for path, new in made.items() if not path.exists() or path.read_text("utf-8") != new]
    if options.check and stale:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
        sys.exit(f"out of date: {names}: run python tutorials/refresh.py")
    for path in stale:
        path.write_text(made[path], "utf-8")


if __name__ == "__main__":
    main()
