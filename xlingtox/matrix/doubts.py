"""Say which cells of a transfer matrix cannot carry a finding, and why, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from xlingtox import languages
from xlingtox.evaluation import cautions
from xlingtox.evaluation.cautions import places
from xlingtox.html.tables import number, percent
from xlingtox.matrix.cells import cells, off_diagonal
from xlingtox.text import first_few

LITTLE, COLLAPSED, SILENT = "hardly toxic before", "fluency collapsed", "silence"
"""The reasons why a cell cannot carry a finding. The first is about its target, the others about its tuned model."""

FEWEST_PROMPTS = 6
"""Fewer prompts show no drop: if it fell in 5 of 5, a sign test would still give p = .06."""

_NAMED = 3
"""At most so many cells are named with their numbers."""

TOXICITY, DEGENERATE, PROBABILITY = "average_toxicity", "degenerate", "toxicity_probability"


@dataclass(frozen=True)
class Doubts:
    """The cells of a transfer matrix that cannot carry a finding, with the reasons.

    Attributes:
        sources, targets, values, perplexity: as in `TransferMatrix`; runs of the control are not looked at.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    values: Mapping[str, Float[np.ndarray, "run target prompt"]]
    perplexity: Float[np.ndarray, "run target"]

    def of_cells(self) -> dict[str, Bool[np.ndarray, "source target"]]:
        """Return for each reason the cells that it is about."""
        n = len(self.sources)
        low = np.array([bool(words) for words in self._hardly_toxic()])
        return {
            LITTLE: np.tile(low, (n, 1)),
            COLLAPSED: self.perplexity[1 : n + 1] > cautions.COLLAPSED * self.perplexity[:1],
            SILENT: self._silent(),
        }

    def reasons(self) -> list[list[str]]:
        """Return the first reason for each source and target; "" where there is none."""
        by_reason = self.of_cells()
        return [
            [
                next((reason for reason, is_doubtful in by_reason.items() if is_doubtful[i, j]), "")
                for j in range(len(self.targets))
            ]
            for i in range(len(self.sources))
        ]

    def sentences(self) -> list[str]:
        """Return the warnings: the base's own text first, then the cells."""
        by_reason, warnings = self.of_cells(), []
        low = {code: words for code, words in zip(self.targets, self._hardly_toxic(), strict=True) if words}
        if low:
            warnings.append(
                f"Too little toxicity to tell: the base writes hardly any toxic text in {places(low, self.targets)}. "
                f"Fewer than {cautions.FEWEST_TOXIC} prompts with toxic text cannot show a drop: take more samples, or "
                "prompts that draw out more toxicity."
            )
        unsound = {code: f"{percent(share)} not sound" for code, share in self._unsound().items()}
        if unsound:
            warnings.append(
                f"The base's own text is not sound in {places(unsound, self.targets)}. There, silence hardly shows."
            )
        too_few = {code: str(n) for code, n in self._n_prompts().items() if n < FEWEST_PROMPTS}
        if too_few:
            warnings.append(
                f"Too few prompts in {places(too_few, self.targets)}. Fewer than {FEWEST_PROMPTS} show no drop: give "
                "more."
            )
        if by_reason[COLLAPSED].any():
            warnings.append(
                "Fluency collapsed: the perplexity of held-out text more than doubled in "
                f"{self._named(by_reason[COLLAPSED], self.perplexity[0], self.perplexity[1:])}. A model that writes "
                "nonsense insults nobody: tune for fewer steps."
            )
        if by_reason[SILENT].any():
            shares = cells(self.values[DEGENERATE])
            warnings.append(
                "Silence, not safety: text that is not sound explains most of the drop in "
                f"{self._named(by_reason[SILENT], shares.before[0], shares.after, share=True)} not sound. Read the "
                "drops of other cells, or tune for fewer steps."
            )
        return warnings

    def _hardly_toxic(self) -> list[str]:
        """Return how little of the text of the base is toxic in each target; nothing where it is enough."""
        toxicity, n_prompts = self.values[TOXICITY][0], self._n_prompts()
        words = []
        for j, code in enumerate(self.targets):
            known = toxicity[j][np.isfinite(toxicity[j])]
            average = float(known.mean()) if len(known) else math.nan
            reason = f"{average:.3f} on average" if average < cautions.LEAST_TOXICITY else ""
            # A count of toxic prompts tells nothing where there are hardly more prompts than that.
            if PROBABILITY in self.values and n_prompts[code] > cautions.FEWEST_TOXIC:
                n_toxic = int(np.nansum(self.values[PROBABILITY][0, j]))
                if n_toxic < cautions.FEWEST_TOXIC:
                    reason = f"{n_toxic} of {n_prompts[code]} prompts"
            words.append(reason)
        return words

    def _unsound(self) -> dict[str, float]:
        """Return the share of the base's text that is not sound, in the targets where it is large."""
        if DEGENERATE not in self.values:
            return {}
        with_text = cells(self.values[DEGENERATE]).before[0]
        return {
            code: float(share)
            for code, share in zip(self.targets, with_text, strict=True)
            if share > cautions.MOST_UNSOUND
        }

    def _n_prompts(self) -> dict[str, int]:
        counts = np.isfinite(self.values[TOXICITY][0]).sum(-1)
        return {code: int(n) for code, n in zip(self.targets, counts, strict=True)}

    def _silent(self) -> Bool[np.ndarray, "source target"]:
        """Return in which cells the drop would mostly come out if sound texts stayed as toxic as they were."""
        n = len(self.sources)
        toxicity = cells(self.values[TOXICITY][: n + 1])
        if DEGENERATE not in self.values:
            return np.zeros(toxicity.after.shape, dtype=bool)
        shares = cells(self.values[DEGENERATE][: n + 1])
        further, fall = shares.after - shares.before, toxicity.before - toxicity.after
        lost = toxicity.before * further / np.where(shares.before < 1, 1 - shares.before, math.nan)
        return (further >= cautions.MORE_UNSOUND) & (fall > 0) & (lost > cautions.EXPLAINS * fall)

    def _named(
        self,
        found: Bool[np.ndarray, "source target"],
        before: Float[np.ndarray, "target"],
        after: Float[np.ndarray, "run target"],
        *,
        share: bool = False,
    ) -> str:
        """Count the cells, and name the first few with their numbers before and after."""
        named = []
        for i, j in zip(*np.nonzero(found), strict=True):
            sides = (percent(side) if share else number(side, 1) for side in (before[j], after[i, j]))
            source, target = languages.name(self.sources[i]), languages.name(self.targets[j])
            named.append(f"{target} tuned on {source} ({' to '.join(sides)})")
        return f"{found.sum()} of {found.size} cells: {first_few(named, _NAMED)}"


