"""The tutorials run from the first cell to the last, and are committed with light outputs."""

import json
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parent.parent / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] or "".join(cell["source"]).startswith("import") for cell in cells), "not executed"
    assert path.stat().st_size < 200_000
    names: dict[str, object] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)


def test_there_are_tutorials() -> None:
    assert TUTORIALS
