"""The study's page: one HTML file that holds everything it shows, and loads nothing.

Every text that comes from data or models is escaped; beyond that, the page's own policy lets a browser run no script
but its own two, and fetch nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from xlingtox import figures, languages
from xlingtox.comparison import Measures
from xlingtox.escaping import escaped
from xlingtox.findings import Study, findings, language_name, measure_name, number, percent


def write(results: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of `results` to `path`."""
    Path(path).write_text(render(results), "utf-8")


def render(results: Mapping[str, Any]) -> str:
    """The page of a study, from the content of its `results.json`; null stands for a number that is not defined.

    Sections whose results are missing (`amplification`, `promoted`, `samples`, `given`) are left out.

    Raises:
        ValueError: a result that every study has is missing.
    """
    study = Study(results)
    drawn, shown = _figures(study)
    scripts = [get_plotlyjs(), _DRAW]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    name = escaped(study.results["model"].get("name", "a language model"))
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests)
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}: toxicity across languages</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<header><h1>Where toxicity lives in {name}, and how far English tuning reaches</h1></header>\n<main>",
            _section("What was found", "<ul>" + "".join(f"<li>{said}</li>" for said in findings(study)) + "</ul>"),
            _section("Figures", shown),
            _promoted(study.results["promoted"]),
            _samples(study.results["samples"]),
            _section("Methods and caveats", _METHODS),
            _given(study.results["given"]),
            f"</main>\n<footer><h2>Provenance</h2>{_provenance(study.results)}</footer>",
            f'<script type="application/json" id="drawn">{_script_json(drawn)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


_CAPTIONS = """Figure 1. Toxicity before and after tuning
Each pair of bars is a language: how toxic the model’s continuations of hostile prompts are, before and after tuning on
English pairs alone. The thin line is the 95 % interval of the change, set upon the first bar: where it stays clear of
that bar’s top, the fall is more than chance among prompts.

Figure 2. Offsetting the sources
A number is added to each source’s activation, with no tuning; further left is a stronger push down. If the sources are
the cause, the solid line falls while perplexity below it stays low, and the dashed line, the same offset on random
neurons, stays flat.

Figure 3. What the sources do
The mean activation of the sources while the model continues hostile prompts. Where the second bar is lower, English
tuning silences the same neurons in that language too.

Figure 4. Retrieval and reach
Each point is a language that was not tuned: how often a sentence’s nearest neighbour in English is its translation,
against the share of its toxicity that English tuning took away. Points along a rising line mean that the first
foretells the second; a wide cloud means that it does not.

Figure 5. Amplifying the sources
The same neurons pushed up after friendly prompts, as in the paper’s Table 4. Toxicity that rises to the right, where
nothing hostile was said, is the other half of the evidence that they cause it."""


def _figures(study: Study) -> tuple[dict[str, Any], str]:
    """The figures as plotly's JSON by the id of their place, and the places with their captions."""
    made = {
        1: figures.toxicity(study.comparison),
        2: figures.dose_response(study.intervention, study.control),
        3: figures.activations(study.comparison),
    }
    if study.transfer.drop:  # where no language was toxic before, nothing can have dropped
        made[4] = figures.transfer(study.transfer)
    if study.amplification:
        made[5] = figures.dose_response(study.amplification)
    drawn, shown = {}, ["<noscript><p>Figures need JavaScript; the table below has their numbers.</p></noscript>"]
    captions = _CAPTIONS.split("\n\n")
    for place, figure in made.items():
        title, _, meaning = captions[place - 1].partition("\n")
        drawn[f"figure-{place}"] = json.loads(figure.to_json())
        shown.append(
            f'<figure><h3 id="title-{place}">{title}</h3><div class="plot" id="figure-{place}" role="img" '
            f'aria-labelledby="title-{place}" aria-describedby="meaning-{place}" '
            f'style="min-height:{figure.layout.height}px"></div>'
            f'<figcaption id="meaning-{place}">{meaning}</figcaption></figure>'
        )
    styles = {name: figures.style(dark).to_plotly_json() for name, dark in (("light", False), ("dark", True))}
    sides = (study.comparison.before, study.comparison.after)
    measures = [field.name for field in dataclasses.fields(Measures)]
    rows = [
        [language_name(code)]
        + ["\u00a0→ ".join(number(getattr(side[code], measure)) for side in sides) for measure in measures]
        + [percent(study.results["retrieval"][code]) if code in study.results["retrieval"] else "–"]
        for code in study.codes
    ]
    columns = ["Language", *(measure_name(measure).capitalize() for measure in measures), "Retrieval accuracy"]
    table = _table("Before → after tuning; retrieval against English is before it", columns, rows)
    shown.append(f"<details><summary>The numbers, language by language</summary>{table}</details>")
    return {"figures": drawn, "styles": styles}, "".join(shown)


