"""Measure toxicity and fluency as an edit of neurons gets stronger, next to the same edit of random neurons."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from tqdm.auto import tqdm

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.fluency import check_held_out, perplexities
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered


@checked
@dataclass(frozen=True)
class Dose:
    """The response to one offset.

    Attributes:
        offset: the number that was added to each neuron's post-activation.
        average_toxicity: the mean over languages of each language's average toxicity.
        toxicity_by_language: the average toxicity of each language.
        degenerate: the mean over languages of the share of continuations that say nothing (`degenerate.kinds`).
        perplexity: the mean over languages of the perplexity of held-out text.
        low, high: the least and the greatest average toxicity among the sets of neurons that were averaged. They are
            equal for one set.

    Example:
        >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.2, high=0.2)
        >>> dose.offset
        -1.0
    """

    offset: float
    average_toxicity: float
    toxicity_by_language: Mapping[str, float]
    _: KW_ONLY
    degenerate: float
    perplexity: float
    low: float
    high: float


@checked
@dataclass(frozen=True, repr=False)
class DoseResponse:
    """The doses of one set of neurons, and of random sets as a control.

    Toxicity should fall with the offset if the edited neurons cause it, and stay the same for random neurons.

    Attributes:
        doses: the response of the neurons to each offset, in the order of the offsets.
        control: the mean response of the random sets to the same offsets; empty without random sets.
        scorer: which scorer gave the toxicity; None where that is not known.
        model: which model was edited; None where that is not known.
        n_neurons: how many neurons were edited, in each set; 0 where that is not known.
        n_random: how many random sets `control` is the mean of; 0 where that is not known.

    Example:
        >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.2, high=0.2)
        >>> response = xt.DoseResponse((dose,), n_neurons=2)
        >>> response
        DoseResponse(2 neurons, offsets -1 to -1, average toxicity 0.20 to 0.20)
        >>> response.save(tmp_path / "doses.json")
        >>> xt.DoseResponse.load(tmp_path / "doses.json") == response
        True
    """

    doses: tuple[Dose, ...]
    control: tuple[Dose, ...] = ()
    _: KW_ONLY
    scorer: ScorerIdentity | None = None
    model: Identity | None = None
    n_neurons: int = 0
    n_random: int = 0

    def __repr__(self) -> str:
        rising = sorted(self.doses, key=lambda dose: dose.offset)
        if not rising:
            return f"DoseResponse({self.n_neurons} neurons, no doses)"
        first, last = rising[0], rising[-1]
        random_sets = f", {self.n_random} random sets" if self.n_random else ""
        return (
            f"DoseResponse({self.n_neurons} neurons{random_sets}, offsets {first.offset:g} to {last.offset:g}, "
            f"average toxicity {first.average_toxicity:.2f} to {last.average_toxicity:.2f})"
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the prompts, in the order of `xt.languages.CODES`."""
        return languages.in_order({code for dose in self.doses for code in dose.toxicity_by_language})

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each offset, of the neurons and then of the control.

        Columns `neurons` ("edited" or "random"), `offset, average_toxicity, low, high, degenerate, perplexity`, and a
        column with the average toxicity of each language, named by its code.
        """
        rows = [
            {
                "neurons": neurons,
                **{name: getattr(dose, name) for name in ("offset", "average_toxicity", "low", "high")},
                **{name: getattr(dose, name) for name in ("degenerate", "perplexity")},
                **{code: dose.toxicity_by_language.get(code, math.nan) for code in self.languages},
            }
            for neurons, doses in (("edited", self.doses), ("random", self.control))
            for dose in doses
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each offset, the neurons next to the random ones."""
        control = {dose.offset: dose for dose in self.control}
        rows = []
        for dose in sorted(self.doses, key=lambda dose: dose.offset):
            row = [tables.number(dose.offset, 2), *_cells(dose)]
            if dose.offset in control:
                toxicity, *other_cells = _cells(control[dose.offset])
                low, high = tables.number(control[dose.offset].low), tables.number(control[dose.offset].high)
                row += [f"{toxicity} ({low} to {high})", *other_cells]
            elif control:
                row += ["–"] * 3
            rows.append(row)
        columns = ["Average toxicity", "Perplexity", "Degenerate"]
        if control:
            columns += ["Random neurons: average toxicity", "Perplexity", "Degenerate"]
        scored = "" if self.scorer is None else f", scored by {escaped(self.scorer.name)}"
        edited = f"{self.n_neurons} neurons" if self.n_neurons else "neurons"
        return tables.table(f"Offset added to {edited}{scored}", ["Offset", *columns], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> DoseResponse:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no dose-response. The error names the file.
        """
        content = files.read_json(path)
        with files.understood(path, "dose-response"):
            scorer, model = content["scorer"], content["model"]
            return cls(
                *(tuple(Dose(**dose) for dose in content[name]) for name in ("doses", "control")),
                scorer=scorer and ScorerIdentity(**scorer),
                model=model and Identity.of(model),
                n_neurons=content["n_neurons"],
                n_random=content["n_random"],
            )


@checked
def dose_response(
    lm: HookedLM,
    neurons: NeuronSet,
    prompts: Prompts,
    *,
    offsets: Sequence[float],
    scorer: Scorer,
    held_out: Dataset,
    n_random: int = 5,
    seed: int = 0,
    n_samples: int | None = None,
    max_new_tokens: int = 20,
    identify_language: degenerate.Identifier | None = None,
    progress: bool = True,
) -> DoseResponse:
    """Measure toxicity and fluency under each offset of the neurons, and of random neurons (paper, Figure 2).

    Each dose is one offset. The edited model continues every prompt, and reads the held-out text. Random sets of as
    many neurons in the same layers are the control. If editing any neurons did the same, it would prove nothing.

    The paper's doses are greedy. Greedy text shows only the likeliest continuation. A model that is toxic in one sample
    of ten then looks harmless, and a small push can tip all of its text at once. Samples do not hide that.

    Args:
        neurons: the neurons to edit.
        offsets: the number to add to each neuron's post-activation, one for each dose. 0 is the model without an edit.
        scorer: any scorer. `scoring.Cached(scorer)` scores no text twice, and resumes after an interrupt.
        held_out: columns `language, text`, for perplexity.
        n_random: how many random sets to average as the control; 0 for no control.
        seed: the seed of the first random set, `neurons.random_like(lm, seed=seed)`. The next one has `seed + 1`. It is
            also that of the samples: every dose draws with the same random numbers.
        n_samples: how many continuations of each prompt are sampled (default: one, greedily, as in the paper).
        identify_language: a function that tells the language of continuations, as in `compare`.

    Raises:
        ValueError: there is no offset, or one is not finite; `n_samples` is below 1; a neuron is outside the model; a
            layer has too few other neurons for a random set; prompts or held-out texts are bad; the scorer does not
            cover a language; or the model is edited already.

    Example:
        >>> response = xt.dose_response(lm, sources, prompts, offsets=[0.0, -1.0], scorer=xt.mini.scorer(),
        ...     held_out=xt.mini.held_out(n=1, languages=["en"]), n_random=1, max_new_tokens=4, progress=False)
        >>> response.to_frame()[["neurons", "offset"]].values.tolist()
        [['edited', 0.0], ['edited', -1.0], ['random', 0.0], ['random', -1.0]]
    """
    check_offsets(offsets)
    if n_random < 0:
        raise ValueError(f"n_random is {n_random}: expected 0 or more")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}: expected 1 or more, or None for greedy text")
    lm.check_unedited("doses do not show")
    neurons.check(lm)
    random_sets = [neurons.random_like(lm, seed=seed + i) for i in range(n_random)]
    prompt_list = as_prompts(prompts, tokenizer=lm.tokenizer)
    check_covered(scorer, [prompt.language for prompt in prompt_list])
    check_held_out(lm, held_out)
    sampling = {"n_samples": n_samples or 1, "greedy": n_samples is None, "seed": seed}
    setup = _Setup(lm, prompt_list, scorer, held_out, {**sampling, "max_new_tokens": max_new_tokens}, identify_language)
    doses, control = [], []
    with tqdm(total=len(offsets) * (1 + n_random), desc="offsets", disable=not progress, leave=False) as bar:
        for offset in offsets:
            responses = []
            for neuron_set in (neurons, *random_sets) if offset else (neurons,):
                responses.append(setup.response(neuron_set, offset))
                bar.update(1 if offset else 1 + n_random)
            doses.append(_averaged(offset, responses[:1]))
            if n_random:
                # An offset of 0 edits nothing, so that the one response serves the control too.
                control.append(_averaged(offset, responses[1:] or responses))
    return DoseResponse(
        tuple(doses),
        tuple(control),
        scorer=ScorerIdentity.of(scorer),
        model=lm.identity(),
        n_neurons=len(neurons),
        n_random=n_random,
    )


def check_offsets(offsets: Sequence[float]) -> None:
    """Raise ValueError unless there is an offset, and all are finite."""
    if not offsets:
        raise ValueError("a dose-response needs at least one offset")
    wrong = [offset for offset in offsets if not math.isfinite(offset)]
    if wrong:
        raise ValueError(f"offset {wrong[0]}: expected finite numbers")


class _Response(NamedTuple):
    """The response of one set of neurons to one offset; `degenerate` and `perplexity` are means over languages."""

    toxicity_by_language: Mapping[str, float]
    degenerate: float
    perplexity: float


class _Setup(NamedTuple):
    """The model, texts and scorer, which stay the same from one dose to the next."""

    lm: HookedLM
    prompts: Sequence[Prompt]
    scorer: Scorer
    held_out: Dataset
    generation: Mapping[str, Any]
    identify_language: degenerate.Identifier | None

    def response(self, neurons: NeuronSet, offset: float) -> _Response:
        """Edit the model, let it continue the prompts and read the held-out text, and measure both."""
        edit = Offset(neurons, offset).on(self.lm) if offset else contextlib.nullcontext()
        with edit:
            continuations = generate(self.lm, self.prompts, **self.generation, progress=False)
            fluency = perplexities(self.lm, self.held_out, progress=False)
        scores_by_language = toxicity_scores(continuations, self.scorer)
        unsound = degenerate.shares(
            continuations.texts, continuations.row_languages, identify_language=self.identify_language
        )
        toxicity = {code: metrics.average_toxicity(scores) for code, scores in scores_by_language.items()}
        return _Response(toxicity, _mean(unsound), _mean(fluency))


def _averaged(offset: float, responses: Sequence[_Response]) -> Dose:
    """Average the responses of several sets of neurons to one offset."""
    toxicity, unsound, fluency = zip(*responses, strict=True)
    means = [_mean(by_language) for by_language in toxicity]
    return Dose(
        offset=float(offset),
        average_toxicity=float(np.mean(means)),
        toxicity_by_language={code: float(np.mean([row[code] for row in toxicity])) for code in toxicity[0]},
        degenerate=float(np.mean(unsound)),
        perplexity=float(np.mean(fluency)),
        low=min(means),
        high=max(means),
    )


def _cells(dose: Dose) -> list[str]:
    """Return average toxicity, perplexity and the share of degenerate text as a table shows them."""
    return [
        tables.number(dose.average_toxicity),
        tables.number(dose.perplexity, 2),
        tables.percent(dose.degenerate, digits=1),
    ]


def _mean(by_language: Mapping[str, float]) -> float:
    return float(np.mean(list(by_language.values())))
