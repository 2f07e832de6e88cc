"""The study's page: one HTML file that holds everything it shows, and loads nothing.

Every text that comes from data or models is escaped. The page's content security policy forbids a browser to fetch
anything, or to run a script other than the page's own two. Toxic words stay masked until a reader asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.html import pages
from xlingtox.html.escaping import escaped
from xlingtox.html.masking import mask
from xlingtox.html.tables import in_language, language_name, number, percent, scrolling
from xlingtox.paper import beside
from xlingtox.study import (
    attribution_findings,
    attribution_tables,
    frontier_tables,
    judge_findings,
    methods,
    number_tables,
    page_figures,
    provenance,
    side_effects_findings,
)
from xlingtox.study.page_parts import menu, section, sentence, verdict_word, warnings
from xlingtox.study.results import Sample, StudyResults
from xlingtox.study.sentences import Finding, without_warnings
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
    drawn, figures = page_figures.html_of(page_figures.of_study(results), results.languages)
    of_methods = page_figures.of_methods(results)
    drawn_methods, fronts = page_figures.html_of(of_methods, results.languages, first=len(drawn["figures"]) + 1)
    name = escaped(provenance.model_name(results))
    body = "\n".join(
        [
            f"<header><h1>{_title(results, name)}</h1></header>\n<main>",
            _provenance(results),
            warnings(results.warnings),
            _findings(results),
            _verdicts(results.verdicts),
            section("Under each judge", judge_findings.section(results)),
            menu(results.languages, has_words=bool(results.samples or results.promoted)),
            section("Figures and numbers", figures + _languages(results)),
            _groups(results),
            _beside(results),
            _acting(results),
            _methods(results, fronts),
            section("What else tuning did", side_effects_findings.section(results)),
            _promoted(results, mask_words),
            _samples(results.samples, mask_words),
            _mixing(results),
            section("Methods and caveats", methods.html(results)),
            "</main>",
        ]
    )
    drawn = page_figures.together(drawn, drawn_methods)
    toxicity = results.probe or results.comparison or results.frontier or results.side_effects
    measured = "toxicity" if toxicity else "translations"
    return pages.document(f"{name}: {measured} across languages", body, "report", drawn, libraries=[get_plotlyjs()])


def _title(results: StudyResults, name: str) -> str:
    """Return the question that the stages of this study answer."""
    source = language_name(results.source_language)
    if results.comparison is not None:
        return f"Where toxicity lives in {name}, and how far {source} tuning reaches"
    if results.probe is not None:
        return f"Where toxicity lives in {name}"
    if results.frontier is not None:
        return f"Which method makes {name} less toxic, at what price?"
    if results.retrieval:
        return f"How near {name} keeps translations from {language_name(results.retrieved_from)}"
    return f"{name}, tuned on {source} pairs" if results.recipe else f"A study of {name}"


def _provenance(results: StudyResults) -> str:
    """Return what the figures are of, and folded below it what is needed to do the study again."""
    listed, further = (_described(told(results)) for told in (provenance.lines, provenance.further_lines))
    folded = f"<details><summary>Settings, versions and the time of each stage</summary>{further}</details>"
    return f'<section class="provenance"><h2>What was studied</h2>{listed}{folded}</section>'


def _described(lines: Sequence[provenance.Line]) -> str:
    """Return a list of terms, in which lines that follow each other under one term share it."""
    html, last = "", ""
    for what, text in lines:
        html += ("" if what == last else f"<dt>{escaped(what)}</dt>") + f"<dd>{escaped(text)}</dd>"
        last = what
    return f"<dl>{html}</dl>"


def _findings(results: StudyResults) -> str:
    items = "".join(map(_finding, without_warnings(results)))
    return section("What was found", f'<ul class="findings">{items}</ul>' if items else "")


def _finding(finding: Finding) -> str:
    """Return a list item: the sentence, below it its numbers, and the rest folded."""
    html = f"<p>{sentence(finding)}</p>"
    numbers = " ".join(f"<span>{escaped(part)}</span>" for part in finding.numbers.split("; ") if part)
    html += f'<p class="numbers">{numbers}</p>' if numbers else ""
    details = "".join(f"<p>{escaped(detail)}</p>" for detail in finding.details)
    return f"<li>{html}{f'<details><summary>Intervals and tests</summary>{details}</details>' if details else ''}</li>"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [[escaped(row.claim), verdict_word(row.verdict), escaped(row.reason)] for row in verdicts]
    note = (
        "<p>A claim is “found” where it stands beside its control. It is “weak” where a part of the evidence is "
        "missing, and “not found” otherwise, which does not show the contrary.</p>"
    )
    table = scrolling("Each claim, the verdict on it, and why", ["Claim", "Verdict", "Reason"], rows)
    return section("Do the claims stand?", note + table) if rows else ""


def _languages(results: StudyResults) -> str:
    table = number_tables.by_language(results)
    return f"<details><summary>The numbers, language by language</summary>{table}</details>" if table else ""


def _groups(results: StudyResults) -> str:
    note = (
        "<p>Some groups of prompts or words stand in the preference pairs, and others do not. If only those fell that "
        "do, tuning taught the model a list and not a manner.</p>"
    )
    table = number_tables.of_groups(results.groups, source_language=results.source_language)
    return section("Met in tuning, or not", note + table) if table else ""


def _beside(results: StudyResults) -> str:
    """Put the study next to the paper, where its model is one of the paper's, or the miniature of the demo."""
    models = number_tables.models_beside(results)
    if not models:
        return ""
    table = number_tables.beside_paper(results)
    if len(models) == 1:
        every = beside(results, models=models)._repr_html_()
        table += f'<details><summary>Every published number</summary><div class="wide">{every}</div></details>'
    return section("Beside the paper", _BESIDE + table)


