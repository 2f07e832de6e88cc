"""Count the work of each stage before it runs: tokens, texts and bytes, and their seconds."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from xlingtox.checking import checked
from xlingtox.frontiers.strengths import N_STRENGTHS
from xlingtox.models.hooked import HookedLM
from xlingtox.study.frontier_settings import FrontierSettings
from xlingtox.study.plan import N_PROMOTED, samples_of_promoted
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.side_effects_settings import SideEffectsSettings
from xlingtox.study.sizes import Sizes
from xlingtox.tuning import Recipe
from xlingtox.tuning.recipe import WITH_REFERENCE

_READINGS = 11
"""About as often does a bisection read the held-out text before it proposes doses."""

_STATES = 0.3
"""To read the states of a token takes at least this share of reading it with its logits."""

_BACKWARD, _ATTRIBUTED, _PATCHED = 3.5, 6, 10
"""A pass with gradients takes so many times one without. An attribution takes about so many, and so many sets are
patched: the groups, and random ones beside two of them."""

_SEARCHED, _FITTED = 16, 4.0
"""About so many strengths of a method are read on half of the held-out texts before some are chosen; and a fit takes
about so many times reading its sentences."""

_ITEMS, _ITEM_TOKENS = 500, 400
"""About so many items has a task, and about so many tokens are read for an item with all of its choices."""

_PADDED = 2.3
"""TRL reads pairs in random order, padded to the longest of a batch. It takes so many times what sorted texts take."""


@checked
@dataclass(frozen=True)
class Shape:
    """The sizes of a model that costs depend on.

    Attributes:
        n_parameters, n_layers, d_model, d_mlp, n_vocab: the numbers of weights, layers, dimensions and tokens.
        weight_bytes: the memory of all weights as they are loaded.
        number_bytes: the bytes of one activation.
        device: "cpu", "cuda" or another kind of device.

    Example:
        >>> xt.study.costs.Shape.of(lm).n_parameters > 1_000_000
        True
    """

    n_parameters: int
    n_layers: int
    d_model: int
    d_mlp: int
    n_vocab: int
    weight_bytes: int
    number_bytes: int = 4
    device: str = "cpu"

    @classmethod
    @checked
    def of(cls, lm: HookedLM) -> Shape:
        """Return the shape of a loaded model."""
        unembedding = lm.unembedding()
        return cls(
            lm.n_parameters,
            lm.n_layers,
            lm.d_model,
            lm.d_mlp,
            len(unembedding),
            lm.weight_bytes,
            unembedding.element_size(),
            lm.device.type,
        )


@checked
@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a stage, in units that are counted before it runs.

    Attributes:
        written: tokens to write.
        read: tokens to read.
        judged: texts to score, and to look at for soundness.
        trained: tokens to tune on, forwards and backwards.
        saved: bytes to write to the disk.
        overhead: seconds of what depends on none of these, such as importing packages, and tests of significance.

    Example:
        >>> xt.study.costs.Work(written=10.0) + xt.study.costs.Work(written=5.0, judged=1.0)
        Work(written=15.0, read=0.0, judged=1.0, trained=0.0, saved=0.0, overhead=0.0)
    """

    written: float = 0.0
    read: float = 0.0
    judged: float = 0.0
    trained: float = 0.0
    saved: float = 0.0
    overhead: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in _UNITS})

    def __mul__(self, times: float) -> Work:
        return Work(**{name: getattr(self, name) * times for name in _UNITS})


_UNITS = tuple(unit.name for unit in dataclasses.fields(Work))


@checked
@dataclass(frozen=True, kw_only=True)
class Rates:
    """The seconds that one unit of each kind of work takes; the attributes are those of `Work`.

    Example:
        >>> xt.study.costs.Rates.guessed(xt.study.costs.Shape.of(lm)).read > 0
        True
    """

    written: float
    read: float
    judged: float
    trained: float
    saved: float = 1 / 3e8

    @classmethod
    @checked
    def guessed(cls, shape: Shape, *, operations: float | None = None) -> Rates:
        """Guess from the size of the model, where nothing was measured. Ratios of stages are better than seconds.

        Args:
            operations: how many multiplications and additions the device does in a second.
        """
        if operations is None:
            operations = _OPERATIONS.get(shape.device, _OPERATIONS["cpu"] * (os.cpu_count() or 1))
        # A small model waits for Python and for memory, and not for multiplications.
        read = max(2.0 * shape.n_parameters / operations, 2e-5)
        return cls(written=1.5 * read, read=read, judged=1e-4, trained=TRAINED * read)

    @checked
    def shared(self, n_processes: int) -> Rates:
        """Return the rates of several processes together, each with a device of its own.

        Batches of text are shared out. One process judges texts, tunes, and saves checkpoints, while the others wait.
        What the processes tell each other is not counted.

        Example:
            >>> rates = xt.study.costs.Rates(written=0.1, read=0.01, judged=0.0, trained=0.03)
            >>> rates.shared(2).written
            0.05
        """
        return dataclasses.replace(self, written=self.written / n_processes, read=self.read / n_processes)


