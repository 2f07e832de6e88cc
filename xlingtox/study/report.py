"""The study's page: one HTML file that holds everything it shows, and loads nothing.

Every text that comes from data or models is escaped. The page's content security policy forbids a browser to fetch
anything, or to run a script other than the page's own two. Toxic words stay masked until a reader asks for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from xlingtox import figures, files, languages
from xlingtox.checking import checked
from xlingtox.html import pages
from xlingtox.html.escaping import escaped, escaped_for_plotly
from xlingtox.html.masking import mask
from xlingtox.html.tables import in_language, language_name, number, percent, scrolling
from xlingtox.study import number_tables
from xlingtox.study.findings import Finding, without_warnings
from xlingtox.study.results import PromotedTokens, Sample, StudyResults
from xlingtox.text import seen
from xlingtox.verdicts import Verdict

ToxicWords = Mapping[str, Sequence[str]]
"""The words to mask, by language."""

_N_UNFOLDED = 10
"""The number of sources whose promoted tokens are shown at once; those of the others are folded."""


@checked
def write(results: StudyResults, path: str | Path, *, toxic_words: ToxicWords | None = None) -> None:
    """Write the page of a study to `path`: one HTML file, which needs no network. See `render`.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> xt.study.report.write(results, "report.html", toxic_words=xt.mini.toxic_words())  # doctest: +SKIP
    """
    files.write_text(path, render(results, toxic_words=toxic_words))


@checked
def render(results: StudyResults, *, toxic_words: ToxicWords | None = None) -> str:
    """Return the page of a study as HTML: its findings, figures, tables, samples, methods and provenance.

    Sections are left out where the study did not measure what they show.

    Args:
        toxic_words: for each language, the words that are masked until the reader asks for them (default: all text that
            the model wrote is masked).

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> page = xt.study.report.render(results)  # doctest: +SKIP
    """
    mask_words = mask(toxic_words)
    drawn, places = _figures(results)
    name = "a language model" if results.model is None else escaped(results.model.name)
    body = "\n".join(
        [
            f"<header><h1>Where toxicity lives in {name}, and how far English tuning reaches</h1></header>\n<main>",
            _warnings(results.warnings),
            _section("What was found", f"<ul>{''.join(map(_finding, without_warnings(results)))}</ul>"),
            _verdicts(results.verdicts),
            _menu(results.languages),
            _section("Figures", places),
            _groups(results),
            _section("Beside the paper", _BESIDE + number_tables.beside_paper(results)),
            _promoted(results.promoted, mask_words),
            _samples(results.samples, mask_words),
            _mixing(results.mixing),
            _section("Methods and caveats", _METHODS),
            f"</main>\n<footer><h2>Provenance</h2>{_provenance(results)}</footer>",
        ]
    )
    return pages.document(f"{name}: toxicity across languages", body, "report", drawn, libraries=[get_plotlyjs()])


def _finding(finding: Finding) -> str:
    """Return a list item in which the stressed parts of the finding are bold."""
    html, end = "", 0
    for begin, next_end in finding.stressed:
        html += f"{escaped(finding[end:begin])}<b>{escaped(finding[begin:next_end])}</b>"
        end = next_end
    return f"<li>{html}{escaped(finding[end:])}</li>"


def _warnings(sentences: Sequence[str]) -> str:
    """Return the warnings about figures that cannot carry a finding, before anything else; "" where there are none."""
    items = "".join(f"<li>{escaped(sentence)}</li>" for sentence in sentences)
    return f'<section class="warnings" role="note"><h2>Read this first</h2><ul>{items}</ul></section>' if items else ""


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [[escaped(row.claim), f"<strong>{row.verdict}</strong>", escaped(row.reason)] for row in verdicts]
    note = (
        "<p>A claim is “found” where it stands beside its control. It is “weak” where a part of the evidence is "
        "missing, and “not found” otherwise, which does not show the contrary.</p>"
    )
    table = scrolling("Each claim, the verdict on it, and why", ["Claim", "Verdict", "Reason"], rows)
    return _section("Do the claims stand?", note + table) if rows else ""


def _menu(codes: Sequence[str]) -> str:
    """Return the controls with which a reader chooses languages and shows toxic words."""
    boxes = "".join(
        f'<label><input type="checkbox" name="language" value="{escaped(code)}" checked> {language_name(code)}</label>'
        for code in codes
    )
    return (
        '<section class="menu" aria-label="What is shown"><details><summary>Languages: <span id="shown" role="status">'
        f"all {len(codes)}</span></summary><fieldset><legend>Languages in figures, tables and samples</legend>"
        '<p><button type="button" id="all">All</button> <button type="button" id="none">None</button></p>'
        f'<div class="boxes">{boxes}</div></fieldset></details>'
        '<button type="button" id="unmask" data-shown="false">Show toxic words</button></section>'
    )


_CAPTIONS = """Figure 1. Toxicity before and after tuning
Each pair of bars is a language: how toxic the model’s continuations of toxic prompts are, before and after tuning on
English pairs alone. The thin line is the 95 % interval of the change, set upon the first bar: where it stays clear of
that bar’s top, the fall is more than chance among prompts.

