"""The tutorials run from the first cell to the last, and are committed with light outputs that read on a code host."""

import ast
import contextlib
import functools
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import pytest

import xlingtox

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
MARK = "needs-weights"
SWITCH = "with_weights"

tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    of_this_kind = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]
    return [cell | {"source": "".join(cell["source"])} for cell in of_this_kind]


def marked(cell: dict[str, Any]) -> bool:
    return MARK in cell["metadata"].get("tags", ())


def shown(cell: dict[str, Any]) -> str:
    """Return all text of a cell's outputs, pictures left out."""
    media = [output.get("data", output) for output in cell["outputs"]]
    texts = ({kind: content for kind, content in one.items() if kind != "image/png"} for one in media)
    return "\n".join(map(json.dumps, texts))


class Run(NamedTuple):
    """The names that a tutorial defined when it ran, and what it showed.

    Attributes:
        names: the names that it had defined in the end.
        shown: the text of each code cell's last expression, as execute.py stores it; "" for none.
    """

    names: dict[str, object]
    shown: list[str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Run]:
    """Runs a tutorial once, for all tests that ask. All share a folder, as a reader's do: some tune the same model."""
    folder = tmp_path_factory.mktemp("tutorials")

    @functools.cache
    def run(path: Path) -> Run:
        names: dict[str, Any] = {}
        texts = []
        with contextlib.chdir(folder), pd.option_context("display.max_columns", 20):
            for cell in cells(path):
                tree = ast.parse(cell["source"])
                last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, path.name, "exec"), names)
                value = eval(compile(ast.Expression(last.value), path.name, "eval"), names) if last else None
                texts.append(_text(value))
        return Run(names, texts)

    return run


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, go.Figure):
        title = value.layout.title
        return ": ".join(filter(None, [title.text, title.subtitle.text]))
    return repr(value)


@tutorial
def test_a_tutorial_runs(path: Path, ran: Callable[[Path], Run]) -> None:
    assert not ran(path).names.get(SWITCH)


@tutorial
def test_its_stored_texts_are_what_it_shows(path: Path, ran: Callable[[Path], Run]) -> None:
    """Words must be equal and numbers nearly so: machines round differently, and a sample may turn over by it."""
    for cell, now in zip(cells(path), ran(path).shown, strict=True):
        stored = "".join("".join(output["data"].get("text/plain", "")) for output in cell["outputs"])
        assert _words(stored) == _words(now), f"run tutorials/execute.py: {cell['source'][-80:]}"
        for then, again in zip(_numbers(stored), _numbers(now), strict=True):
            assert again == pytest.approx(then, rel=0.1, abs=0.05)


_NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d+\.?\d*|nan|NaN)")


def _words(text: str) -> list[str]:
    return _NUMBER.sub("#", text).split()


def _numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in _NUMBER.findall(text) if number.lower() != "nan"]


@tutorial
def test_its_outputs_are_those_of_one_run_and_light(path: Path) -> None:
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 200_000
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"execute_result", "display_data"}, "no errors, and nothing that libraries print"
    media = {name for cell in code for output in cell["outputs"] for name in output["data"]}
    assert media <= {"text/plain", "text/html", "image/png"}, "what every code host shows"
    text = "\n".join([*(cell["source"] for cell in code), *map(shown, code)])
    assert not re.findall(r"(?<![\w.:/<])/\w+/\w*", text), "an absolute path"
    assert not re.search("<script|<iframe|javascript:", text)


@tutorial
def test_cells_that_need_weights_say_so_and_do_nothing(path: Path) -> None:
    for cell in cells(path):
        if not marked(cell):
            assert "from_pretrained" not in cell["source"]
            continue
        first, second = cell["source"].splitlines()[:2]
        assert re.match(r"# Needs .+", first)
        assert second == f"if {SWITCH}:"
        assert len(ast.parse(cell["source"]).body) == 1, "all of it behind the switch"
        assert cell["outputs"] == []


@tutorial
def test_the_calls_that_do_not_run_here_can_be_made(path: Path) -> None:
    """Every name of the package in marked cells exists and takes the arguments that it gets."""
    for cell in filter(marked, cells(path)):
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Call) and re.fullmatch(r"xt(\.\w+)+", ast.unparse(node.func)):
                called: Any = xlingtox
                for name in ast.unparse(node.func).split(".")[1:]:
                    called = getattr(called, name, None) or pytest.fail(f"there is no {ast.unparse(node.func)}")
                named = {str(keyword.arg): None for keyword in node.keywords}
                inspect.signature(called).bind(*node.args, **named)


@tutorial
def test_it_is_named_by_its_number_and_title_and_its_links_lead_somewhere(path: Path) -> None:
    text = [cell["source"] for cell in cells(path, "markdown")]
    title = text[0].splitlines()[0].removeprefix("# ")
    assert path.stem.partition("-")[2] == re.sub(r"\W+", "-", title.lower()).strip("-")
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", "\n".join(text)):
        assert (FOLDER / target).is_file(), target


def test_there_are_tutorials_and_each_has_its_own_number() -> None:
    numbers = sorted(int(path.stem.partition("-")[0]) for path in TUTORIALS)
    assert numbers == list(range(1, 11))
    assert any(marked(cell) for path in TUTORIALS for cell in cells(path))