_OPERATIONS = {"cuda": 1e14, "cpu": 3e10}
"""Operations a second that are reached: about a third of what an A100 does at best in 16 bits, which is a tenth of an
H100's best; and what one core of a CPU does."""

TRAINED = 3.0 * _PADDED
"""A token that is tuned on takes so many times a token that is read: there is a backward pass too, and padding."""


@checked
def seconds(work: Work, rates: Rates) -> float:
    """Return how many seconds some work takes at these rates.

    Example:
        >>> rates = xt.study.costs.Rates(written=0.1, read=0.01, judged=0.0, trained=0.03)
        >>> xt.study.costs.seconds(xt.study.costs.Work(written=10.0, read=100.0), rates)
        2.0
    """
    return work.overhead + sum(getattr(work, unit) * getattr(rates, unit) for unit in _UNITS if unit != "overhead")


@checked
def stage_costs(
    model: HookedLM | Shape,
    materials: Materials | Sizes,
    settings: Settings,
    *,
    stages: Sequence[str],
    recipe: Recipe,
) -> dict[str, Work]:
    """Count the work of each stage.

    Args:
        model: the model, or its shape where it is not loaded.
        materials: the data, or their sizes where they were counted already.
        stages: the stages that will be run.
        recipe: the recipe of tuning.

    Example:
        >>> sizes = xt.study.sizes.Sizes(prompts={"en": 10, "es": 10}, prompt_tokens=12.0)
        >>> work = xt.study.costs.stage_costs(
        ...     lm, sizes, xt.study.Settings(), stages=["promoted"], recipe=xt.tuning.MINI)
        >>> work["promoted"].written  # 4 samples of 20 tokens for each prompt
        1600.0
    """
    shape = model if isinstance(model, Shape) else Shape.of(model)
    if isinstance(materials, Materials):
        materials = Sizes.of(materials, model if isinstance(model, HookedLM) else None)
    stage = _Costs(shape, materials, settings, recipe)
    count: Mapping[str, Callable[[], Work]] = {
        "localize": stage.localize,
        "promoted": lambda: stage.sampled(samples_of_promoted(settings, stages)),
        "intervene": stage.intervene,
        "amplify": stage.amplify,
        "retrieve": lambda: Work(read=stage.states(materials.parallel), overhead=2.5),
        "tune": stage.tune,
        "compare": lambda: stage.compare(n_unwritten=_unwritten(settings, stages)),
        "predict": lambda: Work(overhead=2.0),
        "attribute": stage.attribute,
        "frontier": lambda: stage.frontier(tuned="tune" in stages),
        "side_effects": stage.side_effects,
        "judge": lambda: Work(overhead=0.1),
    }
    return {name: count[name]() for name in stages}


def evaluation_cost(shape: Shape, sizes: Sizes, settings: Settings, recipe: Recipe) -> Work:
    """Count the work of the evaluations while tuning, which is a part of the stage's."""
    return _Costs(shape, sizes, settings, recipe).evaluations()


@checked
def expected_seconds(
    lm: HookedLM, materials: Materials, settings: Settings, *, stages: Sequence[str], rates: Rates | None = None
) -> dict[str, float]:
    """Return how many seconds each stage is expected to take, for a line of progress.

    Args:
        settings: the settings, with a recipe.
        rates: what was measured; None guesses, so that only the ratios of the stages mean something.

    Example:
        >>> materials = xt.study.Materials(toxic_prompts=prompts, scorer=xt.mini.scorer())
        >>> settings = xt.study.Settings(recipe=xt.tuning.MINI)
        >>> list(xt.study.costs.expected_seconds(lm, materials, settings, stages=["promoted"]))
        ['promoted']
    """
    work = stage_costs(lm, materials, settings, stages=stages, recipe=settings.seeded_recipe())
    known = rates or Rates.guessed(Shape.of(lm))
    return {name: seconds(one, known) for name, one in work.items()}


def _unwritten(settings: Settings, stages: Sequence[str]) -> int:
    """Return of how many models the comparison's samples are not written in its stage."""
    if settings.engine is not None:
        return 2
    return int(settings.n_samples >= N_PROMOTED and "promoted" in stages)