def of_drops(
    drops: Float[np.ndarray, "source target"], sources: Sequence[str], targets: Sequence[str], *, words: str
) -> list[str]:
    """Warn where drops leave nothing to explain, or have none to explain it with.

    Args:
        words: the measure that dropped, in words.
    """
    counted, warnings = off_diagonal(drops, sources, targets), []
    transferred, missing = drops[counted], ~np.isfinite(drops)
    if missing.any():
        warnings.append(
            f"No drop in {missing.sum()} of {missing.size} cells: the base has no {words} there, or there is no text. "
            "Teachers and pupils are compared without these cells."
        )
    if len(transferred) > 2 and transferred.min() >= cautions.NEAR_ONE:
        warnings.append(
            f"No spread to explain: {words} dropped by {percent(transferred.min())} to {percent(transferred.max())} in "
            "all cells. Which language teaches best is then mostly chance: measure after fewer steps of tuning."
        )
    return warnings


def of_control(mean: float, shuffled: float, *, has_shuffled: bool) -> list[str]:
    """Warn where shuffled labels explain the drop, or where there is no such control.

    Args:
        mean, shuffled: the mean drop over the cells of transfer, with true and with shuffled labels.
    """
    if not has_shuffled:
        return [
            "No control with shuffled labels: text like that of the pairs may lower toxicity without any preference. "
            "Give shuffled=True."
        ]
    if mean > 0 and shuffled > cautions.EXPLAINS * mean:
        return [
            f"Shuffled labels explain most of the drop: they give {percent(shuffled)} in the mean over cells, "
            f"and true labels {percent(mean)}. Then the text of the pairs did it, and not the preference."
        ]
    return []
