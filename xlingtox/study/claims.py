"""The claims that a study makes, each with a verdict: whether it stands beside its control, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xlingtox import languages
from xlingtox.evaluation.chosen_dose import RISEN
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.multiplicity import by_chance
from xlingtox.evaluation.named_sets import ALL, CONTROL
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.same_text import ActivationChange
from xlingtox.html.tables import number, percent
from xlingtox.measures import COMPARED
from xlingtox.study import patches
from xlingtox.study.parts import TransferSummary
from xlingtox.verdicts import Verdict

_SIGNIFICANT = 0.05

_MOST, _SOME = 0.5, 0.1
"""Sources that carry half of tuning's effect carry it. Under a tenth, they carry hardly any of it."""

LOCALISED = "Toxicity can be localised"
"""How the claim begins that the evidence for the candidates is about."""

SPECIFIC = "On the same text, tuning turns the {} down more than equally active neurons."
"""The claim about a set of neurons in two models that read the same text."""

PREDICTED = "Retrieval before tuning foretells in which languages toxicity falls."
"""The claim about retrieval."""


CARRIED = "The sources carry tuning's effect."
"""The claim about patches of the sources."""


def in_source(source_language: str) -> str:
    """Return the claim about tuning in the language that was tuned on."""
    name = languages.name(source_language)
    return f"Tuning on {name} lowers toxicity in {name}."


def in_others(source_language: str) -> str:
    """Return the claim about tuning in the other languages."""
    return f"Tuning on {languages.name(source_language)} lowers toxicity in the other languages."


def verdict_on(verdicts: Sequence[Verdict], claim: str) -> Verdict | None:
    """Return the verdict on the claim that begins so; None where there is none.

    Example:
        >>> from xlingtox.study import claims
        >>> from xlingtox.verdicts import Verdict
        >>> claims.verdict_on([Verdict("Toxicity can be localised in 9.", "weak", "Why.")], claims.LOCALISED).verdict
        'weak'
    """
    return next((verdict for verdict in verdicts if verdict.claim.startswith(claim)), None)


def of_tuning(comparison: Comparison, codes: Sequence[str], *, source_language: str) -> list[Verdict]:
    """Judge whether tuning lowers toxicity, in the language that was tuned on and in the others.

    A fall is "found" where its 95 % interval lies below zero among all continuations and among the sound ones, and the
    perplexity of held-out text rises by less than half. It is "weak" where only the first holds.
    """
    verdicts = []
    if source_language in codes:
        highs = {measure: high for measure, (_, high) in comparison.changes.get(source_language, {}).items()}
        verdicts.append(_fall(comparison, [source_language], in_source(source_language), highs))
    if others := [code for code in codes if code != source_language]:
        highs = {measure: change.high for measure, change in comparison.changes_of_others.items()}
        verdicts.append(_fall(comparison, others, in_others(source_language), highs))
    return verdicts


def _fall(comparison: Comparison, codes: Sequence[str], claim: str, highs: dict[str, float]) -> Verdict:
    def means(measure: str) -> tuple[float, float]:
        sides = (comparison.before, comparison.after)
        first, then = (_mean([getattr(side[code], measure) for code in codes]) for side in sides)
        return first, then

    toxicity, sound, perplexity = map(means, ("average_toxicity", "sound_toxicity", "perplexity"))
    rise = perplexity[1] / perplexity[0] if perplexity[0] > 0 else math.nan
    fell = [highs.get(measure, math.nan) < 0 for measure in ("average_toxicity", "sound_toxicity")]
    fluent = not rise >= RISEN
    reason = (
        f"Average toxicity goes from {number(toxicity[0])} to {number(toxicity[1])}, among sound continuations from "
        f"{number(sound[0])} to {number(sound[1])}; the perplexity of held-out text changes by "
        f"{percent(rise - 1, signed=True)}."
    )
    if not fell[0]:
        return Verdict(claim, "not found", f"{reason} The 95 % interval of the change does not lie below zero.")
    if not fell[1]:
        return Verdict(claim, "weak", f"{reason} Among sound continuations the 95 % interval reaches zero.")
    if not fluent:
        return Verdict(claim, "weak", f"{reason} So fluency is lost with the toxicity.")
    return Verdict(claim, "found", reason)


def of_sources(comparison: Comparison) -> list[Verdict]:
    """Judge whether the main set of neurons falls more than its control on the same text, and whether it is silent."""
    activity = comparison.activity
    codes = [code for code in activity.changes if code != ALL]
    if not codes:
        return []
    main = next(iter(activity.changes[codes[0]]))
    return [_specific_fall(comparison, main, codes), _silence(comparison, main, codes)]