def _acting(results: StudyResults) -> str:
    """Put where tuning acts beside where toxicity lives: by layer, by group, and folded by language and component."""
    summary, effect = results.attribution, results.patched
    if summary is None or effect is None:
        return ""
    sound = results.patched_sound
    remainder = attribution_findings.completeness(summary.row())
    folded = attribution_tables.by_language(effect, sound) + attribution_tables.of_strongest(summary, results.sources)
    return section(
        "Where tuning acts",
        _ACTING
        + attribution_tables.of_groups(effect, sound)
        + attribution_tables.by_layer(results)
        + f"<p>{escaped(remainder)}</p>"
        + f"<details><summary>Language by language, and the strongest neurons and heads</summary>{folded}</details>",
    )


def _methods(results: StudyResults, fronts: str) -> str:
    """Put methods beside each other where they cost the same fluency; fold other prices, languages, reach and costs."""
    summary = results.frontier
    if summary is None:
        return ""
    main = summary.main_budget
    others = "".join(frontier_tables.at_budget(summary, budget) for budget in summary.budgets if budget != main)
    folded = {
        "Language by language": frontier_tables.by_language(summary, main),
        "At other prices": others,
        "How much of the effect reaches other languages": frontier_tables.transfers(summary, main),
        "What each method takes": frontier_tables.costs(summary),
    }
    return section(
        _PRICE,
        _METHODS
        + fronts
        + frontier_tables.at_budget(summary, main)
        + frontier_tables.wins(summary, main)
        + "".join(
            f"<details><summary>{title}</summary>{tables}</details>" for title, tables in folded.items() if tables
        ),
    )


def _promoted(results: StudyResults, mask_words: Callable[[str], str]) -> str:
    rows = []
    for source in results.promoted:
        tokens = " ".join(_token(token.token, token.languages, mask_words) for token in source.tokens)
        about = f"cosine {number(source.cosine, 2)}<br>activation {number(source.mean_activation)}"
        rows.append([f"{source.layer}.{source.index}<br><small>{about}</small>", tokens])
    columns = ["Neuron", "Tokens, with their languages"]
    html = (
        "<p>The tokens that each source makes likelier when it is active: its value vector, read off the output "
        "embedding. A neuron with insults of several languages is a place that these share. Each is named by layer and "
        "index, with its cosine to the probe and its mean activation on toxic prompts in "
        f"{language_name(results.source_language)}; each token has the languages that it occurs in. "
        "Spaces around a token are not shown; � is part of a character.</p>"
        + scrolling("Promoted tokens of the sources", columns, rows[:_N_UNFOLDED])
    )
    if n_folded := len(rows[_N_UNFOLDED:]):
        table = scrolling("Promoted tokens of the other sources", columns, rows[_N_UNFOLDED:])
        html += f"<details><summary>The other {n_folded} sources</summary>{table}</details>"
    return section("What the sources promote", html) if rows else ""


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
    return section("Sample continuations", html) if samples else ""


def _mixing(results: StudyResults) -> str:
    mixing, is_drawn = results.mixing, results.transfer is not None and bool(results.transfer.drop)
    tuned = language_name(results.source_language)
    behind = " As mixing is graded, it lies behind both axes of the figure of retrieval and reach." if is_drawn else ""
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
        f"of {tuned} tuning came out of training.{behind}</p>"
    )
    table = scrolling("What each language had in training", columns, rows, languages.in_order(mixing))
    return section("What the miniature world was given", note + table) if rows else ""


_ACTING = (
    "<p>The sources are where toxicity can be read off. Is tuning’s effect there too? The effect is how far tuning "
    "moves the log-probability of toxic text that the model before wrote. Attribution says how much each neuron, each "
    "attention head and each changed weight has to do with it. Then groups are tested: the model before runs with "
    "their activations taken from the tuned model. A group that carries all of the effect has a share of "
    "100&nbsp;%.</p>"
)

_PRICE = "Which method, at what price?"

_METHODS = (
    "<p>Any method makes a model less toxic if it may ruin the text. So each is turned up only until it costs the same "
    "fluency: the perplexity of held-out text rises by so much, or the text gets less sound, whichever comes first. "
    "The strength is chosen on one half of the prompts and texts, and toxicity is read on the other half. Controls are "
    "chosen by chance.</p>"
)

_BESIDE = (
    "<p>Li, Yong and Bach (2024) tuned six models on English pairs. Their prompts, judge and perplexity are "
    "others, and their distinct n-grams are divided by the number of unigrams. So compare directions, and the size of "
    "toxicity only roughly.</p>"
)
