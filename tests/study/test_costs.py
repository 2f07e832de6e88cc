"""What the stages of a study cost, next to what they really write, score, keep and save."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from toys import HashScorer

import xlingtox as xt
from xlingtox.evaluation.dose_response import dose_response
from xlingtox.evaluation.metrics import sign_flip_test
from xlingtox.models import generation
from xlingtox.study import costs, power, space
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.sizes import Sizes
from xlingtox.tuning import MINI, PAPER_FULL, PAPER_QLORA, Recipe

TEXTS = {"en": ["the cat sat", "the dog ran", "the house"], "es": ["la casa es", "el gato", "la cama es grande"]}
PROMPTS = Dataset.from_list([{"language": code, "prompt": text} for code, texts in TEXTS.items() for text in texts])
HELD_OUT = Dataset.from_list([{"language": code, "text": text} for code, texts in TEXTS.items() for text in texts])
SIZES = Sizes(prompts={"en": 3, "es": 3}, prompt_tokens=4.0, n_pairs=100, pair_tokens=40.0)


class Counting(HashScorer):
    n_texts = 0

    def score(self, texts, languages):
        self.n_texts += len(texts)
        return super().score(texts, languages)


@pytest.fixture
def written(monkeypatch):
    """The tokens that models wrote, counted where they are chosen; no text ends early."""
    steps = []
    decode = generation.decode

    def counting(*args, **options):
        tokens, counts = decode(*args, **options | {"stop_at_end": False})
        steps.append(counts.numel())
        return tokens, counts

    monkeypatch.setattr(generation, "decode", counting)
    monkeypatch.setattr("xlingtox.neurons.greedy.decode", counting)
    return steps


def test_a_dose_response_writes_and_scores_as_much_as_was_foretold(lm, written):
    settings = Settings(offsets=(0.0, -1.0, -2.0), n_random=2, dose_prompts=2, dose_samples=3, max_new_tokens=5)
    scorer = Counting("en", "es")
    few = xt.study.settings.first_rows(PROMPTS, 2)
    options = {"n_samples": 3, "max_new_tokens": 5, "n_random": 2, "progress": False}
    dose_response(
        lm, xt.NeuronSet.of([(0, 1), (1, 2)]), settings.offsets, few, scorer=scorer, held_out=HELD_OUT, **options
    )
    work = costs.stage_costs(lm, SIZES, settings, stages=["intervene"], recipe=MINI)["intervene"]
    assert work.judged == scorer.n_texts
    assert work.written == sum(written)


def test_a_comparison_writes_and_scores_as_much_as_was_foretold(lm, written):
    scorer = Counting("en", "es")
    settings = Settings(n_samples=6, max_new_tokens=5)
    options = {"n_samples": 6, "max_new_tokens": 5, "n_random": 2, "held_out": HELD_OUT, "progress": False}
    other = xt.Offset(xt.NeuronSet.of([(0, 1)]), -1.0).bake(lm)
    xt.compare(lm, other, PROMPTS, neurons=xt.NeuronSet.of([(0, 1), (1, 2)]), scorer=scorer, **options)
    work = costs.stage_costs(lm, SIZES, settings, stages=["compare"], recipe=MINI)["compare"]
    assert work.judged == scorer.n_texts
    assert work.written == sum(written)


def test_sizes_are_those_of_the_tables(lm):
    pairs = Dataset.from_list([{"prompt": "the cat", "chosen": " sat", "rejected": " ran away"}] * 7)
    labelled = Dataset.from_list([{"text": "the house", "label": i % 2} for i in range(1000)])
    parallel = Dataset.from_dict({"en": TEXTS["en"], "es": TEXTS["es"]})
    materials = Materials(
        toxic_prompts=PROMPTS, scorer=HashScorer("en", "es"), pairs=pairs, labelled=labelled, parallel=parallel
    )
    sizes = Sizes.of(materials, lm)
    length = {text: len(lm.token_ids([text])[0]) for text in ("the house", "the cat", " sat", " ran away")}
    assert sizes.prompts == {"en": 3, "es": 3}
    assert sizes.labelled == 1000 * length["the house"]
    assert sizes.pair_tokens == 2 * length["the cat"] + length[" sat"] + length[" ran away"]
    everything = [text for texts in TEXTS.values() for text in texts]
    assert sizes.parallel == sum(map(len, lm.token_ids(everything))) == sizes.prompt_tokens * 6
    assert (sizes.n_pairs, sizes.n_labelled, sizes.n_parallel, sizes.n_validation) == (7, 1000, 6, 0)
    # Without a model, tokens are guessed from letters.
    assert Sizes.of(materials).labelled == 1000 * math.ceil(len("the house") / 3)


@pytest.mark.parametrize(
    ("recipe", "steps", "trained"),
    [
        (Recipe(steps=10, batch_size=4, learning_rate=0.1), 10, 10 * 4 * 40),
        (Recipe(epochs=3, batch_size=4, learning_rate=0.1), 75, 3 * 100 * 40),
        (Recipe(epochs=2, batch_size=1, accumulation=4, learning_rate=0.1, max_length=10), 50, 2 * 100 * 20),
    ],
)
def test_steps_and_tokens_of_tuning(lm, recipe, steps, trained):
    assert costs.steps_of(recipe, 100) == steps
    work = costs.stage_costs(lm, SIZES, Settings(), stages=["tune"], recipe=recipe)["tune"]
    assert work.trained == trained
    with_validation = dataclasses.replace(SIZES, n_validation=10)
    more = costs.stage_costs(lm, with_validation, Settings(), stages=["tune"], recipe=recipe)["tune"]
    evaluations = costs.evaluation_cost(costs.Shape.of(lm), with_validation, Settings(), recipe)
    assert more.read > work.read
    assert evaluations.read <= more.read - work.read
    assert (evaluations.read > 0) == (steps >= recipe.evaluate_every)


def test_only_some_methods_have_a_reference_and_it_reads_what_is_visited(lm):
    def read(**more):
        recipe = Recipe(batch_size=4, learning_rate=0.1, **more)
        return costs.stage_costs(lm, SIZES, Settings(), stages=["tune"], recipe=recipe)["tune"].read

    assert read(steps=10, method="sft") == read(steps=10, method="orpo") == 0
    assert read(steps=10) * 100 == pytest.approx(40 * read(epochs=2))


def test_rows_of_a_batch_take_what_the_model_says(lm):
    shape = costs.Shape.of(lm)
    assert (shape.n_parameters, shape.weight_bytes) == (lm.n_parameters, 4 * lm.n_parameters)
    assert space.row_bytes(shape, 30, predicted=7) == lm.row_bytes(30, predicted=7)


@pytest.mark.parametrize(("name", "optimizer"), [("rmsprop", torch.optim.RMSprop), ("adamw_torch", torch.optim.AdamW)])
def test_optimizers_keep_as_many_numbers_as_was_foretold(name, optimizer):
    weight = torch.nn.Parameter(torch.zeros(1000))
    stepped = optimizer([weight], lr=0.1)
    weight.grad = torch.ones(1000)
    stepped.step()
    kept = sum(value.numel() for value in stepped.state[weight].values() if value.numel() > 1)
    assert kept == 1000 * costs.optimizer_numbers(name)


def test_a_tuned_checkpoint_takes_as_much_disk_as_was_foretold(lm, tmp_path):
    recipe = Recipe(steps=2, batch_size=2, learning_rate=1e-4, save_every=1, optimizer="rmsprop")
    pairs = Dataset.from_list(
        [{"prompt": "the cat", "chosen": f" sat {word}", "rejected": f" ran {word}"} for word in ("on", "away", "and")]
    )
    xt.tune_dpo(lm, pairs, output_dir=tmp_path / "tuned", recipe=recipe, progress=False)
    weights = (tmp_path / "tuned" / "model.safetensors").stat().st_size
    shape = costs.Shape.of(lm)
    stays, most = space.stage_disk(shape, SIZES, Settings(), stages=["tune"], recipe=recipe)["tune"]
    assert weights == pytest.approx(stays, rel=0.1)
    assert most == stays + 3 * 2 * shape.weight_bytes


def test_an_adapter_takes_less_than_all_weights():
    large = xt.study.weights.known("meta-llama/Meta-Llama-3-8B").shape
    full, adapter = (space.tuning_bytes(large, SIZES, recipe) for recipe in (PAPER_FULL, PAPER_QLORA))
    # In full: a weight, its gradient and the optimizer's number, in 32 bits each.
    assert full > 3 * 4 * large.n_parameters
    # Half a byte a weight, and 16 bits for embeddings: it fits a GPU of 24 GB.
    assert large.n_parameters / 2 < adapter < 24e9


def test_processes_share_all_but_saving_and_what_depends_on_no_device():
    work = costs.Work(written=8.0, read=8.0, judged=8.0, trained=8.0, saved=8.0, overhead=5.0)
    rates = costs.Rates(written=2.0, read=3.0, judged=5.0, trained=7.0, saved=11.0)
    assert costs.seconds(work, rates.shared(4)) == 5 + 8 * (5 + 7 + 11) + 2 * (2 + 3)
    assert rates.shared(1) == rates


def test_seconds_are_sums_and_larger_models_take_longer(lm):
    rates = costs.Rates(written=2.0, read=3.0, judged=5.0, trained=7.0, saved=11.0)
    work = costs.Work(written=1.0, read=1.0, judged=1.0, trained=1.0, saved=1.0, overhead=1.0)
    assert costs.seconds(work, rates) == 2 + 3 + 5 + 7 + 11 + 1
    assert costs.seconds(work * 2 + work, rates) == 3 * 29
    small, large = (costs.Rates.guessed(shape) for shape in (costs.Shape.of(lm), *_papers()))
    assert large.read > small.read
    materials = Materials(toxic_prompts=PROMPTS, scorer=HashScorer("en", "es"))
    expected = costs.expected_seconds(lm, materials, Settings(recipe=MINI), stages=["promoted", "compare"])
    assert expected["compare"] > expected["promoted"] > 0


def _papers():
    return [dataclasses.replace(xt.study.weights.known("ai-forever/mGPT").shape, device="cpu")]


@pytest.mark.parametrize(("agreement", "mean", "n_samples"), [(0.5, 0.02, 25), (2, 0.1, 5), (5, 0.05, 2), (1, 0.5, 4)])
def test_so_many_prompts_show_a_halving_four_times_in_five(agreement, mean, n_samples):
    """Prompts that differ as in a beta distribution, and a model after which every second toxic text is clean."""
    rng = np.random.default_rng(0)
    toxicity = rng.beta(agreement, agreement * (1 - mean) / mean, 20_000)
    tried = rng.binomial(1, toxicity[:, None].repeat(4, 1)).astype(float)
    n = int(power.prompts_needed(power.Spread.of(tried), n_samples=n_samples))
    found = 0
    for seed in range(150):
        prompts = rng.choice(toxicity, n)
        before, after = (rng.binomial(n_samples, chance) / n_samples for chance in (prompts, prompts / 2))
        found += sign_flip_test(before, after, n_resamples=200, seed=seed) < 0.05
    assert 0.7 < found / 150 < 0.97
    half_as_many = power.prompts_needed(power.Spread.of(tried), n_samples=n_samples, power=0.5)
    assert half_as_many < n


def test_where_nothing_is_toxic_no_number_of_prompts_is_enough():
    assert power.prompts_needed(power.Spread.of(np.zeros((10, 4))), n_samples=25) == math.inf
    rare, often = (power.prompts_needed(power.Spread.rare(mean), n_samples=1) for mean in (0.001, 0.1))
    assert rare > 50 * often
