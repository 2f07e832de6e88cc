"""Compare methods where they cost the same fluency."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, meanings
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.data.translations import Parallel
from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.frontiers import costs
from xlingtox.frontiers.asked import Asked
from xlingtox.frontiers.closer import strengths_between
from xlingtox.frontiers.measuring import Measuring
from xlingtox.frontiers.point import Curve, Point
from xlingtox.frontiers.result import Frontier
from xlingtox.frontiers.strengths import Rise, search, targets
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Method
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import digest
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, ScorerIdentity


@checked
def frontier(
    lm: HookedLM,
    prompts: Prompts,
    *,
    labelled: Labelled | PreferencePairs,
    scorer: Scorer | Mapping[str, Scorer],
    held_out: Dataset,
    methods: Sequence[Method] | None = None,
    tuned: HookedLM | Mapping[str, HookedLM] | None = None,
    budgets: Sequence[float] = (1.05, 1.1, 1.2),
    seed: int = 0,
    n_samples: int = 4,
    max_new_tokens: int = 20,
    parallel: Parallel | None = None,
    identify_language: Identifier | None = None,
    source_language: str = "en",
    progress: bool = True,
) -> Frontier:
    """Compare methods of making a model less toxic, each at the strengths that cost the same fluency.

    Any method makes a model less toxic if it may ruin the text. So each is measured at about six strengths, from where
    it costs nothing to where the perplexity of held-out text has risen by half. Two more lie where text gets less
    sound. `Frontier.at_budget` then says how toxic the model is under each method where perplexity has risen by 10 %,
    in each language.

    The methods are fitted on labelled sentences, as a rule of one language, and measured in all. Strengths are found on
    half of the held-out texts. All edits share batches, as far as that is faster. In a study, each text and each loss
    is kept, so that a call that was interrupted goes on where it was.

    Args:
        prompts: the prompts, two or more in each language. In a table with a column `index`, prompts of the same index
            are translations. Intervals then resample them together.
        labelled: the sentences that the methods are fitted on: columns `text, label` (1 is toxic), or pairs with
            `prompt, chosen, rejected`. They are in the source language.
        scorer: any scorer, or several by name. The first is the one that tables show.
        held_out: columns `language, text`, for perplexity: two or more texts in each language of the prompts.
        methods: values such as `xt.methods.SourcesOffset()` (default: all that need no tuned model, and those of the
            tuned models; a `UserWarning` names those that this model cannot take).
        tuned: a model that was tuned from this one, or several by name. One is called "DPO". They are compared too.
        budgets: how far perplexity may rise, as multiples of that of the unedited model.
        seed: the seed of all fits and samples. All methods draw with the same random numbers.
        n_samples, max_new_tokens: how many continuations of each prompt are sampled, and how long they are.
        parallel: translations, as `xt.evaluation.knowledge_margins` takes them, to ask what the model still knows; None
            to leave that out.
        identify_language: a function that tells the language of continuations, as in `compare`.
        source_language: the language of the labelled sentences.

    Raises:
        ValueError: there are no methods, or two of one name; a budget is not above 1; a language has fewer than two
            prompts or held-out texts, or a scorer does not cover it; there are no prompts in the source language; all
            labels are the same; a tuned model has another shape or vocabulary; or the model is edited already.

    Example:
        >>> frontier = xt.frontier(lm, prompts, labelled=xt.mini.labelled("en", n=200), scorer=xt.mini.scorer(),
        ...     held_out=xt.mini.held_out(n=4, languages=["en", "es"]), methods=[xt.methods.Ablation()],
        ...     n_samples=1, max_new_tokens=4, progress=False)
        >>> frontier.methods, frontier.languages
        (('ablation of sources',), ('en', 'es'))
    """
    asked = Asked.of(
        lm,
        lm.as_prompts(prompts),
        labelled=labelled,
        scorer=scorer,
        held_out=held_out,
        methods=methods,
        tuned=tuned,
        budgets=budgets,
        parallel=parallel,
        source_language=source_language,
        generation={"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed},
    )
    translated = meanings(prompts)
    fitted, fit_seconds = _fitted(lm, asked, labelled, seed=seed, progress=progress)
    measuring = Measuring(
        lm,
        asked.prompts,
        meanings=translated,
        scorers=asked.scorers,
        held_out=asked.held_out,
        parallel=parallel,
        source_language=source_language,
        generation=asked.generation,
        identify_language=identify_language,
        progress=progress,
    )
    rise = Rise(lm, asked.held_out)
    strengths = search(fitted, rise, targets(asked.budgets), progress=progress)
    points = _points(measuring, fitted, strengths, progress=progress)
    # A dial goes back to the last strength at which text is sound, so strengths lie closer where that ends.
    closer = [
        strengths_between(measuring.unedited, of_method, translated) if method.dial == "continuous" else ()
        for method, of_method in zip(fitted, points, strict=True)
    ]
    for of_method, more in zip(points, _points(measuring, fitted, closer, progress=progress), strict=True):
        of_method.extend(more)
        of_method.sort(key=lambda point: point.strength)
    prices = _costs(lm, fitted, strengths, asked.prompts, progress=progress)
    curves = [
        Curve(
            method.name,
            method.citation,
            method.dial,
            tuple(points[i]),
            fit_seconds=fit_seconds[i],
            token_seconds=prices[i][0],
            baked=prices[i][1],
            control=method.control,
        )
        for i, method in enumerate(fitted)
    ]
    return Frontier(
        measuring.unedited,
        tuple(curves),
        judges=tuple(asked.scorers),
        scorers={name: ScorerIdentity.of(one) for name, one in asked.scorers.items()},
        budgets=asked.budgets,
        source_language=source_language,
        meanings=translated,
        halves=measuring.halves,
        n_samples=n_samples,
        model=lm.identity(),
    )


def _fitted(
    lm: HookedLM, asked: Asked, labelled: Labelled | PreferencePairs, *, seed: int, progress: bool
) -> tuple[list[Method], list[float]]:
    """Fit each method, and return the fitted ones with the seconds that each fit took.

    Where all methods are compared because none was named, those that the model cannot take are left out with a warning.
    """
    fitted, seconds = [], []
    examples = Examples.of(labelled)
    texts = digest({"toxic": examples.toxic, "clean": examples.clean})
    with bar("fitting methods", total=len(asked.methods), unit="method", progress=progress) as shown:
        for method in asked.methods:
            shown.note(method.name)
            began = time.perf_counter()
            try:
                one = method.fit(lm, labelled, seed=seed, progress=progress)
                asked.check_room(lm, one)
            except ValueError as error:
                if not asked.are_all:
                    raise
                warnings.warn(f"{method.name} is left out: {error}", stacklevel=4)
                continue
            taken = time.perf_counter() - began
            about = {"task": "fit seconds", "model": lm.fingerprint(), "method": method.name}
            seconds.append(costs.kept(about | {"seed": seed, "examples": texts}, partial(float, taken)))
            fitted.append(one)
            shown.update()
    return fitted, seconds


def _points(
    measuring: Measuring, fitted: Sequence[Method], strengths: Sequence[Sequence[float]], *, progress: bool
) -> list[list[Point]]:
    """Return the points of each method at its strengths. Edits run together, other models one after the other."""
    points: list[list[Point]] = [[] for _ in fitted]
    edits: list[tuple[int, float, Intervention]] = []
    with bar("measuring", total=sum(map(len, strengths)), unit="edit", progress=progress) as shown:
        for i, method in enumerate(fitted):
            for strength in strengths[i]:
                edited = method.at(strength)
                if isinstance(edited, Intervention):
                    edits.append((i, strength, edited))
                else:
                    points[i].append(measuring.of(strength, edited))
                    shown.update()
        measured = measuring.under([strength for _, strength, _ in edits], [edit for *_, edit in edits])
        for (i, *_), point in zip(edits, measured, strict=True):
            points[i].append(point)
            shown.update()
    return points


def _costs(
    lm: HookedLM,
    fitted: Sequence[Method],
    strengths: Sequence[Sequence[float]],
    prompts: Sequence[Prompt],
    *,
    progress: bool,
) -> list[tuple[float, str]]:
    """Return for each method the seconds of a token, and why it cannot be baked, at the middle of its strengths."""
    prices = []
    with bar("timing methods", total=len(fitted), unit="method", progress=progress) as shown:
        for method, dial in zip(fitted, strengths, strict=True):
            prices.append(costs.price(lm, method.at(dial[len(dial) // 2]), prompts))
            shown.update()
    return prices
