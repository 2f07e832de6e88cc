"""Tell sound text from silence and from broken text, next to what the unedited model itself writes.

A toxicity scorer finds nothing in an empty text, and nothing in gibberish. `degenerate` looks at a text alone. This
module also looks at its length and at its perplexity under the model before the change, and compares both with a
`Reference`: the unedited model's own continuations and held-out text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from jaxtyping import Float, Int
from scipy import stats

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation import degenerate
from xlingtox.evaluation.degenerate import Identifier, Kind
from xlingtox.evaluation.fluency import LIMIT, Fluency, conditional_perplexity, text_perplexities
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity

FLAGGED = 0.01
"""At most this share of the reference's own continuations ended early, and at most this share is gibberish."""

_SHORT = 0.5
"""A text that ended early has fewer tokens than this share of the median. 18 tokens of 20 are no silence.

It is also the share of the shortest length, where there are too few texts for a quantile.
"""

_MANY = round(1 / FLAGGED)
"""Fewer texts than these do not show a quantile that one text in a hundred exceeds."""

_FEWEST = 10
"""Fewer texts than these show neither how short a text may be, nor how widely perplexities spread."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Reference:
    """The lengths and the perplexities of sound text in each language, as the unedited model shows them.

    Two numbers for each language mark where text stops being sound. Both come from text that nobody has changed.

    - *Fewest tokens*: the 1 % quantile of the lengths of the unedited model's own non-empty continuations, or half of
      their median if that is less. So nothing is called early in a language where the model's own texts end after a
      token or two. Fewer than 100 continuations give half of the shortest length, and fewer than 10 give 0.
    - *Highest perplexity*: the greatest of the 99 % quantiles of its own continuations and of held-out texts, under the
      unedited model. Fewer than 100 texts do not show such a quantile. They give at least the value that one more text
      exceeds once in a hundred times, if the logarithm of perplexity has a normal distribution. Where there are fewer
      than 10 of a kind, that distribution is of both kinds together. The number is at most 10,000.

    By construction, at most 1 % of the continuations that were measured ended early, and at most 1 % are gibberish, not
    counting those with a perplexity of 10,000 or more. About as many must be expected of any sound text.

    Attributes:
        model: the unedited model, which wrote the continuations and judges perplexity.
        fewest_tokens: for each language, the length below which a text ended early; 0 where too few texts show it.
        highest_perplexity: for each language, the perplexity above which a text is gibberish.
        counts: for each language, how many texts these numbers come from: `continuations` and `held_out`.
        max_new_tokens: the number of tokens after which the continuations were cut off; None where it is not known.

    Example:
        >>> written = xt.generate(lm, prompts, n_samples=5, max_new_tokens=8, progress=False)
        >>> held_out = xt.mini.held_out(n=20, languages=["en", "es"])
        >>> reference = xt.evaluation.Reference.measure(lm, written, held_out, progress=False)
        >>> reference
        Reference(2 languages, by mini: gibberish from perplexity ... on)
        >>> reference.save(tmp_path / "reference.json")
        >>> xt.evaluation.Reference.load(tmp_path / "reference.json") == reference
        True
    """

    model: Identity
    fewest_tokens: Mapping[str, int]
    highest_perplexity: Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]
    _: KW_ONLY
    max_new_tokens: int | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether everything is the same."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        limits = [f"{limit:.4g}" for limit in sorted(self.highest_perplexity.values())]
        ends = " to ".join(dict.fromkeys((limits[0], limits[-1]))) if limits else "none"
        return f"Reference({len(self.counts)} languages, by {self.model}: gibberish from perplexity {ends} on)"

    @classmethod
    @checked
    def measure(
        cls,
        judge: HookedLM,
        continuations: Continuations,
        held_out: Dataset | None,
        *,
        fluency: Fluency | None = None,
        progress: bool = True,
    ) -> Reference:
        """Measure what the unedited model writes, and how likely it finds that and held-out text.

        Args:
            judge: the unedited model.
            continuations: texts that it wrote.
            held_out: columns `language, text`; None to go by the continuations alone.
            fluency: `conditional_perplexity(judge, continuations)`, where it is known already.

        Raises:
            ValueError: another model wrote the continuations or gave the fluency; there are no continuations; or
                held-out texts are malformed.
        """
        _check_writer(judge.identity(), continuations)
        if fluency is None:
            fluency = conditional_perplexity(judge, continuations, progress=progress)
        held = {} if held_out is None else text_perplexities(judge, held_out, progress=progress)
        return reference_of(judge.identity(), continuations, fluency, held)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the reference knows, in the order of `xt.languages.CODES`."""
        return languages.in_order(self.counts)

    def to_frame(self) -> pd.DataFrame:
        """Return a row a language: `language, fewest_tokens, highest_perplexity, continuations, held_out`."""
        rows: list[dict[str, Any]] = [
            {
                "language": code,
                "fewest_tokens": self.fewest_tokens[code],
                "highest_perplexity": self.highest_perplexity[code],
                **self.counts[code],
            }
            for code in self.languages
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each language."""
        rows = [
            [
                tables.language_name(code),
                str(self.fewest_tokens[code]),
                tables.number(self.highest_perplexity[code], 1),
                *(str(self.counts[code][name]) for name in ("continuations", "held_out")),
            ]
            for code in self.languages
        ]
        columns = ["Language", "Fewest tokens", "Highest perplexity", "Continuations", "Held-out texts"]
        return tables.table(f"Sound text, as {escaped(str(self.model))} shows it", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Reference:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no reference. The error names the file.
        """
        content = files.read_json(path)
        with files.understood(path, "reference"):
            return cls(
                Identity.of(content["model"]),
                *(content[name] for name in ("fewest_tokens", "highest_perplexity", "counts")),
                max_new_tokens=content["max_new_tokens"],
            )


def reference_of(
    model: Identity, continuations: Continuations, fluency: Fluency, held: Mapping[str, Float[np.ndarray, "text"]]
) -> Reference:
    """Return what `Reference.measure` does, from the perplexities of held-out texts by language."""
    _check_writer(model, continuations)
    n_tokens = _n_tokens(continuations, fluency, model)
    fewest, highest, counts = {}, {}, {}
    codes = np.array(continuations.row_languages)
    for code in continuations.languages:
        in_language = (codes == code) & (n_tokens > 0)
        lengths, texts = n_tokens[in_language], held.get(code, np.empty(0))
        values = np.nan_to_num(fluency.values[in_language], nan=math.inf)
        fewest[code] = _fewest_tokens(lengths)
        highest[code] = _highest_perplexity(values, texts)
        counts[code] = {"continuations": len(lengths), "held_out": len(texts)}
    return Reference(model, fewest, highest, counts, max_new_tokens=_budget(continuations))


def _check_writer(model: Identity, continuations: Continuations) -> None:
    """Raise ValueError if it is known that another model wrote the continuations."""
    writer = continuations.settings.get("model")
    if isinstance(writer, Mapping) and not Identity.of(writer).is_same(model):
        raise ValueError(
            f"{Identity.of(writer)} wrote these continuations: measure a reference by what the unedited model "
            f"itself wrote, generate({model}, prompts)"
        )


@checked
def kinds(
    continuations: Continuations,
    fluency: Fluency,
    reference: Reference,
    *,
    identify_language: Identifier | None = None,
) -> list[Kind]:
    """Name the kind of each continuation: the first of these that fits, otherwise "sound".

    - "empty": nothing is said; the text is blank at once, or has no letter, digit or pictograph.
    - "ended early": the text ended before the budget of tokens, and has fewer than the reference's fewest tokens.
    - "repeated", "wrong script", "wrong language": as in `degenerate.kinds`, which looks at the text alone.
    - "gibberish": its perplexity under the unedited model is above the reference's highest, or is 10,000 or more, or is
      undefined.

    A text that the judge did not judge, because it is too long, is neither too short nor gibberish.

    Args:
        continuations: what a model wrote, edited or not.
        fluency: `conditional_perplexity(unedited, continuations)`, by the reference's model.
        identify_language: a function from texts to their languages, as in `degenerate.kinds`.

    Raises:
        ValueError: the fluency is not of these texts, or another model judged it; the continuations have another budget
            of tokens than the reference's; or the reference lacks a language.

    Example:
        >>> before = xt.generate(lm, prompts, n_samples=5, max_new_tokens=8, progress=False)
        >>> reference = xt.evaluation.Reference.measure(lm, before, xt.mini.held_out(n=20), progress=False)
        >>> with xt.Offset(sources, 30.0).on(lm):
        ...     broken = xt.generate(lm, prompts, n_samples=5, max_new_tokens=8, progress=False)
        >>> fluency = xt.evaluation.conditional_perplexity(lm, broken, progress=False)
        >>> kinds = xt.evaluation.soundness.kinds(broken, fluency, reference)
        >>> kinds.count("sound") < len(kinds) / 2
        True
    """
    n_tokens, codes = _n_tokens(continuations, fluency, reference.model), continuations.row_languages
    if unknown := [code for code in continuations.languages if code not in reference.counts]:
        raise ValueError(
            f"the reference does not know {', '.join(unknown)}: measure it on continuations in these languages too"
        )
    budget = _budget(continuations)
    if None not in (budget, reference.max_new_tokens) and budget != reference.max_new_tokens:
        raise ValueError(
            f"the continuations have up to {budget} new tokens, and the reference's had {reference.max_new_tokens}: "
            "generate both with one max_new_tokens="
        )
    fewest = np.array([reference.fewest_tokens[code] for code in codes])
    highest = np.array([reference.highest_perplexity[code] for code in codes])
    ended_early = (n_tokens > 0) & (n_tokens < fewest) & (n_tokens < (math.inf if budget is None else budget))
    # Comparisons with NaN are False, so that an undefined value is gibberish. Texts that nobody judged have no tokens.
    gibberish = (n_tokens > 0) & ~((fluency.values <= highest) & (fluency.values < LIMIT))
    found = degenerate.kinds(continuations.texts, codes)
    for i in np.flatnonzero(ended_early).tolist():
        found[i] = found[i] if found[i] == "empty" else "ended early"
    if identify_language is not None:
        sound = [i for i, kind in enumerate(found) if kind == "sound"]
        texts, expected = [continuations.texts[i] for i in sound], [codes[i] for i in sound]
        for i, kind in zip(sound, degenerate.kinds(texts, expected, identify_language=identify_language), strict=True):
            found[i] = kind
    return ["gibberish" if broken and kind == "sound" else kind for kind, broken in zip(found, gibberish, strict=True)]


def _n_tokens(continuations: Continuations, fluency: Fluency, judge: Identity) -> Int[np.ndarray, "text"]:
    """Return the length of each text in tokens, after a check that this judge judged just these texts."""
    if fluency.model is None or not fluency.model.is_same(judge):
        raise ValueError(
            f"{fluency.model or fluency.judge} judged the fluency: expected conditional_perplexity by the unedited "
            f"model, {judge}"
        )
    if len(fluency.values) != len(continuations):
        raise ValueError(
            f"the fluency has {len(fluency.values)} values for {len(continuations)} continuations: compute "
            "conditional_perplexity of these"
        )
    if fluency.n_tokens is None:
        raise ValueError("this fluency is of an earlier version and lacks n_tokens: compute it again")
    return fluency.n_tokens


def _budget(continuations: Continuations) -> int | None:
    """Return the number of tokens after which the texts were cut off; None where it is not known."""
    budget = continuations.settings.get("max_new_tokens")
    return budget if isinstance(budget, int) else None


def _fewest_tokens(lengths: Int[np.ndarray, "text"]) -> int:
    """Return the length below which a text ended early, as the class tells it."""
    if len(lengths) < _FEWEST:
        return 0
    quantile = np.quantile(lengths, FLAGGED, method="lower") * (1 if len(lengths) >= _MANY else _SHORT)
    return math.ceil(min(quantile, _SHORT * np.median(lengths)))


def _highest_perplexity(own: Float[np.ndarray, "text"], held_out: Float[np.ndarray, "text"]) -> float:
    """Return the greatest perplexity of sound text, as the class tells it."""
    both = [own, held_out] if min(len(own), len(held_out)) >= _FEWEST else [np.concatenate([own, held_out])]
    quantiles = [np.quantile(values, 1 - FLAGGED, method="higher") for values in (own, held_out) if len(values)]
    return float(min(LIMIT, max([*quantiles, *map(_next_rarely_exceeds, both)])))


def _next_rarely_exceeds(values: Float[np.ndarray, "text"]) -> float:
    """Return what one more value exceeds with a chance of 1 %, if the logarithms have a normal distribution.

    It is 0 where there are so many values that their own quantile says it.
    """
    if len(values) >= _MANY:
        return 0.0
    logs = np.log(values[np.isfinite(values)])
    n = len(logs)
    if n < 2:
        return math.inf
    return float(np.exp(logs.mean() + stats.t.ppf(1 - FLAGGED, n - 1) * math.sqrt(1 + 1 / n) * logs.std(ddof=1)))
