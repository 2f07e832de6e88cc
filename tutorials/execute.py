"""Run tutorials in a fresh kernel and store what they show: `python tutorials/execute.py [1 2 ...]`.

Figures and token views are stored as pictures, which are light and which every code host shows. A figure's data would
be several times as large, and a token view carries a library of over a megabyte. Who runs a cell gets the live one.

Needs `pip install -e '.[test,tutorials]'`, a Chromium, and fonts with the letters of all 17 languages, such as Debian's
fonts-noto-core and fonts-noto-cjk: pictures keep what this machine draws.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from plotly.offline import get_plotlyjs

from xlingtox import languages
from xlingtox.html.pages import FONTS
from xlingtox.study import picture

PLOTLY = "application/vnd.plotly.v1+json"
PAGE = '<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">'
WIDTH, SHARPNESS = 860, 1.5

LETTERS = dict(zip(languages.CODES, "a ñ ç ß ã è ë å a ł ř ж 说 ひ 한 ह ع".split(), strict=True))
"""One letter of each language that a font may lack."""

LACKING = """([letters, fonts]) => {
  const drawn = (letter) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [64, 64];
    const pen = canvas.getContext("2d");
    pen.font = `40px ${fonts}`;
    pen.fillText(letter, 8, 48);
    return canvas.toDataURL();
  };
  const none = [drawn(" "), drawn("\\u0378")];  // the second is no letter of any font
  return Object.keys(letters).filter((code) => none.includes(drawn(letters[code])));
}"""


def lacking(page: Page, letters: dict[str, str] = LETTERS) -> list[str]:
    """Return the languages whose letter the browser draws as a box, or not at all."""
    return page.evaluate(LACKING, [letters, FONTS])


def execute(path: Path, page: Page) -> None:
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        # Libraries warn each reader of something else, and bars are not part of what is shown.
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "data" in output:
                _pictured(output, page)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def _pictured(output: Any, page: Page) -> None:
    data, method = output.data, Image.Quantize.FASTOCTREE
    if PLOTLY in data:
        figure = data.pop(PLOTLY)
        page.set_content(f'{PAGE}<div id="shown" style="width: {WIDTH}px"></div>')
        page.add_script_tag(content=get_plotlyjs())
        page.evaluate("(figure) => Plotly.newPlot('shown', figure.data, figure.layout, {staticPlot: true})", figure)
        if any(trace["type"] == "heatmap" for trace in figure["data"]):
            method = Image.Quantize.MAXCOVERAGE  # faint colours say something there
        title = figure["layout"]["title"]
        data["text/plain"] = ": ".join(filter(None, [title["text"], title.get("subtitle", {}).get("text")]))
    elif "<iframe" in data.get("text/html", ""):
        page.set_content(f'{PAGE}<div id="shown">{data.pop("text/html")}</div>')
        page.frame_locator("iframe").locator("table, .colored-tokens").first.wait_for()
        page.wait_for_timeout(500)  # each text is drawn by itself
    else:
        return
    taken = Image.open(io.BytesIO(page.locator("#shown").screenshot())).convert("RGB")
    packed_colours = taken.quantize(256, method, dither=Image.Dither.NONE)
    # The page's white must be one of the few colours that are left.
    palette = packed_colours.getpalette() or []
    packed_colours.putpalette([255 if value > 250 else value for value in palette])
    packed = io.BytesIO()
    packed_colours.save(packed, "PNG", optimize=True)
    data["image/png"] = base64.b64encode(packed.getvalue()).decode()
    output.metadata["image/png"] = {"width": round(taken.width / SHARPNESS), "height": round(taken.height / SHARPNESS)}


def main(numbers: list[str]) -> None:
    # As JSON alone, whatever the kernel would choose by itself.
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    root = Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root.parent), os.environ.get("PYTHONPATH")]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=picture.browser(), args=["--no-sandbox"])
        page = browser.new_context(
            viewport={"width": WIDTH, "height": 900}, device_scale_factor=SHARPNESS, color_scheme="light"
        ).new_page()
        if codes := lacking(page):
            sys.exit(
                f"no font here has the letters of {', '.join(map(languages.name, codes))}: install some, such as "
                "Debian's fonts-noto-core and fonts-noto-cjk"
            )
        for path in sorted(root.glob("*.ipynb")):
            if not numbers or path.name.split("-")[0] in numbers:
                execute(path, page)


if __name__ == "__main__":
    main(sys.argv[1:])