@dataclass(frozen=True)
class _Costs:
    shape: Shape
    sizes: Sizes
    settings: Settings
    recipe: Recipe

    def greedily(self, n: int, tokens: float) -> Work:
        """Return the work of continuing n prompts, once each."""
        return Work(written=float(n * self.settings.max_new_tokens), read=n * tokens)

    def states(self, tokens: float) -> float:
        """Return how many tokens could be read in full while only the states of so many are read, without logits."""
        unembedding = self.shape.n_vocab * self.shape.d_model / max(1, self.shape.n_parameters)
        return tokens * max(_STATES, 1 - unembedding)

    def localize(self) -> Work:
        sizes, shape, settings = self.sizes, self.shape, self.settings
        n_source = sizes.prompts.get(settings.source_language, 0)
        # The words of the candidates, and of those of as many shuffled probes and weights, are read off.
        vectors = settings.k * (2 * settings.n_null + 20)
        unembedded = vectors * shape.n_vocab * shape.d_model / max(1, shape.n_parameters)
        read = self.states(sizes.labelled + sizes.elsewhere) + unembedded
        return Work(read=read, overhead=2.0) + self.greedily(n_source, sizes.prompt_tokens)

    def sampled(self, n_samples: int) -> Work:
        """Return the work of writing samples of each prompt."""
        sizes = self.sizes
        n = sizes.n_prompts
        return Work(written=float(n_samples * n * self.settings.max_new_tokens), read=n * sizes.prompt_tokens)

    def intervene(self) -> Work:
        sizes, settings = self.sizes, self.settings
        return self._doses(sizes.prompts, sizes.prompt_tokens, settings.offsets, settings.n_random)

    def amplify(self) -> Work:
        sizes, settings = self.sizes, self.settings
        return self._doses(sizes.neutral, sizes.neutral_tokens, settings.amplifications, settings.n_random_amplified)

    def _doses(self, prompts: Mapping[str, int], tokens: float, offsets: Sequence[float] | None, n_random: int) -> Work:
        settings, held_out = self.settings, Work(read=self.sizes.held_out)
        n = sum(min(count, settings.dose_prompts) for count in prompts.values())
        n_doses = settings.n_doses - 1 if offsets is None else sum(1 for offset in offsets if offset)
        n_responses = 1 + n_doses * (1 + n_random)
        n_texts = n * (settings.dose_samples or 1)
        response = self.judged(n_texts, n, tokens) + held_out
        # The neurons' activations are read while the model writes.
        before = self.greedily(n, tokens) * (2 if offsets is None else 1) + held_out
        proposed = held_out * (_READINGS if offsets is None else 0)
        return response * n_responses + before + proposed + Work(overhead=0.3 * n_responses)

    def judged(self, n_texts: int, n_prompts: int, tokens: float) -> Work:
        """Return the work of writing texts, of finding how likely each is after its prompt, and of scoring it."""
        new = self.settings.max_new_tokens
        return Work(
            written=float(n_texts * new), read=n_prompts * tokens + n_texts * (tokens + new), judged=float(n_texts)
        )

    def compare(self, *, n_unwritten: int = 0) -> Work:
        """Count the work of the comparison.

        Args:
            n_unwritten: of how many models the samples are not written in this stage.
        """
        sizes, n = self.sizes, self.sizes.n_prompts
        side = self.judged(n * self.settings.n_samples, n, sizes.prompt_tokens) + Work(read=sizes.held_out)
        # Each side's activations on its own text. Then the prompts for their ends, and the text that both models read.
        greedy = self.greedily(n, sizes.prompt_tokens) * 2
        rest = Work(read=n * (3 * sizes.prompt_tokens + self.settings.max_new_tokens), overhead=5.0)
        return side * 2 + greedy + rest + self.sampled(self.settings.n_samples) * -float(n_unwritten)

    def attribute(self) -> Work:
        """Count the passes over one half of the prompts with gradients, and over the other under each patch."""
        sizes, few = self.sizes, self.settings.attribution_prompts
        n_half = sum(min(count, few) for count in sizes.prompts.values()) / 2
        tokens = n_half * (sizes.prompt_tokens + self.settings.max_new_tokens)
        # A patched run reads the text with both models. Toxic and sound continuations are patched alike.
        patched = 2 * tokens * (2 + 2 * _PATCHED)
        return Work(read=tokens * _BACKWARD * _ATTRIBUTED + patched, overhead=2.0)

    def frontier(self, *, tuned: bool) -> Work:
        """Count the fits of all methods, the search for their strengths, and the text that is written at each."""
        sizes, settings = self.sizes, self.settings.frontier or FrontierSettings()
        n_methods, n_languages = len(settings.chosen(tuned=tuned)), max(1, len(sizes.prompts))
        n_prompts = sum(min(count, settings.prompts) for count in sizes.prompts.values())
        held_out, parallel = (
            tokens * min(1.0, settings.texts * n_languages / max(1, n_texts))
            for tokens, n_texts in ((sizes.held_out, sizes.n_held_out), (sizes.parallel, sizes.n_parallel))
        )
        labelled = sizes.labelled * min(1.0, settings.sentences / max(1, sizes.n_labelled))
        # What is known is read off a sentence with its translation and with another one.
        response = self.judged(n_prompts * settings.n_samples, n_prompts, sizes.prompt_tokens)
        response += Work(read=held_out + 4 * parallel)
        method = response * N_STRENGTHS + Work(read=_FITTED * labelled + _SEARCHED * held_out / 2, overhead=1.0)
        return response + method * n_methods + Work(overhead=2.0)

    def side_effects(self) -> Work:
        """Count what both models write and read; how many items a task has is guessed where no limit says it."""
        sizes, settings = self.sizes, self.settings
        asked = settings.side_effects or SideEffectsSettings()
        n_neutral = sum(sizes.neutral.values()) if asked.neutral_prompts else 0
        n_texts = (n_neutral + sizes.n_requests) * asked.n_samples
        read = n_neutral * sizes.neutral_tokens + sizes.requests + (sizes.held_out if asked.held_out else 0.0)
        tasks = len(asked.listed) * (asked.limit or _ITEMS) * _ITEM_TOKENS
        side = Work(written=float(n_texts * settings.max_new_tokens), read=read + tasks, judged=float(n_texts))
        return side * 2 + Work(overhead=5.0 if asked.tasks is None else 30.0)

    def tune(self) -> Work:
        recipe, (n_train, n_validation) = self.recipe, self.split_pairs()
        n_steps, tokens = steps_of(recipe, n_train), self.pair_tokens()
        pairs_seen = n_steps * recipe.batch_size * recipe.accumulation
        best = bool(n_validation) and recipe.patience is not None
        saves = n_steps // (recipe.evaluate_every if best else recipe.save_every)
        again = 4 / 3 if recipe.gradient_checkpointing else 1.0
        n_referred = min(n_train, pairs_seen) + n_validation if recipe.method in WITH_REFERENCE else 0
        return self.evaluations() + Work(
            trained=pairs_seen * tokens * again,
            read=n_referred * tokens * _PADDED,
            saved=float(saves * checkpoint_bytes(self.shape, recipe) + self.shape.weight_bytes),
            overhead=8.0,
        )

    def evaluations(self) -> Work:
        """Return the work of all evaluations on the validation pairs."""
        n_train, n_validation = self.split_pairs()
        times = steps_of(self.recipe, n_train) // self.recipe.evaluate_every
        return Work(read=times * n_validation * self.pair_tokens() * _PADDED)

    def pair_tokens(self) -> float:
        """Return the tokens of both sides of a pair, each with the prompt, as far as they are read."""
        return min(self.sizes.pair_tokens, 2.0 * self.recipe.max_length)

    def split_pairs(self) -> tuple[int, int]:
        """Return how many pairs are tuned on, and how many are for validation."""
        sizes, share = self.sizes, self.recipe.validation_share
        if sizes.n_validation or not share:
            return sizes.n_pairs, sizes.n_validation
        held = max(1, round(share * sizes.n_pairs)) if sizes.n_pairs else 0
        return sizes.n_pairs - held, held