Figure 2. Offsetting the sources
A number is added to each source’s activation, with no tuning; further left is a stronger push down. If the sources are
the cause, the solid line falls while perplexity and degenerate text below it stay low. The dashed line, random neurons
that push as far, then stays flat. Where those two rise, the text breaks or leaves its language, and that is no cure.

Figure 3. What tuning does to the sources
How far the mean activation of the sources moved, and that of random neurons which were as active before. Both models
read the same text: toxic prompts and what the model before wrote. On their own texts almost any active neuron seems to
fall, because the text is milder. Sources whose points lie below those of the control fell for a reason of their own.

Figure 4. Retrieval and reach
Each point is a language that was not tuned: how often a sentence’s translation is found as its nearest neighbour, from
English and to it, against the share of its toxicity that English tuning took away. The arms of each cross are the 95 %
intervals of both; the dashed line is the least-squares line through all points, and the band around it the 95 %
interval of that line, not of a language. Points along a rising line mean that the first foretells the second; a wide
cloud means that it does not.

Figure 5. Amplifying the sources
The same neurons pushed up after neutral prompts, as in the paper’s Table 5. Toxicity that rises to the right, where
the prompt was not toxic, is the other half of the evidence that they cause it, as long as perplexity and degenerate
text below it stay low: where they shoot up, what is toxic is no longer text.

Figure 6. Where the sources sit
Each point is a candidate, one of the neurons whose value vectors point the probe’s way most: its layer, and how nearly
it does. The filled ones are active on toxic English prompts: the sources. A high cosine alone makes no neuron a source.

Figure 7. Each source in each language
The mean activation of every source while the model continues toxic prompts. A column that is coloured in every row
is a neuron that the languages share; the last panel shows which of them tuning on English changed, and where.

Figure 8. How tuning went
The loss on the pairs that the model learns from, and on pairs that it does not see; where only the first goes on
falling, the model learns its pairs by heart. Below, how far the preferred and the toxic side moved from the model
before: if both fall, it learnt to avoid more than it learnt to write.

Figure 9. How far the weights moved
How nearly each neuron’s key and value vectors point where they pointed before, and how much longer they are; the bars
reach from the least to the greatest in a layer. Toxicity that is gone while hardly a vector moved is bypassed, not
unlearnt (Lee et al. 2024)."""


_AVERAGED = "Toxicity is the mean of the chosen languages; perplexity and degenerate text are those of all."
_NOTES = {
    "figure-2": _AVERAGED,
    "figure-4": "The line and its band are those of all languages.",
    "figure-5": _AVERAGED,
}
"""The note below a figure while only some languages are chosen."""


def _figures(results: StudyResults) -> tuple[dict[str, Any], str]:
    """Return the data for the page's script, and the HTML of the figures with their captions and their numbers."""
    drawn: dict[str, Any] = {}
    html = "<noscript><p>Figures need JavaScript; the tables below them have their numbers.</p></noscript>"
    captions = _CAPTIONS.split("\n\n")
    for place, (figure, table) in _drawn(results).items():
        title, _, meaning = captions[place - 1].partition("\n")
        drawn[f"figure-{place}"] = json.loads(figure.to_json())
        folded = f"<details><summary>The numbers of Figure {place}</summary>{table}</details>" if table else ""
        html += (
            f'<figure><h3 id="title-{place}">{title}</h3><div class="plot" id="figure-{place}" role="img" '
            f'aria-labelledby="title-{place}" aria-describedby="meaning-{place}" '
            f'style="min-height:{figure.layout.height}px"></div><p class="note" id="note-{place}" hidden></p>'
            f'<figcaption id="meaning-{place}">{meaning}</figcaption>{folded}</figure>'
        )
    table = number_tables.by_language(results)
    html += f"<details><summary>The numbers, language by language</summary>{table}</details>"
    styles = {name: figures.style(dark=dark).to_plotly_json() for name, dark in (("light", False), ("dark", True))}
    names = {escaped_for_plotly(languages.name(code)): seen(code) for code in results.languages}
    return {"figures": drawn, "styles": styles, "languages": names, "notes": _NOTES}, html


