"""Keep a figure as a PNG in few colours, as the guide shows it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

WIDTH = 860
"""The width of a picture, in pixels of the page; as in the notebooks."""


def draw(figure: Any, file: Path) -> None:
    """Draw a plotly figure in the browser that takes pictures of studies."""
    from PIL import Image
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    from xlingtox.study import picture

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=picture.browser(), args=["--no-sandbox"])
        page = browser.new_page(device_scale_factor=1.5, viewport={"width": WIDTH, "height": figure.layout.height})
        page.set_content(f'<body style="margin: 0"><div id="shown" style="width: {WIDTH}px"></div>')
        page.add_script_tag(content=get_plotlyjs())
        page.evaluate(
            "(figure) => Plotly.newPlot('shown', figure.data, figure.layout, {staticPlot: true})",
            json.loads(figure.to_json()),
        )
        taken = Image.open(io.BytesIO(page.locator("#shown").screenshot())).convert("RGB")
        browser.close()
    taken.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
