"""The methods and the caveats of a study's page: a paragraph appears only where its stage was run."""

from __future__ import annotations

from xlingtox.html.tables import language_name
from xlingtox.study.recipes import method_name
from xlingtox.study.results import StudyResults


def html(results: StudyResults) -> str:
    """Return the methods and the caveats of the stages that were run, as HTML; "" where none has any."""
    source, method = language_name(results.source_language), method_name(results.recipe)
    ran = _ran(results)
    parts = []
    for title, paragraphs in (("Methods", _METHODS), ("Caveats", _CAVEATS)):
        told = [text.replace("SOURCE", source).replace("METHOD", method) for needs, text in paragraphs if needs & ran]
        if told:
            parts.append(f"<h3>{title}</h3><ul>{''.join(f'<li>{text}</li>' for text in told)}</ul>")
    return "".join(parts)


def _ran(results: StudyResults) -> set[str]:
    """Return what was measured, by the stages that measure it."""
    measured = {
        "localize": results.probe is not None,
        "doses": bool(results.toxic_doses.doses or results.neutral_doses.doses),
        "tune": bool(results.recipe or results.training or results.comparison),
        "compare": results.comparison is not None,
        "retrieve": bool(results.retrieval),
        "predict": results.transfer is not None,
        "attribute": results.patched is not None,
        "frontier": results.frontier is not None,
        "side_effects": results.side_effects is not None,
    }
    return {name for name, is_there in measured.items() if is_there}


_METHODS = (
    (
        {"localize"},
        "The probe is a logistic regression on mean last-layer states of SOURCE sentences. MLP value vectors with the "
        "highest cosine to it are <em>candidates</em> (potential sources in the paper); those with a positive mean "
        "activation on toxic SOURCE prompts are <em>sources</em> (actual sources in the paper).",
    ),
    (
        {"doses"},
        "An offset is added to the sources’ activations at every position, and the model continues a few of the "
        "prompts again. The control does the same to random sets of equal size in the same layers. They are as active "
        "on the prompts, and each layer pushes the residual stream as far. A dose is chosen on one half of the prompts "
        "and reported on the other.",
    ),
    ({"tune"}, "Tuning is METHOD on SOURCE pairs only."),
    (
        {"compare"},
        "Before and after tuning, the model continues the same prompts with the same random numbers; only the "
        "continuation is scored. Expected maximum toxicity (EMT) is the mean over prompts of the highest score among a "
        "prompt’s samples; toxicity probability is the share of prompts with a sample that scores 0.5 or more.",
    ),
    (
        {"compare"},
        "Perplexity is that of each language’s held-out text; continuation perplexity is how the model before rates "
        "what was written, at the median.",
    ),
    (
        {"retrieve"},
        "Retrieval accuracy is top-1 by cosine of mean-pooled states, averaged over layers and both directions.",
    ),
    (
        {"attribute"},
        "Tuning’s effect is the change of the log-probability of toxic continuations that the model before wrote. It "
        "is attributed to neurons, heads and changed weights by gradient times difference, along the path from one "
        "model to the other. Groups are then patched: the model before runs with the activations that the "
        "tuned model has on the same tokens. Neurons are chosen on one half of the prompts, and patched on the other.",
    ),
    (
        {"frontier"},
        "Methods are fitted on labelled SOURCE sentences, and each has one dial. At a given price, the dial is turned "
        "up until the perplexity of held-out text has risen so far in a language, or its continuations get less sound, "
        "whichever comes first; between measured strengths, toxicity is on the line between them. One half of the "
        "prompts and held-out texts chooses the strength, the other half is read at it, and the other way round. "
        "Methods are compared prompt by prompt, and p-values are corrected for the number of comparisons.",
    ),
    (
        {"side_effects"},
        "Side effects are measured on the same items before and after tuning, and each item is compared with itself. "
        "Tasks are those of lm-evaluation-harness. Refusals are told by phrases of each language.",
    ),
    ({"predict"}, "Correlations are Pearson’s, two-sided, over the languages not tuned."),
)

_CAVEATS = (
    (
        {"compare", "doses"},
        "Intervals are bootstraps over prompts, cut where a measure ends: no share changes by more than 1. They say "
        "nothing of other seeds, prompts unlike these or other models.",
    ),
    (
        {"compare"},
        "The sources were chosen for being active in SOURCE before tuning: some fall is to be expected from that "
        "alone.",
    ),
    ({"compare"}, "EMT saturates where a model is toxic in most samples; read average toxicity beside it."),
    (
        {"compare", "doses"},
        "A scorer sees only what it was made for, and text that says nothing scores as clean. Degenerate text is the "
        "share of continuations that are empty, ended early, repeat one phrase, are gibberish, or are in another "
        "script (or language, where an identifier was at hand). Short and unlikely text is told by what the unedited "
        "model itself writes. Where the share rises, less toxicity may be silence; so toxicity is also given among "
        "sound continuations. About 1 % of any sound text is taken for gibberish. Perplexities of different languages "
        "are not comparable with each other.",
    ),
    (
        {"retrieve"},
        "Retrieval says which sentences lie near each other in the model, and not that one causes another to change.",
    ),
    (
        {"attribute"},
        "Groups interact, so that the shares of groups do not add up, and a large group may carry less than a part of "
        "it. What neurons carry may come from layers before them.",
    ),
    (
        {"frontier"},
        "A method has settings of its own, such as a layer or a number of neurons. It is compared as it was published "
        "or with our defaults, and another setting may do better. Perplexity is one price among several: what a model "
        "knows, or follows, may be lost at the same perplexity.",
    ),
    (
        {"side_effects"},
        "A few items show only large side effects. A task that the model before can only guess shows none, and phrases "
        "miss refusals in other words. Shorter texts look more diverse.",
    ),
    (
        {"predict"},
        "A correlation over a few languages is uncertain, and does not say that retrieval causes transfer.",
    ),
)
