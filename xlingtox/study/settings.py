"""Materials and Settings: the data that a study works on and its sizes, with a check that they fit the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from xlingtox import languages, tuning
from xlingtox.checking import checked
from xlingtox.data.sides import PairsOrder
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.evaluation.dose_response import check_doses
from xlingtox.evaluation.dosing import Unit
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.judging import FEWEST_SHUFFLES
from xlingtox.scoring.protocol import Scorer
from xlingtox.study import side_effects_settings
from xlingtox.study.engine import Engine
from xlingtox.study.frontier_settings import FrontierSettings
from xlingtox.study.recipes import default_recipe
from xlingtox.study.side_effects_settings import SideEffectsSettings

STAGES = (
    *("localize", "promoted", "intervene", "amplify", "retrieve", "tune", "compare", "predict", "attribute"),
    *("frontier", "side_effects"),
)
"""The stages of a study, in the order in which they are run."""

OFF_BY_DEFAULT = ("frontier", "side_effects")
"""The stages that run only where `Settings` has settings for them, in a field of the stage's name."""


@checked
@dataclass(frozen=True, kw_only=True)
class Materials:
    """The data that a study works on besides a model; each table has the columns that its loader in `xt.data` gives.

    Prompts and a scorer are needed always. The stages that lack something else are left out.

    Attributes:
        toxic_prompts: prompts in every language that is studied.
        scorer: a scorer of toxicity that covers every language of the prompts.
        labelled: sentences in the source language with labels, for the probe.
        labelled_elsewhere: sentences with labels in other languages (columns `language, text, label`), on which the
            probe is tested; may be None.
        neutral_prompts: prompts in the same languages that are not toxic, for the amplification.
        pairs: preference pairs in the source language.
        validation: other pairs, for the validation loss while tuning (default: the recipe's share of `pairs`, if any).
        requests: requests that a model should answer or refuse (columns `language, prompt, harmful`), for the stage
            "side_effects".
        parallel: parallel sentences: one column a language, or rows `language, sentence, translation`.
        held_out: texts in every language, for perplexity.
        identify_language: a function that names the language of each continuation; one in another language than its
            prompt counts as degenerate (default: only one in another script).
        toxic_words: for each language, its toxic words, which are looked for among the tokens that the candidates
            promote; may be empty.
        second_judges: scorers that judge the same texts again, each on its own; every claim is stated under each. A
            language that one of them does not cover is left out under it.
        word_groups: groups of toxic words that are reported apart, each as a scorer that finds its words; may be empty.
            Prompts with a column `group` are reported group by group too.
        mixing: for each language, numbers that say how the training text mixed it with others; may be empty.
        origins: where each table comes from, with its size and a hash; it is shown with the results.
        notes: sentences that say what was made from what, and what was left out.

    Example:
        >>> materials = xt.study.Materials(
        ...     labelled=xt.mini.labelled("en", n=200),
        ...     toxic_prompts=xt.mini.prompts(n=2, languages=["en", "es"]),
        ...     neutral_prompts=xt.mini.prompts(n=2, kind="neutral", languages=["en", "es"]),
        ...     pairs=xt.mini.pairs("en", n=100),
        ...     parallel=xt.mini.parallel(n=20, languages=["en", "es"]),
        ...     held_out=xt.mini.held_out(n=4, languages=["en", "es"]),
        ...     scorer=xt.mini.scorer(),
        ... )
    """

    toxic_prompts: Dataset
    scorer: Scorer
    labelled: Dataset | None = None
    neutral_prompts: Dataset | None = None
    pairs: Dataset | None = None
    parallel: Dataset | None = None
    held_out: Dataset | None = None
    validation: Dataset | None = None
    identify_language: Identifier | None = None
    labelled_elsewhere: Dataset | None = None
    requests: Dataset | None = None
    second_judges: tuple[Scorer, ...] = ()
    toxic_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    word_groups: Mapping[str, Scorer] = field(default_factory=dict)
    mixing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    origins: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def digests(self) -> dict[str, str | None]:
        """Return a hash of each of the materials that a result may depend on; None for one that is missing."""
        contents: dict[str, Any] = {"scorer": [self.scorer.name, self.scorer.revision]}
        for attribute in dataclasses.fields(self):
            value = getattr(self, attribute.name)
            if isinstance(value, Dataset) or (value is None and attribute.name not in ("origins", "notes")):
                contents[attribute.name] = None if value is None else value.to_list()
        seconds = [[scorer.name, scorer.revision] for scorer in self.second_judges]
        contents["second_judges"] = seconds or None
        contents["toxic_words"] = {code: list(words) for code, words in self.toxic_words.items()}
        contents["word_groups"] = {name: [scorer.name, scorer.revision] for name, scorer in self.word_groups.items()}
        if (identify := self.identify_language) is not None:
            contents["identify_language"] = getattr(identify, "__qualname__", type(identify).__qualname__)
        return {
            name: None
            if content is None
            else hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
            for name, content in contents.items()
        }


