"""README and guide: their numbers are those of the stored results, their links lead somewhere, their calls exist."""

import ast
import importlib.util
import inspect
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import xlingtox
from xlingtox.study import schema
from xlingtox.study.mistakes import Mistakes

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "tutorials" / "guide"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(GUIDE.glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
RESULTS = sorted((ROOT / "assets" / "results").glob("*.json"))

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    """The script tutorials/refresh.py as a module."""
    file = ROOT / "tutorials" / "refresh.py"
    spec = importlib.util.spec_from_file_location("refresh", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


# --- Numbers


def test_pages_drawing_and_links_are_up_to_date(refresh: ModuleType) -> None:
    refresh.main(["--check"])


def test_a_page_that_differs_is_found(refresh: ModuleType) -> None:
    page = "Text. <!-- value: demo-minutes -->a second<!-- end -->\n\n<!-- table: doses -->\nold\n<!-- end -->\n"
    new = refresh.refreshed(page)
    assert "a second" not in new
    assert "| Dose |" in new
    assert refresh.refreshed(new) == new


def test_an_unknown_marker_is_refused(refresh: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no table or value is called nothing"):
        refresh.refreshed("<!-- table: nothing --><!-- end -->")


@page
def test_markers_are_whole_and_no_value_begins_a_line(path: Path, refresh: ModuleType) -> None:
    """A comment at a line's start would make the whole line HTML, and its Markdown would not be read."""
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    assert len(re.findall("<!-- end -->", text)) == len(refresh.MARKED.findall(text))
    assert not re.search(r"^\s*(<!-- value|<!-- end -->.)", text, re.MULTILINE)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_stored_result_says_where_it_comes_from(path: Path) -> None:
    about = json.loads(path.read_text("utf-8"))
    assert all(about[key] for key in ("command", "machine", "version"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["date"])


def test_a_studys_results_are_stored_as_the_pages_show_them(refresh: ModuleType, tmp_path: Path, monkeypatch) -> None:
    codes = ["en", "de", "ja"]
    sides = [
        {"emt": 1.0, "toxicity_probability": 1.0, "average_toxicity": 0.8, "degenerate": 0.2, "perplexity": 2.0},
        {"emt": 0.6, "toxicity_probability": 0.5, "average_toxicity": 0.2, "degenerate": 0.1, "perplexity": 2.2},
    ]
    diversity = {"continuation_perplexity": 3.0, "distinct_1": 0.5, "distinct_2": 0.6, "distinct_3": 0.7}
    group = {"kind": "words", "group": "insults", "before": 0.2, "after": 0.1, "low": -0.2, "high": -0.05}
    doses = [
        {"offset": offset, "average_toxicity": toxicity, "low": 0.0, "high": 1.0, "perplexity": 2.0, "degenerate": 0.1}
        for offset, toxicity in ((0.0, 0.9), (-1.5, 0.2))
    ]
    verdicts = [
        {"claim": "A direction tells toxic text.", "verdict": "found", "reason": "Its AUC is 0.9."},
        {"claim": "The direction holds: de, ja.", "verdict": "weak", "reason": "In 1 of 2: es 0.80, fr 0.7."},
    ]
    interval = {"mean_activation": [-0.3, -0.1]}
    correlation = {"pearson_r": 0.5, "p_value": 0.04}
    retrieval = {
        "predictor": "retrieval",
        "pearson_low": 0.1,
        "pearson_high": 0.8,
        "error": 0.1,
        "guess": 0.2,
        "error_p": 0.03,
    }
    results = {
        "languages": codes,
        "seconds": {"tune": 100.0, "compare": 44.0},
        "actual": [[0, 1]],
        "n_neurons": 64,
        "before": {code: sides[0] | diversity | {"mean_activation": 0.1} for code in codes},
        "after": {code: sides[1] | diversity | {"mean_activation": -0.1} for code in codes},
        "groups": [group | {"language": language} for language in ("en", "de", "others")],
        "verdicts": verdicts,
        "warnings": [],
        "changes": {"en": interval, "de": interval, "ja": {"mean_activation": [-0.3, 0.1]}},
        "mean_changes": {"mean_activation": {"low": -0.25, "high": -0.15}},
        "same_text": {code: {"sources": [0.1, 0.1, -0.01, 0.01], "control": [0.1, 0.0, -0.2, -0.05]} for code in codes},
        "mean_same_text": {"sources": [0.1, 0.1, -0.01, 0.01], "control": [0.1, 0.0, -0.2, -0.05]},
        "specific": {code: [0.1, 0.05, 0.15] for code in [*codes, "all"]},
        "silent": {code: [] for code in [*codes, "all"]},
        "intervention": [dose | {"toxicity_by_language": {}} for dose in doses],
        "control": [dose | {"toxicity_by_language": {}, "average_toxicity": 0.8} for dose in doses],
        "intervention_dosing": {"unit": "sd", "match": "push", "n_random": 3, "n_neurons": 1, "n_constant": 0},
        "changes_of_others": {"average_toxicity": {"low": -0.7, "high": -0.5}},
        "retrieval": {"de": 0.1, "ja": 0.2},
        "transfer_by_measure": {
            "emt": correlation | {"predictors": [retrieval]},
            "average_toxicity": correlation | {"predictors": []},
        },
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results), "utf-8")
    monkeypatch.setattr(sys.modules["stored_results"], "RESULTS", tmp_path)
    monkeypatch.setattr(refresh, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="give --command and --machine"):
        refresh.store(refresh.DEMO, file, command=None, machine=None)
    refresh.store(refresh.DEMO, file, command="python -m xlingtox demo", machine="two cores")
    refresh.store(refresh.DEMO, file, command=None, machine=None)
    kept = refresh.stored(refresh.DEMO)
    assert kept["command"] == "python -m xlingtox demo"
    assert (kept["activity"]["own_below"], kept["activity"]["same_below"]) == (2, {"sources": 0, "control": 3})
    assert (kept["unit"], kept["n_random"]) == ("sd", 3)
    assert "| 0 | −1.5 | 0.200 (0.000 to 1.000) | 0.800 (0.000 to 1.000) |" in refresh.doses()
    assert "| 0 | control, both on the same text | 0.1000 → 0.0000 | −0.1000 (−0.2000 to −0.0500) | 3 of 3 |" in (
        refresh.sources_fall()
    )
    assert "| The direction holds | weak |" in refresh.verdicts()
    assert "| The direction holds | weak | In 1 of 2. |" in refresh.reasons()
    assert kept["drops"] == pytest.approx([0.4, 0.4])
    assert "0.800 → 0.200" in refresh.by_language()
    assert "| **miniature** | 1.000 → 0.600 | 1.000 → 0.500 |" in refresh.beside_paper()
    assert "| 20.0 % → 10.0 % (−0.200 to −0.050) |" in refresh.met_or_not()
    assert refresh.demo_minutes() == "about two and a half minutes"


def test_a_printed_table_is_read(refresh: ModuleType) -> None:
    text = "emt\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nother\n\n| a | b |\n| --- | --- |\n| 3 | 4 |\n"
    assert sys.modules["stored_results"].printed_rows(text) == [
        {"table": "emt", "a": "1", "b": "2"},
        {"table": "other", "a": "3", "b": "4"},
    ]


# --- Words and links


def words(path: Path) -> str:
    """The text of a page, or of a notebook's cells that are no code."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(path: Path) -> list[str]:
    """The paragraphs of a page: no code, no tables, no headings, no lists."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", words(path), flags=re.DOTALL)
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [block for block in blocks if block and not block.startswith(("|", "#", "!", "-", "*"))]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.stem)
def test_no_paragraph_is_over_90_words_and_no_sentence_over_30(path: Path) -> None:
    for block in prose(path):
        assert len(block.split()) <= 90, block
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`])", block):
            assert len(sentence.split()) <= 30, sentence


def test_the_readme_has_at_most_650_words() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 650


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(\s*(?!https?:)([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        assert place.is_file(), target
        if anchor:
            assert anchor in anchors(place.read_text("utf-8")), target


@page
def test_a_page_has_one_title(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


# --- Code


def named(dotted: str) -> Any:
    value: Any = xlingtox
    for name in dotted.split(".")[1:]:
        assert hasattr(value, name), f"there is no {dotted}"
        value = getattr(value, name)
    return value


@page
def test_calls_in_examples_exist_and_take_their_arguments(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and re.fullmatch(r"xt(\.\w+)+", ast.unparse(node.func)):
                call = named(ast.unparse(node.func))
                keywords = {str(keyword.arg): None for keyword in node.keywords}
                inspect.signature(call).bind(*node.args, **keywords)


@page
def test_names_of_the_package_in_the_text_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        for dotted in re.findall(r"(?<![\w.])xt(?:\.\w+)+", code):
            named(dotted)


@page
def test_settings_in_examples_are_known_keys_with_values_that_fit(path: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        mistakes = Mistakes()
        schema.sections(tomllib.loads(block), mistakes)
        assert [line for line in mistakes.lines if "is missing" not in line] == []


def messages() -> list[str]:
    """Every text in the package, with … for what is filled in."""
    texts = []
    for file in (ROOT / "xlingtox").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_the_errors_page_quotes_errors_that_exist() -> None:
    blocks = re.findall(r"```text\n(.*?)\n```", (GUIDE / "errors.md").read_text("utf-8"), re.DOTALL)
    quoted = [line for block in blocks for line in block.splitlines()]
    assert len(quoted) == 63
    known = messages()
    for message in quoted:
        if re.match(r"\w+: \w+ is |\w+\(\)", message):
            continue  # composed by the check of types, and by Python
        pattern = ".*".join(re.escape(part) for part in message.strip("… ").split("…"))
        assert any(re.search(pattern, text, re.DOTALL) for text in known), message
