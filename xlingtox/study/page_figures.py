"""The figures of a study's page: each with its title, its caption, and its numbers as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from xlingtox import figures, languages
from xlingtox.figures.attribution import attribution, attribution_by_language
from xlingtox.figures.transfer import layers_of_retrieval
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.html.tables import language_name
from xlingtox.study import attribution_tables, number_tables, patches
from xlingtox.study.results import StudyResults
from xlingtox.text import seen

_AVERAGED = "Toxicity is the mean of the chosen languages; perplexity and degenerate text are those of all."
_UPRIGHT = 6
"""The names of more languages than these are slanted below a figure."""

_OF_ALL = "The line and its band are those of all languages."


@dataclass(frozen=True)
class Plot:
    """A figure of a page.

    Attributes:
        title, caption: what it shows and how to read it, as HTML.
        table: its numbers as an HTML table, folded below it; "" where they stand elsewhere.
        note: the note below it while only some languages are chosen.
    """

    figure: go.Figure
    title: str
    caption: str
    table: str = ""
    note: str = ""


def html_of(plots: Sequence[Plot], codes: Sequence[str], *, first: int = 1) -> tuple[dict[str, Any], str]:
    """Return the data for the page's script, and the HTML of numbered figures with their captions and numbers.

    Args:
        first: the number of the first figure.
    """
    html = "<noscript><p>Figures need JavaScript; the tables have their numbers.</p></noscript>" if plots else ""
    numbered = list(enumerate(plots, start=first))
    for place, plot in numbered:
        summary = f"<summary>The numbers of Figure {place}</summary>"
        folded = f"<details>{summary}{plot.table}</details>" if plot.table else ""
        html += (
            f'<figure><h3 id="title-{place}">Figure {place}. {plot.title}</h3>'
            f'<div class="plot" id="figure-{place}" role="img" '
            f'aria-labelledby="title-{place}" aria-describedby="meaning-{place}" '
            f'style="min-height:{plot.figure.layout.height}px"></div><p class="note" id="note-{place}" hidden></p>'
            f'<figcaption id="meaning-{place}">{plot.caption}</figcaption>{folded}</figure>'
        )
    named = {escaped_for_plotly(code): escaped_for_plotly(languages.name(code)) for code in codes}
    drawn = {f"figure-{place}": _with_names(json.loads(plot.figure.to_json()), named) for place, plot in numbered}
    notes = {f"figure-{place}": plot.note for place, plot in numbered if plot.note}
    styles = {name: figures.style(dark=dark).to_plotly_json() for name, dark in (("light", False), ("dark", True))}
    names = {escaped_for_plotly(languages.name(code)): seen(code) for code in codes}
    return {"figures": drawn, "styles": styles, "languages": names, "notes": notes}, html


def together(first: dict[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data for the page's script of figures that stand in two sections."""
    return first | {name: first[name] | then[name] for name in ("figures", "notes")}