@checked
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The sizes of a study, and the offsets that it adds to activations.

    A dose is one offset with its effect on the text. The control is an offset of random neurons that pushes the
    residual stream as far.

    Attributes:
        stages: the stages to run, of `STAGES`; those that they need are added. None runs all that the materials allow,
            and "frontier" and "side_effects" only where their settings are given.
        source_language: the language that the model is tuned on, and in which the sources are looked for.
        k: the number of candidates.
        n_null: the probes that are fitted to shuffled labels, beside which the probe and its candidates are judged.
        unit: the unit of the doses: each neuron's own standard deviation ("sd"), or its activation as in the paper.
        offsets: the doses of the sources on toxic prompts; None proposes them from the model, from 0 down to where the
            perplexity of held-out text has risen by half.
        amplifications: the doses on neutral prompts; None proposes them in the same way, upwards.
        n_doses: how many doses are proposed, in each direction.
        n_random, n_random_amplified: the number of random sets for `offsets` and for `amplifications`.
        dose_prompts: prompts in each language for the doses; the comparison of before and after uses all.
        dose_samples: sampled continuations of each of these prompts; None for one greedy continuation, as in the paper.
        attribution_prompts: prompts in each language after which tuning is attributed to neurons and heads. On one half
            of them neurons are chosen, and on the other they are patched.
        n_samples, max_new_tokens: continuations of each prompt in the comparison, and the length of any in tokens.
        recipe: the hyperparameters of tuning; `seed` replaces the seed in it. None is the paper's recipe for a model of
            this size (`study.recipes.default_recipe`).
        pairs_order: "reversed" teaches the rejected sides instead of the chosen ones. "shuffled" tosses a coin for each
            pair: a control, from which a model can learn no preference.
        seed: the seed of sampling, of the random sets, and of tuning.
        engine: the servers that write the continuations of the comparison; None lets the models write them here.
        frontier: the sizes of the stage "frontier", which compares methods at equal fluency. None leaves it out, unless
            `stages` names it.
        side_effects: what the stage "side_effects" measures of the model before tuning and the tuned one. None leaves
            it out, unless `stages` names it.

    Raises:
        ValueError: a count below 1 (of doses, below 2), a seed that is not in [0, 2**32), or offsets that are empty,
            repeated or not finite.

    Example:
        >>> settings = xt.study.Settings(n_samples=5, offsets=[0.0, -0.5, -1.0])
        >>> settings.k, settings.offsets
        (100, (0.0, -0.5, -1.0))
    """

    stages: tuple[str, ...] | None = None
    source_language: str = "en"
    k: int = 100
    n_null: int = 199
    unit: Unit = "sd"
    offsets: tuple[float, ...] | None = None
    amplifications: tuple[float, ...] | None = None
    n_doses: int = 5
    n_random: int = 3
    n_random_amplified: int = 2
    dose_prompts: int = 30
    dose_samples: int | None = 2
    attribution_prompts: int = 10
    n_samples: int = 25
    max_new_tokens: int = 20
    recipe: tuning.Recipe | None = None
    pairs_order: PairsOrder = "given"
    seed: int = 0
    engine: Engine | None = None
    frontier: FrontierSettings | None = None
    side_effects: SideEffectsSettings | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.stages or () if name not in STAGES]:
            raise ValueError(f"there is no stage {unknown[0]!r}: expected some of {', '.join(STAGES)}")
        if self.stages is not None and not self.stages:
            raise ValueError(f"stages is empty: name some of {', '.join(STAGES)}")
        if self.frontier is None and "frontier" in (self.stages or ()):
            object.__setattr__(self, "frontier", FrontierSettings())
        if self.side_effects is None and "side_effects" in (self.stages or ()):
            object.__setattr__(self, "side_effects", SideEffectsSettings())
        languages.check(self.source_language)
        counts = ("k", "n_random", "n_random_amplified", "dose_prompts", "n_samples", "max_new_tokens")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if self.n_null < FEWEST_SHUFFLES:
            raise ValueError(f"n_null is {self.n_null}: expected at least {FEWEST_SHUFFLES}, fewer cannot decide")
        if self.attribution_prompts < 2:
            raise ValueError(
                f"attribution_prompts is {self.attribution_prompts}: expected at least 2, one for each half"
            )
        if self.n_doses < 2:
            raise ValueError(f"n_doses is {self.n_doses}: expected at least 2, of which one is 0")
        if self.dose_samples is not None and self.dose_samples < 1:
            raise ValueError(f"dose_samples is {self.dose_samples}: expected at least 1, or None for greedy text")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: expected 0 or more, and less than 2**32")
        for name, offsets in (("offsets", self.offsets), ("amplifications", self.amplifications)):
            if offsets is None:
                continue
            check_doses(offsets)
            if len(set(offsets)) < len(offsets):
                raise ValueError(f"{name} is {offsets}: expected each offset once")

    def seeded_recipe(self) -> tuning.Recipe:
        """Return the recipe of tuning with the study's seed.

        Raises:
            ValueError: no recipe was chosen yet.
        """
        if self.recipe is None:
            raise ValueError("these settings have no recipe: settings.for_model(lm) chooses the one for its size")
        return dataclasses.replace(self.recipe, seed=self.seed)

    @checked
    def for_model(self, lm: HookedLM) -> Settings:
        """Return these settings with a recipe: the chosen one, or the paper's for a model of this size."""
        return self if self.recipe is not None else dataclasses.replace(self, recipe=default_recipe(lm))

    def as_json(self) -> dict[str, Any]:
        """Return the settings as they are when they were written to JSON and read: with lists in place of tuples.

        Settings of a stage that is off by default are left out where it is off.
        """
        fields = dataclasses.asdict(self)
        if self.side_effects is not None:
            fields["side_effects"] = side_effects_settings.as_json(self.side_effects)
        for stage in OFF_BY_DEFAULT:
            if fields[stage] is None:
                del fields[stage]
        return json.loads(json.dumps(fields))


@checked
def pivot_of(parallel: Dataset, source_language: str) -> str:
    """Return the language from which translations are retrieved: the source language, if the sentences have it.

    Otherwise it is English. Rows of sentence and translation have English translations.

    Example:
        >>> parallel = xt.mini.parallel(n=2, languages=["en", "de"])
        >>> xt.study.settings.pivot_of(parallel, "de"), xt.study.settings.pivot_of(parallel, "es")
        ('de', 'en')
    """
    return source_language if source_language in parallel.column_names else "en"


@checked
def first_rows(table: Dataset, n: int) -> Dataset:
    """Return the first n rows of each language.

    Example:
        >>> xt.study.settings.first_rows(prompts, 1)["language"]
        Column(['en', 'es'])
    """
    counts: Counter[str] = Counter()
    rows = []
    for row, code in enumerate(table["language"]):
        if counts[code] < n:
            rows.append(row)
        counts[code] += 1
    return table.select(rows)