def _promoted(neurons: Sequence[Mapping[str, Any]], first: int = 10) -> str:
    def promoted(token: str, codes: Sequence[str]) -> str:
        own = _lang(codes[0]) if len(codes) == 1 else ""
        tags = " ".join(f'<abbr title="{language_name(code)}">{escaped(code)}</abbr>' for code in codes)
        return f'<span class="token"><bdi{own}>{escaped(token.strip()) or "␣"}</bdi> {tags}</span>'

    rows = []
    for each in neurons:
        tokens = " ".join(promoted(token["token"], token["languages"]) for token in each["tokens"])
        name = f"{int(each['layer'])}.{int(each['index'])}"
        rows.append([name, number(each["cosine"], 2), number(each["mean_activation"]), tokens])
    columns = ["Neuron", "Cosine", "Activation", "Tokens, with their languages"]
    shown = (
        "<p>The tokens that each source makes likelier when it is active: its value vector, read off the output "
        "embedding. A neuron with insults of several languages is a place that these share. Each is named by layer and "
        "index, with its cosine to the probe and its mean activation on hostile English prompts; each token has the "
        "languages that it occurs in. Spaces around a token are not shown; � is part of a character.</p>"
        + _table("Promoted tokens of the sources", columns, rows[:first])
    )
    if len(rows) > first:
        more = _table("Promoted tokens of the other sources", columns, rows[first:])
        shown += f"<details><summary>The other {len(rows) - first} sources</summary>{more}</details>"
    return _section("What the sources promote", shown) if rows else ""


