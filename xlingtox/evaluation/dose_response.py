"""Measure toxicity and fluency as an edit of neurons gets stronger, next to random neurons that push as strongly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import pandas as pd
from datasets import Dataset

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompts, meanings
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import cautions, chosen_dose
from xlingtox.evaluation.chosen_dose import Chosen
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.evaluation.dose import Dose as Dose
from xlingtox.evaluation.dose import LanguageDose
from xlingtox.evaluation.dose_measures import Response, Setup
from xlingtox.evaluation.dosing import UNITS, Unit, controls, in_sd
from xlingtox.evaluation.fluency import check_held_out
from xlingtox.evaluation.named_sets import CONTROL, SOURCES, NamedSets, activations_of_layers, named_sets
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.generation import check_lengths
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.drawing import Match
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered
from xlingtox.verdicts import Verdict

CONTROLS: Mapping[Match, str] = {
    "push": "equally strong random neurons",
    "activity": "equally active random neurons",
    "layers": "random neurons of the same layers",
}
"""Each kind of random neurons in words."""

_MOST_LEFT = 1 / 3
"""A dose is chosen among those that leave at most this share of the toxicity."""


@checked
@dataclass(frozen=True, repr=False)
class DoseResponse:
    """The doses of one set of neurons, and of random sets as a control.

    Toxicity should fall with the dose if the edited neurons cause it, and stay the same for random neurons.

    Attributes:
        doses: the response of the first set to each dose, in the order of the doses.
        control: the mean response of its random sets, or the response of the set that was given as the control, to the
            same doses; empty without a control.
        others: the response of any further sets, by name.
        name: the name of the first set.
        unit: the unit of the doses: "sd" for each neuron's standard deviation on the prompts, "activation" for a number
            that is added to each activation.
        match: what the random sets share with the first set; None where the control was given.
        unedited: the response without an edit; None where that is not known.
        scorer: which scorer gave the toxicity; None where that is not known.
        model: which model was edited; None where that is not known.
        n_neurons: how many neurons were edited, in each set; 0 where that is not known.
        n_random: how many random sets `control` is the mean of; 0 where that is not known, or without random sets.
        n_constant: how many neurons of the first set never vary on the prompts, so that doses in standard deviations do
            not move them.

    Example:
        >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.1, high=0.3)
        >>> response = xt.DoseResponse((dose,), n_neurons=2)
        >>> response
        DoseResponse(2 neurons, doses -1 to -1 units of activation, average toxicity 0.20 to 0.20)
        >>> response.save(tmp_path / "doses.json")
        >>> xt.DoseResponse.load(tmp_path / "doses.json") == response
        True
    """

    doses: tuple[Dose, ...]
    control: tuple[Dose, ...] = ()
    _: KW_ONLY
    others: Mapping[str, tuple[Dose, ...]] = field(default_factory=dict)
    name: str = SOURCES
    unit: Unit = "activation"
    match: Match | None = "layers"
    unedited: Dose | None = None
    scorer: ScorerIdentity | None = None
    model: Identity | None = None
    n_neurons: int = 0
    n_random: int = 0
    n_constant: int = 0

    def __repr__(self) -> str:
        rising = sorted(self.doses, key=lambda dose: dose.offset)
        if not rising:
            return f"DoseResponse({self.n_neurons} neurons, no doses)"
        first, last = rising[0], rising[-1]
        random_sets = f", {self.n_random} random sets" if self.n_random else ""
        figures = (
            f"DoseResponse({self.n_neurons} neurons{random_sets}, doses {first.offset:g} to {last.offset:g} "
            f"{UNITS[self.unit]}, average toxicity {first.average_toxicity:.2f} to {last.average_toxicity:.2f})"
        )
        return "\n".join((figures, *(f"Warning. {warning}" for warning in self.warnings)))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the prompts, in the order of `xt.languages.CODES`."""
        return languages.in_order({code for dose in self.doses for code in dose.toxicity_by_language})

    @property
    def sets(self) -> dict[str, tuple[Dose, ...]]:
        """The doses of every set by its name: of the first set, of its control if it has one, and of any others."""
        control = {CONTROL: self.control} if self.control else {}
        return {self.name: self.doses, **control, **self.others}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say which of these figures cannot carry a finding, and why."""
        warnings = cautions.of_doses(self._unedited(), [dose for dose in self.doses if dose.offset])
        if self.n_constant:
            warnings.append(
                f"{self.n_constant} of the {self.n_neurons} neurons never vary on these prompts: doses in standard "
                "deviations do not move them."
            )
        return tuple(warnings)

    @checked
    def chosen(self, *, share: float = _MOST_LEFT) -> Chosen | None:
        """Choose the dose on the first half of the prompts, and report it on the second half.

        Of the doses that leave at most `share` of the unedited model's toxicity, the one with the lowest perplexity is
        chosen. Its figures on other prompts and texts are not the best of several, so that they are not too good.

        Returns:
            the dose with its figures, or None where no dose leaves so little, or nothing was toxic on the first half,
            or a language has a single prompt.

        Raises:
            ValueError: the share is not between 0 and 1.

        Example:
            >>> response = xt.dose_response(lm, sources, [0.0, -2.0], prompts, scorer=xt.mini.scorer(),
            ...     held_out=xt.mini.held_out(n=2, languages=["en", "es"]), n_samples=4, max_new_tokens=8, n_random=1,
            ...     progress=False)
            >>> chosen = response.chosen(share=0.9)
            >>> chosen is None or chosen.offset == -2.0
            True
        """
        return chosen_dose.choose(self._unedited(), self.doses, self.control, _checked_share(share))

    @checked
    def verdict(self, *, share: float = _MOST_LEFT) -> Verdict:
        """Say whether editing the neurons lowers toxicity more than the control does.

        - "found": the dose that `chosen` gives lowers toxicity more than the control on the second half. The interval
          of the difference lies below 0, no random set comes as low, and the text stays fluent (`Chosen.is_fluent`).
        - "weak": the difference lies below 0, but one of the rest is missing, or no dose leaves at most `share`. Or
          there is no control.
        - "not found": anything else.

        Raises:
            ValueError: the share is not between 0 and 1.

        Example:
            >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.1, high=0.3)
            >>> xt.DoseResponse((dose,)).verdict().verdict
            'not found'
        """
        than = "the control" if self.match is None else CONTROLS[self.match]
        return chosen_dose.verdict(
            self._unedited(), self.doses, self.control, share=_checked_share(share), than=than, unit=UNITS[self.unit]
        )

    def _unedited(self) -> Dose | None:
        """Return the response without an edit, which may be one of the doses."""
        return self.unedited or next((dose for dose in self.doses if not dose.offset), None)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each set of neurons, dose and language, and one for the mean over languages.

        The columns are `neurons, dose, language, toxicity, low, high, perplexity, degenerate, blank`. The language of
        the mean is "all". `low` and `high` are the ends of the 95 % interval of the toxicity, over prompts.
        """
        rows = []
        for neurons, doses in self.sets.items():
            for dose in doses:
                measured: list[tuple[str, float, Dose | LanguageDose | None]] = [("all", dose.average_toxicity, dose)]
                for code, toxicity in dose.toxicity_by_language.items():
                    measured.append((code, toxicity, dose.by_language.get(code)))
                rows += [
                    (neurons, dose.offset, code, toxicity, *(getattr(values, name, math.nan) for name in _IN_TABLE))
                    for code, toxicity, values in measured
                ]
        return pd.DataFrame(rows, columns=["neurons", "dose", "language", "toxicity", *_IN_TABLE])

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with the warnings first: one row for each dose, the sets next to each other."""
        sets = {name: {dose.offset: dose for dose in doses} for name, doses in self.sets.items()}
        rows = [
            [
                tables.number(offset, 2),
                *(
                    cell
                    for doses in sets.values()
                    for cell in (_cells(doses[offset]) if offset in doses else ["–"] * 3)
                ),
            ]
            for offset in sorted(sets[self.name])
        ]
        columns = ["Average toxicity (95 % interval)", "Perplexity", "Degenerate"]
        headings = [
            column if name == self.name else f"{escaped(name).capitalize()}: {column.lower()}"
            for name in sets
            for column in columns
        ]
        scored = "" if self.scorer is None else f", scored by {escaped(self.scorer.name)}"
        edited = f"{self.n_neurons} neurons" if self.n_neurons else "neurons"
        caption = f"Doses in {UNITS[self.unit]} for {edited}{scored}"
        return tables.warnings(self.warnings) + tables.table(caption, ["Dose", *headings], rows)

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
            scorer, model, unedited = content["scorer"], content["model"], content.get("unedited")
            doses, control = (tuple(map(Dose.of, content[name])) for name in ("doses", "control"))
            return cls(
                doses,
                control,
                others={name: tuple(map(Dose.of, rows)) for name, rows in content.get("others", {}).items()},
                name=content.get("name", SOURCES),
                unit=content.get("unit", "activation"),
                match=content.get("match", "layers"),
                unedited=unedited and Dose.of(unedited),
                scorer=scorer and ScorerIdentity(**scorer),
                model=model and Identity.of(model),
                n_neurons=content["n_neurons"],
                n_random=content["n_random"],
                n_constant=content.get("n_constant", 0),
            )


_IN_TABLE = ("low", "high", "perplexity", "degenerate", "blank")
"""The columns of the table that a dose has for each language."""


@checked
def dose_response(
    lm: HookedLM,
    neurons: NamedSets,
    doses: Sequence[float],
    prompts: Prompts,
    *,
    unit: Unit = "sd",
    scorer: Scorer,
    held_out: Dataset,
    n_random: int = 5,
    match: Match = "push",
    seed: int = 0,
    n_samples: int | None = None,
    max_new_tokens: int = 20,
    identify_language: Identifier | None = None,
    progress: bool = True,
) -> DoseResponse:
    """Measure toxicity and fluency under each dose of the neurons, and of random neurons (paper, Figure 2).

    The edited model continues every prompt, and reads the held-out text. The control is random sets of as many neurons
    in the same layers, which push the residual stream as far. If editing any neurons did the same, it would prove
    nothing.

    A dose of -1 takes each neuron one of its standard deviations down, so that it is small where activations are. The
    paper adds the same number to every neuron (`unit="activation"`). Neither is equally strong in all models:
    `propose_doses` finds doses that do not break this one.

    The paper's doses are greedy. Greedy text shows only the likeliest continuation. A model that is toxic in one sample
    of ten then looks harmless, and a small push can tip all of its text at once. Samples do not hide that.

    All doses of all sets share batches, as far as that is faster (`generate_under`). So a sweep over few prompts costs
    a fraction of what its edits cost one after the other.

    Args:
        neurons: the neurons to edit, or several sets by name. One set is called "sources". A set called "control" takes
            the place of the random sets. A set's own weights multiply its doses.
        doses: how far to move each neuron, in the unit. 0 is the model without an edit.
        prompts: the prompts. In a table with a column `index`, prompts of the same index are translations. Intervals
            then resample them together.
        unit: "sd" for each neuron's own standard deviation over the steps of the unedited model's greedy continuations
            of all prompts; "activation" for the same number for every neuron.
        scorer: any scorer. `scoring.Cached(scorer)` scores no text twice, and resumes after an interrupt.
        held_out: columns `language, text`, for perplexity.
        n_random: how many random sets to average as the control of the first set; 0 for no control.
        match: what random sets share with it, as in `NeuronSet.random_like`: "push", "activity", or "layers". Sets that
            push as far are drawn among neurons that are as active on these prompts.
        seed: the seed of the first random set; the next one has `seed + 1`. It is also that of the samples: every dose
            draws with the same random numbers.
        n_samples: how many continuations of each prompt are sampled (default: one, greedily, as in the paper).
        identify_language: a function that tells the language of continuations, as in `compare`.

    Raises:
        ValueError: there is no dose, or one is not finite; `n_samples` is below 1; a set is empty or only a control, or
            a neuron is outside the model; no neuron of a set varies, so that it has no standard deviation; prompts or
            held-out texts are bad; the scorer does not cover a language; or the model is edited already.

    Example:
        >>> response = xt.dose_response(lm, sources, [0.0, -1.0], prompts, scorer=xt.mini.scorer(),
        ...     held_out=xt.mini.held_out(n=1, languages=["en"]), n_random=1, max_new_tokens=4, progress=False)
        >>> response.to_frame()[["neurons", "dose", "language"]].values.tolist()[:4]
        [['sources', 0.0, 'all'], ['sources', 0.0, 'en'], ['sources', 0.0, 'es'], ['sources', -1.0, 'all']]
    """
    check_doses(doses)
    if n_random < 0:
        raise ValueError(f"n_random is {n_random}: expected 0 or more")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}: expected 1 or more, or None for greedy text")
    lm.check_unedited("doses do not show")
    sets = named_sets(neurons)
    for neuron_set in sets.values():
        neuron_set.check(lm)
    prompt_list = lm.as_prompts(prompts)
    check_lengths(lm, prompt_list, max_new_tokens)
    check_covered(scorer, [prompt.language for prompt in prompt_list])
    check_held_out(lm, held_out)
    name = next(name for name in sets if name != CONTROL)
    n_drawn = 0 if CONTROL in sets else n_random
    activations = None
    if unit == "sd" or (n_drawn and match != "layers"):
        activations = activations_of_layers(
            lm, list(sets.values()), prompt_list, max_new_tokens=max_new_tokens, progress=progress
        )
    if unit == "sd" and activations is not None:
        sets = {name: in_sd(neuron_set, activations) for name, neuron_set in sets.items()}
    random_sets = controls(sets[name], lm, n=n_drawn, seed=seed, match=match, unit=unit, activations=activations)
    members = {set_name: [neuron_set] for set_name, neuron_set in sets.items()}
    if random_sets:
        members[CONTROL] = random_sets
    sampling = {"n_samples": n_samples or 1, "greedy": n_samples is None, "seed": seed}
    total = 1 + sum(map(bool, doses)) * sum(map(len, members.values()))
    with bar("doses", total=total, unit="edit", progress=progress) as shown:
        setup = Setup(
            lm,
            prompt_list,
            meanings=meanings(prompts),
            scorer=scorer,
            held_out=held_out,
            generation={**sampling, "max_new_tokens": max_new_tokens},
            identify_language=identify_language,
            progress=progress,
        )
        shown.update()

        edited = [dose for dose in doses if dose]
        edits = [Offset(one, dose) for dose in edited for key in members for one in members[key]]
        measured = setup.responses(edits)

        def response(n_sets: int) -> Response:
            singles = []
            for _ in range(n_sets):
                singles.append(next(measured))
                shown.update()
            return Response.averaged(singles)

        results: dict[str, list[Dose]] = {set_name: [] for set_name in members}
        for dose in doses:
            # A dose of 0 edits nothing, so that one response serves all sets.
            responses = {key: response(len(members[key])) if dose else setup.unedited for key in members}
            for key, one in responses.items():
                # The random sets are as strong as the first set, and not as the others.
                results[key].append(setup.dose(dose, one, responses.get(CONTROL) if key == name else None))
        unedited = setup.dose(0.0, setup.unedited)
    return DoseResponse(
        tuple(results.pop(name)),
        tuple(results.pop(CONTROL, ())),
        others={key: tuple(values) for key, values in results.items()},
        name=name,
        unit=unit,
        match=None if CONTROL in sets else match,
        unedited=unedited,
        scorer=ScorerIdentity.of(scorer),
        model=lm.identity(),
        n_neurons=len(sets[name]),
        n_random=len(random_sets),
        n_constant=sum(not amount for amount in sets[name].amounts) if unit == "sd" else 0,
    )


def check_doses(doses: Sequence[float]) -> None:
    """Raise ValueError unless there is a dose, and all are finite."""
    if not doses:
        raise ValueError("a dose-response needs at least one dose")
    wrong = [dose for dose in doses if not math.isfinite(dose)]
    if wrong:
        raise ValueError(f"dose {wrong[0]}: expected finite numbers")


def _checked_share(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"share is {share}: expected a number between 0 and 1")
    return share


def _cells(dose: Dose) -> list[str]:
    """Return average toxicity with its interval, perplexity and the share of degenerate text as a table shows them."""
    ends = " to ".join(tables.number(end) for end in (dose.low, dose.high))
    return [
        f"{tables.number(dose.average_toxicity)} ({ends})",
        tables.number(dose.perplexity, 2),
        tables.percent(dose.degenerate, digits=1),
    ]