def _with_names(figure: dict[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Write the names of languages on each axis that has their codes, and return the figure."""
    for letter in "xy":
        for trace in figure["data"]:
            values = trace.get(letter)
            if (
                values
                and all(value in named for value in values if isinstance(value, str))
                and isinstance(values[0], str)
            ):
                axis = f"{letter}axis{trace.get(f'{letter}axis', letter)[1:]}"
                ticks: dict[str, Any] = {"tickmode": "array", "tickvals": list(named), "ticktext": list(named.values())}
                ticks |= {"tickangle": -45} if letter == "x" and len(values) > _UPRIGHT else {}
                figure["layout"].setdefault(axis, {}).update(ticks)
    return figure


def of_study(results: StudyResults) -> list[Plot]:
    """Return the figures of what the study measured; those of stages that were not run are left out."""
    names = {"SOURCE": results.source_language, "PIVOT": results.retrieved_from}
    plots = [*_of_toxicity(results), *_of_retrieval(results), *_of_amplification(results), *_of_neurons(results)]
    for mark, code in names.items():
        plots = [replace(plot, caption=plot.caption.replace(mark, language_name(code))) for plot in plots]
    return plots


def of_methods(results: StudyResults) -> list[Plot]:
    """Return the figure of methods at equal fluency; none where they were not compared."""
    if results.frontier is None:
        return []
    return [Plot(figures.frontier(results.frontier), *_CAPTIONS["methods"], note=_EVERY_PANEL)]


def _of_toxicity(results: StudyResults) -> list[Plot]:
    compared, doses, plots = results.comparison, results.toxic_doses, []
    if compared is not None:
        plots.append(Plot(figures.toxicity(compared), *_CAPTIONS["toxicity"]))
    if doses.doses:
        table = number_tables.of_doses("Toxic prompts, by dose", doses)
        caption = _CAPTIONS["doses"][1] + (_DASHED if doses.control else "") + _BROKEN
        plots.append(Plot(figures.dose_response(doses), _CAPTIONS["doses"][0], caption, table, _AVERAGED))
    if compared is not None:
        on_same_text = bool(compared.activity.changes)
        figure = figures.same_text(compared) if on_same_text else figures.activations(compared)
        plots.append(Plot(figure, *_CAPTIONS["same text" if on_same_text else "own text"]))
    return plots


def _of_retrieval(results: StudyResults) -> list[Plot]:
    plots, pivot = [], results.retrieved_from
    if results.transfer is not None and results.transfer.drop:  # where no language was toxic, nothing can have dropped
        plots.append(Plot(figures.transfer(results.transfer, pivot=pivot), *_CAPTIONS["transfer"], note=_OF_ALL))
    if results.retrieval_by_layer:
        figure = layers_of_retrieval(results.retrieval_by_layer, n_sentences=results.n_parallel, pivot=pivot)
        plots.append(Plot(figure, *_CAPTIONS["layers"]))
    return plots


def _of_amplification(results: StudyResults) -> list[Plot]:
    neutral = results.neutral_doses
    if not neutral.doses:
        return []
    table = number_tables.of_doses("Neutral prompts, by dose", neutral)
    return [Plot(figures.dose_response(neutral), *_CAPTIONS["amplify"], table, _AVERAGED)]


def _of_neurons(results: StudyResults) -> list[Plot]:
    compared, neurons, plots = results.comparison, (results.candidates, results.sources), []
    if any(results.candidates.scores):  # older results keep no cosines
        plots.append(Plot(figures.sources(*neurons), *_CAPTIONS["sources"], number_tables.of_sources(*neurons)))
    plots += _of_attribution(results)
    if compared is not None and compared.neurons:
        table = number_tables.of_neurons(compared, results.languages)
        plots.append(Plot(figures.neuron_activations(compared), *_CAPTIONS["neurons"], table))
    if results.training:
        table = number_tables.of_training(results.training)
        plots.append(Plot(figures.training(results.training), *_CAPTIONS["training"], table))
    if compared is not None and compared.drift:
        table = number_tables.of_drift(compared.drift)
        plots.append(Plot(figures.weight_drift(compared.drift), *_CAPTIONS["drift"], table))
    return plots


def _of_attribution(results: StudyResults) -> list[Plot]:
    """Return what groups carry of tuning's effect, and to which components it is attributed."""
    summary, plots = results.attribution, []
    if results.patched is not None and math.isfinite(patches.change_of(results.patched)):
        plots.append(Plot(figures.patch_effect(results.patched), *_CAPTIONS["acting"]))
    layers = None if summary is None else summary.of_layers()
    if layers is not None and summary is not None and layers.exact:
        table = attribution_tables.by_kind(summary)
        plots.append(Plot(attribution(layers), *_CAPTIONS["attributed"], table, _OF_CHANGE))
        plots.append(Plot(attribution_by_language(layers), *_CAPTIONS["attributed by language"]))
    return plots


_EVERY_PANEL = "It has a panel for every language."

_OF_CHANGE = "The shares are those of all languages."

_DASHED = " The dashed line, random neurons that push as far, then stays flat."
_BROKEN = " Where those two rise, the text breaks or leaves its language, and that is no cure."

_CAPTIONS: Mapping[str, tuple[str, str]] = {
    "toxicity": (
        "Toxicity before and after tuning",
        "Each pair of bars is a language: how toxic the model’s continuations of toxic prompts are, before and after "
        "tuning on SOURCE pairs alone. The thin line is the 95 % interval of the change, set upon the first bar: where "
        "it stays clear of that bar’s top, the fall is more than chance among prompts.",
    ),
    "doses": (
        "Offsetting the sources",
        "A number is added to each source’s activation; further left is a stronger push down. If the sources are the "
        "cause, the solid line falls while perplexity and degenerate text below it stay low.",
    ),
    "same text": (
        "What tuning does to the sources",
        "How far the mean activation of the sources moved, and that of random neurons which were as active before. "
        "Both models read the same text: toxic prompts and what the model before wrote. On their own texts almost any "
        "active neuron seems to fall, because the text is milder. Sources whose points lie below those of the control "
        "fell for a reason of their own.",
    ),
    "own text": (
        "What tuning does to the sources",
        "The mean activation of the sources, each model on its own text. On milder text almost any active neuron seems "
        "to fall, so this shows nothing of the sources.",
    ),
    "transfer": (
        "Retrieval and reach",
        "Each point is a language that was not tuned: how often a sentence’s translation is found as its nearest "
        "neighbour, from PIVOT and to it, against the share of its toxicity that SOURCE tuning took away. The arms of "
        "each cross are the 95 % intervals of both; the dashed line is the least-squares line through all points, and "
        "the band around it the 95 % interval of that line, not of a language. Points along a rising line mean that "
        "the first foretells the second; a wide cloud means that it does not.",
    ),
    "layers": (
        "Where translations meet",
        "How often a sentence’s translation is its nearest neighbour, from PIVOT and to it, in each language and "
        "layer. A layer that is bright in many rows is one where these languages lie together.",
    ),
    "amplify": (
        "Amplifying the sources",
        "The same neurons pushed up after neutral prompts. Toxicity that rises to the right, where the prompt was not "
        "toxic, is the other half of the evidence that they cause it, as long as perplexity and degenerate text below "
        "it stay low: where they shoot up, what is toxic is no longer text.",
    ),
    "sources": (
        "Where the sources sit",
        "Each point is a candidate, one of the neurons whose value vectors point the probe’s way most: its layer, and "
        "how nearly it does. The filled ones are active on toxic SOURCE prompts: the sources. A high cosine alone "
        "makes no neuron a source.",
    ),
    "acting": (
        "Where tuning acts",
        "Tuning changes how likely the toxic text is that the model before wrote. Each bar is the share of that change "
        "which a group carries: the model before runs with the group’s activations taken from the tuned model. The "
        "sources lie near the probe; attribution finds as many neurons on other prompts. Next to both stand random "
        "neurons of the same layers. Groups interact, so their shares do not add up.",
    ),
    "attributed": (
        "To what tuning’s effect is attributed",
        "The share of that change which each kind of component carries, and in which layer. Together the kinds make up "
        "all that tuning changed. Neurons and heads answer to the layers before them too; value vectors, projections "
        "and norms are weights that changed.",
    ),
    "attributed by language": (
        "Where tuning acts, language by language",
        "The same shares in each language, of its own change. Rows that look alike mean that tuning on SOURCE acts in "
        "the same place everywhere.",
    ),
    "neurons": (
        "Each source in each language",
        "The mean activation of every source while the model continues toxic prompts. A column that is coloured in "
        "every row is a neuron that the languages share; the last panel shows which of them tuning on SOURCE changed, "
        "and where.",
    ),
    "methods": (
        "Toxicity against fluency, method by method",
        "Each line is a method that is turned up from left to right: how much perplexity it costs, and how toxic the "
        "text still is. The first panel is the mean over languages. The lowest line at one place on the axis wins "
        "there. Vertical lines are the prices. At a cross the text is less sound than without an edit, and that is no "
        "cure.",
    ),
    "training": (
        "How tuning went",
        "The loss on the pairs that the model learns from, and on pairs that it does not see; where only the first "
        "goes on falling, the model learns its pairs by heart. Below, how far the preferred and the other side moved "
        "from the model before: if both fall, it learnt to avoid more than it learnt to write.",
    ),
    "drift": (
        "How far the weights moved",
        "How nearly each neuron’s key and value vectors point where they pointed before, and how much longer they are; "
        "the bars reach from the least to the greatest in a layer. Toxicity that is gone while hardly a vector moved "
        "is bypassed, not unlearnt (Lee et al. 2024).",
    ),
}
"""The title and the caption of each figure, as HTML in which SOURCE stands for the source language and
PIVOT for the language of retrieval."""
