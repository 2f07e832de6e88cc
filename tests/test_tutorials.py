"""The tutorials run from the first cell to the last, and are committed with light outputs that read on a code host."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import xlingtox

FOLDER = Path(__file__).resolve().parent.parent / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
MARK = "needs-weights"
SWITCH = "with_weights"

tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    found = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def marked(cell: dict[str, Any]) -> bool:
    return MARK in cell["metadata"].get("tags", ())


def shown(cell: dict[str, Any]) -> str:
    """All text of a cell's outputs, pictures left out."""
    data = [output.get("data", output) for output in cell["outputs"]]
    return "\n".join(json.dumps({name: each for name, each in own.items() if name != "image/png"}) for own in data)


@tutorial
def test_a_tutorial_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells(path):
        exec(cell["source"], names)
    assert not names.get(SWITCH)


@tutorial
def test_its_outputs_are_those_of_one_run_and_light(path: Path) -> None:
    own = cells(path)
    assert [cell["execution_count"] for cell in own] == list(range(1, len(own) + 1))
    assert path.stat().st_size < 200_000
    kinds = {output["output_type"] for cell in own for output in cell["outputs"]}
    assert kinds <= {"execute_result", "display_data"}, "no errors, and nothing that libraries print"
    media = {name for cell in own for output in cell["outputs"] for name in output["data"]}
    assert media <= {"text/plain", "text/html", "image/png"}, "what every code host shows"
    text = "\n".join([*(cell["source"] for cell in own), *map(shown, own)])
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
    """Of marked cells, every name of the package exists and takes the arguments that it is given."""
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
    numbers = [int(path.stem.partition("-")[0]) for path in TUTORIALS]
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert any(marked(cell) for path in TUTORIALS for cell in cells(path))
