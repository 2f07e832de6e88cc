"""Findings about neurons: where toxicity lives, whether editing them changes it, and what tuning does to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xlingtox import languages
from xlingtox.evaluation.cautions import COLLAPSED
from xlingtox.evaluation.chosen_dose import Chosen
from xlingtox.evaluation.dose import Dose
from xlingtox.evaluation.dose_response import CONTROLS, DoseResponse
from xlingtox.evaluation.dosing import UNITS
from xlingtox.evaluation.multiplicity import by_chance
from xlingtox.evaluation.named_sets import ALL, CONTROL
from xlingtox.evaluation.same_text import ActivationChange, SetActivity
from xlingtox.html.tables import number, percent
from xlingtox.study import claims
from xlingtox.study.finding import Finding, arrow, rise, shares, span, stress
from xlingtox.study.results import StudyResults
from xlingtox.text import seen


def place(results: StudyResults) -> list[Finding]:
    """Say how many neurons may carry toxicity, and whether they stand out from chance."""
    probe = results.probe
    if probe is None:
        return []
    source = seen(languages.name(results.source_language))
    verdict = claims.verdict_on(results.verdicts, claims.LOCALISED)
    n_sources, n_neurons = str(len(results.sources)), f"{results.n_neurons:,}"
    counted = stress(f"{n_sources} of the model’s {n_neurons}")
    words = {
        "found": f"{counted} neurons carry it: the sources.",
        "weak": f"{counted} neurons may carry it: the sources.",
        "not found": f"{counted} neurons are called sources, but do not stand out from chance.",
    }
    neutral = f"{counted} neurons lie near the probe and are active on toxic prompts: the sources."
    chosen = words.get(verdict.verdict, neutral) if verdict else neutral
    right = f"probe right in {percent(probe.accuracy)} of held-out sentences (guessing: {percent(probe.baseline)})"
    details = [
        f"A probe on {source} sentences tells toxic from other text. Of the {len(results.candidates)} neurons whose "
        f"value vectors point its way most, {n_sources} are active on toxic {source} prompts.",
        seen(verdict.reason) if verdict else "",
    ]
    return [
        Finding.of(
            "Where does it live?",
            chosen,
            verdict=verdict,
            numbers=[right, f"AUC {number(probe.auc)}", f"{len(results.candidates)} candidates"],
            details=details,
        )
    ]


def cause(response: DoseResponse) -> list[Finding]:
    """Say whether editing the sources lowers toxicity more than editing random neurons does."""
    if not response.doses:
        return []
    verdict, chosen, base = response.verdict(), response.chosen(), _at(response.doses, 0)
    if base is None or not base.average_toxicity > 0:
        words, numbers = "The unedited model writes nothing toxic after these prompts.", list[str]()
    elif chosen is not None and chosen.before > 0:
        words, numbers = _of_chosen(response, chosen)
    elif chosen is not None:
        words, numbers = "After the prompts that judge the chosen dose, the unedited model writes nothing toxic.", []
    else:
        lowest = min(response.doses, key=lambda dose: dose.average_toxicity)
        taken = stress(_taken(base, lowest))
        words = f"No dose takes two thirds of the toxicity away; at best {taken} goes."
        if 3 * lowest.average_toxicity <= base.average_toxicity:
            at = _dosed(lowest.offset, response)
            words = f"At {at}, {taken} of the toxicity goes, but not on both halves of the prompts."
        numbers = [
            f"at {_dosed(lowest.offset, response)} toxicity {arrow(base.average_toxicity, lowest.average_toxicity)}",
            _on_control(response, lowest.offset),
            f"perplexity {rise(base.perplexity, lowest.perplexity)}",
            f"not sound {shares(base.degenerate, lowest.degenerate, 1)}",
        ]
    reason = [seen(verdict.reason)]
    return [Finding.of("Are they the cause?", words, verdict=verdict, numbers=numbers, details=reason)]


def _of_chosen(response: DoseResponse, chosen: Chosen) -> tuple[str, list[str]]:
    taken = stress(percent(-chosen.change.mean / chosen.before))
    words = f"At {_dosed(chosen.offset, response)}, {taken} of the toxicity goes"
    numbers = [f"toxicity {arrow(chosen.before, chosen.after)}"]
    if chosen.control_change is not None:
        words += f"; with random neurons, {stress(percent(-chosen.control_change.mean / chosen.before))}"
        numbers.append(f"{_control_name(response)} {number(chosen.before + chosen.control_change.mean)}")
    else:
        words += "; random neurons were not tried"
    numbers += [
        f"perplexity {rise(chosen.perplexity_before, chosen.perplexity_after)}",
        f"not sound {shares(chosen.degenerate_before, chosen.degenerate_after, 1)}",
    ]
    return f"{words}.", numbers


def amplified(response: DoseResponse) -> list[Finding]:
    """Describe the largest dose that does not break the text, next to random neurons, and then the larger ones."""
    base = _at(response.doses, 0)
    if base is None:
        return []
    rising = sorted(response.doses, key=lambda dose: dose.offset)
    top = [dose for dose in rising if dose.perplexity <= COLLAPSED * base.perplexity or dose is base][-1]
    title, details = "And the other way?", []
    if rising[-1] is not top:
        details.append(
            f"Further doses are left aside: there the text breaks, as {number(rising[-1].offset, 2)} has "
            f"{rise(base.perplexity, rising[-1].perplexity)} perplexity and {percent(rising[-1].degenerate)} "
            "of the continuations are not sound."
        )
    if top is base:
        return [Finding.of(title, "No dose upwards leaves the text whole.", details=details)]
    sides = f"{stress(number(base.average_toxicity))} to {stress(number(top.average_toxicity))}"
    control = _at(response.control, top.offset)
    intervals = f"95 % interval of the toxicity at this dose: {span(top.low, top.high)}"
    if control:
        intervals += f"; on {_control_name(response)} {span(control.low, control.high)}"
    return [
        Finding.of(
            title,
            f"At {_dosed(top.offset, response)}, average toxicity after neutral prompts goes from {sides}.",
            numbers=[
                _on_control(response, top.offset) or "no control of random neurons",
                f"perplexity {rise(base.perplexity, top.perplexity)}",
                f"not sound {shares(base.degenerate, top.degenerate, 1)}",
            ],
            details=[f"{intervals}.", *details],
        )
    ]


def activity(results: StudyResults) -> list[Finding]:
    """Compare the sources with their control on the same text; where that was not read, say what is missing."""
    if results.comparison is None:
        return []
    perplexity = f"perplexity of held-out text {rise(*results.means('perplexity', results.languages))}"
    measured, title = results.comparison.activity, "Does tuning turn the sources down?"
    if ALL not in measured.changes:
        sides = arrow(*results.means("mean_activation", results.languages))
        words = "Each model was read on its own text, which cannot show it."
        detail = "On milder text, other active neurons fall too. So these numbers show nothing of the sources."
        return [Finding.of(title, words, numbers=[f"mean activation {sides}", perplexity], details=[detail])]
    main, changes = next(iter(measured.changes[ALL])), measured.changes[ALL]
    codes = [code for code in measured.changes if code != ALL]
    verdict = claims.verdict_on(results.verdicts, claims.SPECIFIC.format(main))
    words = f"On the same text they move by {stress(_move(changes[main]))}"
    n_silent = sum(main in measured.silent.get(code, ()) for code in codes)
    silent = f"silent afterwards in {n_silent} of {len(codes)} languages"
    if ALL not in measured.specific:
        detail = f"Their mean activation goes from {_sides(changes[main])}. There is no control of random neurons."
        return [Finding.of(title, f"{words}, beside no control.", numbers=[silent, perplexity], details=[detail])]
    specific = measured.specific[ALL]
    n_fell = sum(measured.specific[code].high < 0 for code in codes)
    return [
        Finding.of(
            title,
            f"{words}, random neurons by {_move(changes[CONTROL])}.",
            verdict=verdict,
            numbers=[f"{number(specific.change, 4, signed=True)} of their own", silent, perplexity],
            details=[
                f"Mean activation of the sources: {_sides(changes[main])}; of equally active random neurons: "
                f"{_sides(changes[CONTROL])}{_sets(measured)}. What is their own has the 95 % interval "
                f"{span(specific.low, specific.high, 4)}. The interval of a language lies below zero in {n_fell} of "
                f"{len(codes)} (by chance alone: {number(by_chance(len(codes)), 1)}).",
            ],
        )
    ]


def _move(change: ActivationChange) -> str:
    return number(change.after - change.before, 4, signed=True)


def _sides(change: ActivationChange) -> str:
    return span(change.before, change.after, 4)


def _sets(measured: SetActivity) -> str:
    """Say how far the random sets differ, where that is known: an interval over prompts does not."""
    return f", single sets by {span(*measured.random[ALL], 4)}" if ALL in measured.random else ""


def _at(doses: Sequence[Dose], offset: float) -> Dose | None:
    return next((dose for dose in doses if math.isclose(dose.offset, offset, abs_tol=1e-9)), None)


def _dosed(offset: float, response: DoseResponse) -> str:
    return f"{offset:+g} {UNITS[response.unit]}".replace("-", "−")


def _taken(base: Dose, dose: Dose) -> str:
    return percent(1 - dose.average_toxicity / base.average_toxicity)


def _control_name(response: DoseResponse) -> str:
    return CONTROLS[response.match] if response.match else "the control"


def _on_control(response: DoseResponse, offset: float) -> str:
    control = _at(response.control, offset)
    return f"{_control_name(response)} {number(control.average_toxicity)}" if control else ""
