"""Notebooks as pages in a real browser: every figure shows, nothing fails or is fetched, hostile text is inert.

Accessibility is judged for the outputs alone: nbconvert's own template numbers cells in too pale a colour, and tells
links from text by colour alone. It also gives all pictures the same alternative text: what they show is said below.
"""

import importlib.util
from pathlib import Path

import nbformat
import pytest
import torch
from browsing import visiting
from nbconvert import HTMLExporter
from studies import HOSTILE, made_up
from test_tutorials import FOLDER, cells

from xlingtox import NeuronSet, TokenActivations, figures, languages
from xlingtox.data import Prompt
from xlingtox.models.generation import Continuations
from xlingtox.models.identity import Identity
from xlingtox.study import StudyResults


def rendered(notebook: nbformat.NotebookNode, folder: Path) -> Path:
    """The notebook as nbconvert's page, without what the page would fetch: require.js, MathJax, Mermaid."""
    exporter = HTMLExporter(require_js_url="", mathjax_url="", mermaid_js_url="", jupyter_widgets_base_url="")
    file = folder / "notebook.html"
    file.write_text(exporter.from_notebook_node(notebook)[0], "utf-8")
    return file


def showing(*outputs: object) -> nbformat.NotebookNode:
    """A notebook with one cell, whose outputs are what these results show."""
    shown = [nbformat.v4.new_output("display_data", {"text/html": result._repr_html_()}) for result in outputs]  # type: ignore[attr-defined]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("results", outputs=shown)])


@pytest.mark.parametrize("number", [1, 5])
def test_a_tutorial_as_a_page(browser, tmp_path, number):
    (path,) = FOLDER.glob(f"{number}-*.ipynb")
    pictures = [output for cell in cells(path) for output in cell["outputs"] if "image/png" in output["data"]]
    assert len(pictures) >= 3
    with visiting(browser, rendered(nbformat.read(path, as_version=4), tmp_path)) as visit:
        sizes = "[...document.images].map((image) => [image.complete && image.naturalWidth, image.width, image.height])"
        drawn = visit.page.evaluate(sizes)
        assert len(drawn) == len(pictures)
        for (natural, width, height), picture in zip(drawn, pictures, strict=True):
            assert natural > width > 600
            assert {"width": width, "height": height} == picture["metadata"]["image/png"]
        tables = [output for cell in cells(path) for output in cell["outputs"] if "text/html" in output["data"]]
        assert visit.page.locator("table").count() == len(tables)
        assert visit.accessibility_faults(within=".jp-OutputArea-output") == []
        assert (visit.faults, visit.requests) == ([], [])


def test_letters_that_no_font_has_are_noticed_before_pictures_are_taken(browser, monkeypatch):
    for package in ("nbclient", "PIL"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    page = browser.new_page()
    assert tuple(execute.LETTERS) == languages.CODES
    # Two code points that are no letters: one in a script that fonts have, one in none.
    assert execute.lacking(page, {"en": "a", "ru": "ж", "xx": "\u0379", "yy": "\U000e0fff"}) == ["xx", "yy"]
    page.close()


def test_hostile_text_in_a_notebook_does_not_run(browser, tmp_path):
    neurons = NeuronSet.of([(0, 1), (2, 7)])
    model = Identity(HOSTILE, None, "float32", "0")
    read = TokenActivations("en", (HOSTILE, " <b>x</b>", "&lt;"), 2, torch.ones(3, 2), neurons, model)
    written = Continuations((Prompt("en", HOSTILE),), 1, (HOSTILE,))
    page = rendered(showing(figures.token_activations(read, read), written), tmp_path)
    with visiting(browser, page) as visit:
        frame = visit.page.frame_locator("iframe")
        frame.locator(".colored-tokens").nth(3).wait_for()
        texts = frame.locator(".colored-tokens").all_inner_texts()
        assert [text.startswith("</script><script>alert(1)</script><img") for text in texts] == [True, False] * 2
        assert visit.page.get_by_role("cell").filter(has_text="</script><script>alert(1)").count() == 2
        assert frame.locator("img").count() == visit.page.locator("img").count() == 0
        assert visit.accessibility_faults(within=".jp-OutputArea-output") == []
        assert (visit.faults, [url for url in visit.requests if url != "about:srcdoc"]) == ([], [])


def test_figures_live_in_a_notebook_are_drawn_and_tell_languages_by_name(browser, tmp_path):
    """As plotly's own renderer for notebooks without a network shows them."""
    study = StudyResults.of(made_up())
    drawn = [
        figures.toxicity(study.comparison),
        figures.dose_response(study.toxic_doses),
        figures.neuron_activations(study.comparison),
    ]
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": figure.to_html(full_html=False, include_plotlyjs=i == 0)})
        for i, figure in enumerate(drawn)
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("figures", outputs=outputs)])
    with visiting(browser, rendered(notebook, tmp_path)) as visit:
        plots = visit.page.locator(".js-plotly-plot")
        visit.page.wait_for_function(
            "() => { const plots = [...document.querySelectorAll('.js-plotly-plot')];"
            " return plots.length === 3 && plots.every((plot) => plot.querySelector('.main-svg')); }"
        )
        for i in range(3):
            box = plots.nth(i).bounding_box()
            assert box["width"] > 600
            assert box["height"] == drawn[i].layout.height
        bar = plots.nth(0).locator(".bars .point").nth(1)
        bar.scroll_into_view_if_needed()
        bar.hover(force=True)  # plotly listens on a layer above
        plots.nth(0).locator(".hoverlayer .hovertext").first.wait_for()
        assert "Spanish" in plots.nth(0).locator(".hoverlayer").text_content()
        assert (visit.faults, visit.requests) == ([], [])
