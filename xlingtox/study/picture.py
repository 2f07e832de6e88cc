"""A picture of a study for a README or a slide: a screenshot of a page, taken with an installed Chromium browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from xlingtox import figures, files
from xlingtox.checking import checked
from xlingtox.html import pages
from xlingtox.study import number_tables
from xlingtox.study.results import StudyResults

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_SIZE = 1400, 760
"""The width and height of the picture, in pixels."""

_FIGURE_HEIGHT = 420


def browser() -> str | None:
    """Return the path of an installed Chromium browser, or None."""
    return next((program for name in _BROWSERS if (program := shutil.which(name))), None)


@checked
def take(results: StudyResults, path: str | Path, *, executable: str | None = None) -> None:
    """Write a PNG with two figures and a table: toxicity by language, retrieval against the drop, and mean measures.

    Retrieval is left out where the study predicted nothing. The paper's Table 2 stands below where the model is one of
    the paper's, or the miniature.

    Args:
        executable: the path of a Chromium browser (default: the first that is installed).

    Raises:
        ValueError: the study compared nothing before and after tuning.
        OSError: there is no browser, it failed, or the file cannot be written.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> xt.study.picture.take(results, "study.png")  # doctest: +SKIP
    """
    page = _page(results)
    program = executable or browser()
    if program is None:
        raise OSError(f"no browser was found: a picture needs one of {', '.join(_BROWSERS)}")
    target = Path(path).expanduser().absolute()
    with tempfile.TemporaryDirectory() as folder:
        file, screenshot = Path(folder, "page.html"), Path(folder, "page.png")
        file.write_text(page, "utf-8")
        # Many containers forbid a browser its sandbox; our own page, which fetches nothing, is safe without one.
        command = [program, "--headless", "--no-sandbox", "--hide-scrollbars", "--force-prefers-color-scheme=light"]
        command += [f"--user-data-dir={folder}", f"--window-size={_SIZE[0]},{_SIZE[1]}", "--virtual-time-budget=10000"]
        process = subprocess.run(
            [*command, f"--screenshot={screenshot}", file.as_uri()], capture_output=True, timeout=600
        )
        if not screenshot.exists():
            raise OSError(f"{program} took no picture: {process.stderr.decode(errors='replace').strip()[-300:]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as partial:
            shutil.copyfile(screenshot, partial)


def _page(results: StudyResults) -> str:
    if results.comparison is None:
        raise ValueError('nothing to picture: the study compared nothing, as it lacks the stage "compare"')
    toxicity, transfer = figures.toxicity(results.comparison), results.transfer
    if transfer is not None and transfer.drop:
        right = figures.transfer(transfer, pivot=results.source_language)
        shown = {"left": _still(toxicity, 820), "right": _still(right, 560)}
    else:
        shown = {"left": _still(toxicity, 1380)}
    body = "".join(f'<div id="{place}"></div>' for place in shown) + number_tables.beside_paper(results)
    return pages.document("A study", body, "picture", shown, libraries=[get_plotlyjs()])


def _still(figure: go.Figure, width: int) -> dict[str, Any]:
    drawn: dict[str, Any] = json.loads(figure.to_json())
    layout = drawn["layout"]
    # A still picture has no buttons above its title.
    layout["title"]["pad"], layout["margin"]["t"] = {"t": 6}, 84
    layout |= {"width": width, "height": _FIGURE_HEIGHT}
    return drawn