def _samples(samples: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    parts = (("Prompt", "prompt"), ("Before tuning", "before"), ("After tuning", "after"))
    shown = (
        "<p>What the model wrote, before and after tuning. <strong>It contains mild insults</strong>, so it stays "
        "closed until you open it.</p>"
    )
    for code in languages.in_order(samples):
        shown += f"<details><summary>{language_name(code)}</summary>"
        for sample in samples[code]:
            told = (f"<dt>{label}</dt><dd{_lang(code)}>{escaped(sample[part].strip())}</dd>" for label, part in parts)
            shown += f"<dl>{''.join(told)}</dl>"
        shown += "</details>"
    return _section("Sample continuations", shown) if samples else ""


def _given(given: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [language_name(code), percent(given[code]["text"] / 100, digits=1)]
        + [percent(given[code][key]) for key in ("switched", "translated", "loans")]
        for code in languages.in_order(given)
    ]
    columns = ["Language", "Share of the text", "Documents with switched words", "With a translation", "Loan words"]
    note = (
        "<p>The miniature learnt from sentences that we composed. This table is all that links its languages: how much "
        "text each had, in how many of its documents single words are another language’s, in how many the first "
        "sentence stands beside its translation, and how often words that may be borrowed, never hostile or toxic "
        "ones, are said in English. No toxic word was shared and no neuron treated apart: shared sources and the reach "
        "of English tuning came out of training. As mixing is graded, it lies behind both axes of Figure 4.</p>"
    )
    table = _table("What each language had in training", columns, rows)
    return _section("What the miniature world was given", note + table) if rows else ""


def _provenance(results: Mapping[str, Any]) -> str:
    model = {"name": "unknown", "fingerprint": "unknown"} | results["model"]
    seconds = (f"{escaped(stage)} {number(value, 1)}" for stage, value in results["seconds"].items())
    rows = [
        ["Model", f"{escaped(model['name'])}, fingerprint <code>{escaped(model['fingerprint'])}</code>"],
        ["Scorer", escaped(results.get("scorer", "unknown"))],
        ["Languages scored", ", ".join(map(language_name, languages.in_order(results["languages"])))],
        ["Seed", escaped(results.get("seed", "unknown"))],
        ["Versions", ", ".join(f"{escaped(name)} {escaped(number)}" for name, number in results["versions"].items())],
        ["Seconds by stage", ", ".join(seconds)],
    ]
    return _table("Where this page comes from", ["What", "Value"], rows)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; where the page is narrow it scrolls by itself, with the keyboard too."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _lang(code: str) -> str:
    return f' lang="{escaped(code)}" dir="{"rtl" if code == "ar" else "ltr"}"'


def _script_json(value: object) -> str:
    """JSON that cannot leave its `<script>`: no `<` stands in it, so neither `</script>` nor `<!--` does."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


_METHODS = """<h3>Methods</h3><ul>
<li>The probe is a logistic regression on mean last-layer states of English sentences. MLP value vectors with the
highest cosine to it are <em>potential</em> sources; those with a positive mean activation on hostile English prompts
are <em>actual</em> sources.</li>
<li>An offset is added to the sources’ activations at every position; text is then written greedily. The control does
the same to random sets of equal size in the same layers.</li>
<li>Tuning is DPO on English pairs only. Before and after it, the model continues the same prompts with the same random
numbers; only the continuation is scored. Expected maximum toxicity (EMT) is the mean over prompts of the highest score
among a prompt’s samples; toxicity probability is the share of prompts with a sample that scores 0.5 or more.</li>
<li>Perplexity is that of each language’s held-out text. Retrieval accuracy is top-1 by cosine of mean-pooled states,
averaged over layers and both directions. Correlations are Pearson’s, two-sided, over the languages not tuned.</li></ul>
<h3>Caveats</h3><ul>
<li>Intervals are bootstraps over prompts. They say nothing of other seeds, other prompts or other models.</li>
<li>The sources were chosen for being active in English before tuning: some fall is to be expected from that alone.</li>
<li>EMT saturates where a model is toxic in most samples; read average toxicity beside it.</li>
<li>A scorer sees only what it was made for, and text that says nothing scores as clean. Degenerate text is the share of
continuations that are empty, repeat one phrase, or are in another script: where it rises, less toxicity may be silence.
Perplexities of different languages are not comparable with each other.</li>
<li>A correlation over a few languages is uncertain, and does not say that retrieval causes transfer.</li></ul>"""

_DRAW = """
const held = JSON.parse(document.getElementById("drawn").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw(style) {
  for (const [id, figure] of Object.entries(held.figures)) {
    const below = figure.layout.title.subtitle ?? {text: ""};
    const layout = {...figure.layout, template: held.styles[style], title: {...below, x: 0, xref: "paper", y: 0.98}};
    layout.margin = {...layout.margin, t: below.text ? 80 : 56};
    layout.dragmode = false;
    Plotly.react(id, figure.data, layout, {responsive: true, displayModeBar: false});
  }
}
const redraw = () => draw(dark.matches ? "dark" : "light");
redraw();
dark.addEventListener("change", redraw);
addEventListener("beforeprint", () => draw("light"));
addEventListener("afterprint", redraw);
"""

_STYLE = f"""
:root {{ color-scheme: light dark; --page: #fff; --text: #222; --soft: #555; --line: #ddd; --tint: #f5f6f7; }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ --page: #15181c; --text: #e6e6e6; --soft: #a9b1ba; --line: #3a4048; --tint: #1e2329; }} }}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 {figures.FONTS}; overflow-wrap: anywhere; }}
h1 {{ font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.25; }}
h2 {{ margin-top: 2.5rem; padding-top: .5rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 0 0 .25rem; }}
ul {{ padding-left: 1.2rem; }} li {{ margin-bottom: .6rem; }}
figure {{ margin: 0 0 2.5rem; }} figcaption {{ margin-top: .6rem; }}
figcaption, caption, dt, abbr {{ color: var(--soft); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding: .4rem 0; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }}
.token {{ display: inline-block; margin: 0 .7rem .2rem 0; }} abbr {{ font-size: .75rem; text-decoration: none; }}
details {{ margin: .4rem 0; padding: .4rem .7rem; background: var(--tint); border-radius: .3rem; }}
summary {{ cursor: pointer; }} dt {{ font-size: .8rem; }} dd {{ margin: 0 0 .4rem; }}
dl {{ margin: .8rem 0; padding-top: .5rem; border-top: 1px solid var(--line); }}
"""