def _drawn(results: StudyResults) -> dict[int, tuple[go.Figure, str]]:
    """Return each figure with its numbers as a table; those of figures 1, 3 and 4 are in the table of languages."""
    compared, neurons = results.comparison, (results.candidates, results.sources)
    toxic, neutral = results.toxic_doses, results.neutral_doses
    drawn = {
        1: (figures.toxicity(compared), ""),
        2: (figures.dose_response(toxic), number_tables.of_doses("Toxic prompts, by dose", toxic)),
        3: (figures.same_text(compared) if compared.activity.changes else figures.activations(compared), ""),
    }
    if results.transfer.drop:  # where no language was toxic before, nothing can have dropped
        drawn[4] = (figures.transfer(results.transfer), "")
    if neutral.doses:
        drawn[5] = (figures.dose_response(neutral), number_tables.of_doses("Neutral prompts, by dose", neutral))
    if any(results.candidates.scores):  # older results keep no cosines
        drawn[6] = (figures.sources(*neurons), number_tables.of_sources(*neurons))
    if compared.neurons:
        drawn[7] = (figures.neuron_activations(compared), number_tables.of_neurons(compared, results.languages))
    if results.training:
        drawn[8] = (figures.training(results.training), number_tables.of_training(results.training))
    if compared.drift:
        drawn[9] = (figures.weight_drift(compared.drift), number_tables.of_drift(compared.drift))
    return drawn


def _groups(results: StudyResults) -> str:
    note = (
        "<p>Some groups of prompts or words stand in the preference pairs, and others do not. If only those fell that "
        "do, tuning taught the model a list and not a manner.</p>"
    )
    table = number_tables.of_groups(results.groups)
    return _section("Met in tuning, or not", note + table) if table else ""


def _promoted(promoted: Sequence[PromotedTokens], mask_words: Callable[[str], str]) -> str:
    rows = []
    for source in promoted:
        tokens = " ".join(_token(token.token, token.languages, mask_words) for token in source.tokens)
        about = f"cosine {number(source.cosine, 2)}<br>activation {number(source.mean_activation)}"
        rows.append([f"{source.layer}.{source.index}<br><small>{about}</small>", tokens])
    columns = ["Neuron", "Tokens, with their languages"]
    html = (
        "<p>The tokens that each source makes likelier when it is active: its value vector, read off the output "
        "embedding. A neuron with insults of several languages is a place that these share. Each is named by layer and "
        "index, with its cosine to the probe and its mean activation on toxic English prompts; each token has the "
        "languages that it occurs in. Spaces around a token are not shown; � is part of a character.</p>"
        + scrolling("Promoted tokens of the sources", columns, rows[:_N_UNFOLDED])
    )
    if n_folded := len(rows[_N_UNFOLDED:]):
        table = scrolling("Promoted tokens of the other sources", columns, rows[_N_UNFOLDED:])
        html += f"<details><summary>The other {n_folded} sources</summary>{table}</details>"
    return _section("What the sources promote", html) if rows else ""


def _token(token: str, codes: Sequence[str], mask_words: Callable[[str], str]) -> str:
    attributes = in_language(codes[0]) if len(codes) == 1 else ""
    tags = " ".join(f'<abbr title="{language_name(code)}">{escaped(code)}</abbr>' for code in languages.in_order(codes))
    return f'<span class="token"><bdi{attributes}>{mask_words(token) or "␣"}</bdi> {tags}</span>'


def _samples(samples: Mapping[str, Sequence[Sample]], mask_words: Callable[[str], str]) -> str:
    parts = (("Prompt", "prompt"), ("Before tuning", "before"), ("After tuning", "after"))
    html = "<p>What the model wrote, greedily, before and after tuning. Toxic words are masked until you ask.</p>"
    for code in languages.in_order(samples):
        html += f'<details data-language="{escaped(code)}"><summary>{language_name(code)}</summary>'
        for sample in samples[code]:
            texts = ((label, mask_words(getattr(sample, part))) for label, part in parts)
            html += (
                f"<dl>{''.join(f'<dt>{label}</dt><dd{in_language(code)}>{text}</dd>' for label, text in texts)}</dl>"
            )
        html += "</details>"
    return _section("Sample continuations", html) if samples else ""