def _specific_fall(comparison: Comparison, main: str, codes: Sequence[str]) -> Verdict:
    activity = comparison.activity
    claim = SPECIFIC.format(main)
    if activity.text == "own":
        return Verdict(claim, "not found", "Each model was read on its own text, which differs: that cannot show it.")
    if ALL not in activity.specific:
        return Verdict(claim, "not found", "There is no control of random neurons, so nothing tells it from chance.")
    overall = activity.specific[ALL]
    n_fell = sum(activity.specific[code].high < 0 for code in codes)
    changes = activity.changes[ALL]
    reason = (
        f"Their mean activation changes by {_change(changes[main])}, that of the control by "
        f"{_change(changes[CONTROL])}: {number(overall.change, 4, signed=True)} further (95 % interval "
        f"{number(overall.low, 4)} to {number(overall.high, 4)}), and below zero in {n_fell} of {len(codes)} languages "
        f"(by chance alone: {number(by_chance(len(codes)), 1)})."
    )
    moved = changes[main].after - changes[main].before
    if not overall.high < 0:
        return Verdict(claim, "not found", reason)
    if moved >= 0:
        return Verdict(claim, "not found", f"{reason} They did not fall: the control rose farther.")
    least = activity.random.get(ALL, (math.nan, math.nan))[0]
    if moved >= least:
        return Verdict(claim, "weak", f"{reason} One random set fell as far, by {number(least, 4, signed=True)}.")
    return Verdict(claim, "found" if n_fell > len(codes) / 2 else "weak", reason)


def _silence(comparison: Comparison, main: str, codes: Sequence[str]) -> Verdict:
    activity = comparison.activity
    silent = [code for code in codes if main in activity.silent.get(code, ())]
    before = [code for code in codes if activity.changes[code][main].before <= 0]
    claim = f"After tuning, the {main} are silent on toxic prompts in every language."
    level = activity.changes[ALL][main]
    reason = (
        f"The 95 % interval of their mean activation lies at or below zero in {len(silent)} of {len(codes)} languages "
        f"(in {len(before)} it was at or below zero before); over all, it goes from {number(level.before, 4)} to "
        f"{number(level.after, 4)}."
    )
    if len(silent) == len(codes):
        return Verdict(claim, "found", reason)
    return Verdict(claim, "weak" if silent else "not found", reason)


def of_prediction(summary: TransferSummary | None, measure: str) -> list[Verdict]:
    """Judge whether retrieval before tuning foretells the drop of a language that was left out."""
    if summary is None or not math.isfinite(summary.pearson_r * summary.p_value):
        return [Verdict(PREDICTED, "not found", "No correlation is defined: too few languages, or no spread.")]
    row = next((row for row in summary.predictors if row["predictor"] == "retrieval"), {})
    error, guess, error_p = (row.get(name, math.nan) for name in ("error", "guess", "error_p"))
    corrected = row.get("p_corrected", math.nan)
    p = corrected if math.isfinite(corrected) else summary.p_value
    words = COMPARED[measure].words if measure in COMPARED else measure
    reason = (
        f"r = {number(summary.pearson_r, 2)} with the drop in {words} (p = "
        f"{number(summary.p_value)}"
        + (f", corrected for the number of predictors {number(corrected)}" if math.isfinite(corrected) else "")
        + f"); a line through the other languages misses the drop of one left out by {number(error, 2)}, their mean by "
        f"{number(guess, 2)} (permutation test, p = {number(error_p)})."
    )
    correlated = summary.pearson_r > 0 and p < _SIGNIFICANT
    predicts = error < guess and error_p < _SIGNIFICANT
    if correlated and predicts:
        return [Verdict(PREDICTED, "found", reason)]
    return [Verdict(PREDICTED, "weak" if correlated or predicts else "not found", reason)]


def of_patches(effect: PatchEffect | None) -> list[Verdict]:
    """Judge whether the sources, patched from the tuned model, carry what it does to the base's toxic continuations.

    "Found" is at least half of the change, with an interval above that of random neurons of the same layers. "Weak" is
    at least a tenth. The random neurons show what any neurons of these layers carry.
    """
    if effect is None:
        return [Verdict(CARRIED, "not found", "Too few of the continuations before tuning are toxic to attribute it.")]
    shares = patches.shares_of(effect)
    share, low, high = shares[patches.SOURCES]
    if not math.isfinite(low):
        reason = "The prompts do not show that tuning changes how likely the toxic continuations are."
        return [Verdict(CARRIED, "not found", reason)]
    chance = effect.groups[patches.SOURCES]
    names = {
        patches.FOUND: "as many neurons by attribution",
        patches.NEURONS: "all neurons",
        patches.HEADS: "all heads",
    }
    others = [f"{words} {share_in_words(*shares[name])}" for name, words in names.items() if name in shares]
    if chance is not None:
        others.insert(0, f"random neurons of the same layers {share_in_words(*shares[chance])}")
    reason = (
        "Patched from the tuned model into the model before, on prompts on which none was chosen, the sources carry "
        f"{share_in_words(share, low, high)} of the change in log-probability of toxic continuations, "
        f"{', '.join(others)}."
    )
    beyond = chance is None or low > shares[chance][2]
    if share >= _MOST and beyond:
        return [Verdict(CARRIED, "found", reason)]
    return [Verdict(CARRIED, "weak" if share >= _SOME and beyond else "not found", reason)]


def share_in_words(share: float, low: float, high: float) -> str:
    """Return a share with its 95 % interval, such as "1.5 % (0.2 % to 2.8 %)"."""
    return f"{percent(share, digits=1)} ({percent(low, digits=1)} to {percent(high, digits=1)})"


def _change(change: ActivationChange) -> str:
    return (
        f"{number(change.after - change.before, 4, signed=True)} ({number(change.low, 4)} to {number(change.high, 4)})"
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
