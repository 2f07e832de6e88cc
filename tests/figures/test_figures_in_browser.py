"""Figures that a report or a notebook may show, drawn in a real browser: no text over another, none beyond the edge."""

import numpy as np
import pytest
import torch
from browsing import visiting
from studies import made_up
from test_figures_attribution import result, split

from xlingtox import NeuronSet, Probe, figures, languages
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.measures import FLUENCY, TOXICITY
from xlingtox.study import StudyResults

CLASHES = """() => {
  const whole = document.querySelector(".main-svg").getBoundingClientRect();
  const found = [...document.querySelectorAll(".main-svg text:not(.textpoint text)")]
    .map((text) => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
  const outside = found.filter(([, box]) => box.left < whole.left - 1 || box.right > whole.right + 1
    || box.top < whole.top - 1 || box.bottom > whole.bottom + 1).map(([said]) => `outside: ${said}`);
  const over = found.flatMap(([one, a], i) => found.slice(i + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
    .map(([other]) => `${one} over ${other}`));
  return [...outside, ...over];
}"""


def patched():
    """Three measures of three groups, two of them with a control, over twelve prompts in three languages."""
    rng = np.random.default_rng(0)
    shares = {"tuned": 0.5, "sources": 0.1, "sources (random)": 0.02, "all": 0.45}
    shares |= {"positive cosine": 0.3, "positive cosine (random)": 0.1}
    base = {measure: 1 + rng.random(12) / 10 for measure in ("probe", "toxic_mass", "toxicity")}
    runs = {
        name: {measure: values - share * (1 + rng.random(12) / 10) for measure, values in base.items()}
        for name, share in shares.items()
    }
    return PatchEffect(("en", "de", "ja") * 4, {"base": base} | runs)


def log():
    """Every curve, at eight steps."""
    curves = ("loss", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "rewards/margins")
    names = [*curves, *(f"eval_{name}" for name in ("loss", "rewards/accuracies", "rewards/margins"))]
    return [{"step": step, **{name: step / 10 + i for i, name in enumerate(names)}} for step in range(8)]


def roc():
    rng = np.random.default_rng(0)
    labels = [0, 1] * (20 * len(languages.CODES))
    scores = (rng.normal(size=len(labels)) + labels).tolist()
    return figures.roc(labels, scores, languages=[code for code in languages.CODES for _ in range(40)])


def drawn():
    study = StudyResults.of(made_up())
    return {
        "training": figures.training(log()),
        "patch_effect": figures.patch_effect(patched()),
        "roc": roc(),
        "probe": figures.probe(Probe(torch.ones(4), 0.0, 0.9, 0.95, 0.6, 90, 10)),
        "sources": figures.sources(NeuronSet.of([(0, 1), (2, 5), (2, 9)], scores=[0.3, 0.5, 0.4])),
        **{f"fluency {measure}": figures.fluency(study.comparison, measure=measure) for measure in FLUENCY},
        **{f"toxicity {measure}": figures.toxicity(study.comparison, measure=measure) for measure in TOXICITY},
        "activations": figures.activations(study.comparison),
        "dose_response": figures.dose_response(study.toxic_doses),
        "weight_drift": figures.weight_drift(study.comparison.drift),
        "transfer": figures.transfer(study.transfer),
        "attribution": figures.attribution(result()),
        "attribution_by_language": figures.attribution_by_language(result()),
        "shared_units": figures.shared_units(result(), k=2),
        "alignment_split": figures.alignment_split(split()),
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each figure as plotly's own page, which holds the library once and loads nothing."""
    folder = tmp_path_factory.mktemp("figures")
    for name, figure in drawn().items():
        figure.write_html(folder / f"{name}.html", include_plotlyjs="directory", default_height=figure.layout.height)
    return folder


@pytest.mark.parametrize("name", list(drawn()))
def test_a_figure_is_drawn_and_no_text_lies_over_another(browser, pages, name):
    with visiting(browser, pages / f"{name}.html", 600) as visit:
        for width in (600, 860):
            visit.page.set_viewport_size({"width": width + 16, "height": 900})  # the page has an edge of 8
            visit.page.wait_for_function(
                f"() => document.querySelector('.main-svg')?.getBoundingClientRect().width === {width}"
            )
            assert visit.page.evaluate(CLASHES) == [], width
            marks = visit.page.locator(".scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm").count()
            assert marks >= (1 if name == "attribution_by_language" else 2)
        assert visit.faults == []
        assert [url.rpartition("/")[2] for url in visit.requests] == ["plotly.min.js"]


def test_a_clash_is_seen(browser, pages, tmp_path):
    figure = figures.training(log()).update_traces(showlegend=True)
    figure.update_layout(legend={"yref": "paper", "y": 1.0}).update_yaxes(title_text="A title longer than " * 9, row=1)
    figure.write_html(tmp_path / "page.html", include_plotlyjs=True, default_height=620)
    with visiting(browser, tmp_path / "page.html", 700) as visit:
        visit.page.wait_for_selector(".main-svg .legendtext")
        clashes = visit.page.evaluate(CLASHES)
    assert any("over Preference tuning" in clash or "Preference tuning" in clash for clash in clashes)
    assert any(clash.startswith("outside: A title") for clash in clashes)