def _mixing(mixing: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [language_name(code), percent(mixing[code]["text"] / 100, digits=1)]
        + [percent(mixing[code][key]) for key in ("switched", "translated", "loans")]
        for code in languages.in_order(mixing)
    ]
    columns = ["Language", "Share of the text", "Documents with switched words", "With a translation", "Loan words"]
    note = (
        "<p>The miniature learnt from sentences that we composed. This table is all that links its languages: how much "
        "text each had, in how many of its documents single words are another language’s, in how many the first "
        "sentence stands beside its translation, and how often words that may be borrowed, never hostile or toxic "
        "ones, are said in English. No toxic word was shared and no neuron treated apart: shared sources and the reach "
        "of English tuning came out of training. As mixing is graded, it lies behind both axes of Figure 4.</p>"
    )
    table = scrolling("What each language had in training", columns, rows, languages.in_order(mixing))
    return _section("What the miniature world was given", note + table) if rows else ""


def _provenance(results: StudyResults) -> str:
    scorer = results.comparison.scorer
    name, fingerprint = ("unknown",) * 2 if results.model is None else (results.model.name, results.model.fingerprint)
    seconds = (f"{escaped(stage)} {number(value, 1)}" for stage, value in results.seconds.items())
    versions = (f"{escaped(package)} {escaped(release)}" for package, release in results.versions.items())
    rows = [
        ["Model", f"{escaped(name)}, fingerprint <code>{escaped(fingerprint)}</code>"],
        ["Scorer", f"{escaped(scorer.name)}, revision <code>{escaped(scorer.revision)}</code>"],
        ["Languages that it covers", ", ".join(map(language_name, scorer.languages))],
        ["Seed", "unknown" if results.seed is None else str(results.seed)],
        ["Versions", ", ".join(versions)],
        ["Seconds by stage", ", ".join(seconds)],
    ]
    return scrolling("Where this page comes from", ["What", "Value"], rows)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


_BESIDE = (
    "<p>Li, Yong and Bach (2024) tuned six models on English pairs. Their prompts, judge and perplexity are "
    "others, and their distinct n-grams are divided by the number of unigrams. So compare directions, and the size of "
    "toxicity only roughly.</p>"
)

_METHODS = """<h3>Methods</h3><ul>
<li>The probe is a logistic regression on mean last-layer states of English sentences. MLP value vectors with the
highest cosine to it are <em>candidates</em> (potential sources in the paper); those with a positive mean activation on
toxic English prompts are <em>sources</em> (actual sources in the paper).</li>
<li>An offset is added to the sources’ activations at every position, and the model continues a few of the prompts
again. The control does the same to random sets of equal size in the same layers. They are as active on the prompts, and
each layer pushes the residual stream as far. A dose is chosen on one half of the prompts and reported on the
other.</li>
<li>Tuning is DPO on English pairs only. Before and after it, the model continues the same prompts with the same random
numbers; only the continuation is scored. Expected maximum toxicity (EMT) is the mean over prompts of the highest score
among a prompt’s samples; toxicity probability is the share of prompts with a sample that scores 0.5 or more.</li>
<li>Perplexity is that of each language’s held-out text; continuation perplexity is how the model before rates what was
written, at the median. Retrieval accuracy is top-1 by cosine of mean-pooled states,
averaged over layers and both directions. Correlations are Pearson’s, two-sided, over the languages not tuned.</li></ul>
<h3>Caveats</h3><ul>
<li>Intervals are bootstraps over prompts, cut where a measure ends: no share changes by more than 1. They say nothing
of other seeds, prompts unlike these or other models.</li>
<li>The sources were chosen for being active in English before tuning: some fall is to be expected from that alone.</li>
<li>EMT saturates where a model is toxic in most samples; read average toxicity beside it.</li>
<li>A scorer sees only what it was made for, and text that says nothing scores as clean. Degenerate text is the share of
continuations that are empty, ended early, repeat one phrase, are gibberish, or are in another script (or language,
where an identifier was at hand). Short and unlikely text is told by what the model before itself writes. Where the
share rises, less toxicity may be silence; so toxicity is also given among sound continuations. About 1 % of any sound
text is taken for gibberish.
Perplexities of different languages are not comparable with each other.</li>
<li>A correlation over a few languages is uncertain, and does not say that retrieval causes transfer.</li></ul>"""
