"""How long the tutorials take: `python tests/benchmarks/tutorials.py`; on two idle cores a few minutes together."""

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        names: dict[str, Any] = {}
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for cell in cells:
                exec(compile("".join(cell["source"]), path.name, "exec"), names)
        print(f"{path.stem:<44}{time.perf_counter() - began:>8.1f} s")


if __name__ == "__main__":
    main()