def steps_of(recipe: Recipe, n_pairs: int) -> int:
    """Return the most optimizer steps that a recipe does on so many pairs; with patience it may stop before."""
    if recipe.steps is not None:
        return recipe.steps
    assert recipe.epochs is not None
    return max(1, math.ceil(recipe.epochs * n_pairs / (recipe.batch_size * recipe.accumulation)))


def adapter_parameters(shape: Shape, recipe: Recipe) -> int:
    """Return about how many weights are tuned: all, or those of an adapter on every linear layer."""
    if recipe.lora is None:
        return shape.n_parameters
    # Four projections of attention and about three of an MLP, each with two thin matrices.
    return shape.n_layers * recipe.lora.rank * (8 * shape.d_model + 3 * (shape.d_model + shape.d_mlp))


def optimizer_numbers(name: str) -> float:
    """Return how many numbers an optimizer keeps for each weight, in 32 bits."""
    if "adafactor" in name or name == "sgd":
        return 0.1
    kept = 1.0 if any(part in name for part in ("rmsprop", "lion", "adagrad", "sgd")) else 2.0
    return kept / 4 if "8bit" in name else kept


def checkpoint_bytes(shape: Shape, recipe: Recipe) -> int:
    """Return the size of one checkpoint while tuning: weights in 32 bits, and the optimizer's numbers."""
    return int(4 * adapter_parameters(shape, recipe) * (1 + optimizer_numbers(recipe.optimizer)))
