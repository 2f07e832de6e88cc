"""Attribution against plain PyTorch: gradients, single patches, and sums that must be complete, in every family."""

import copy
from functools import cache

import families
import pytest
import raw
import torch
from scipy.stats import spearmanr

from xlingtox.evaluation.components import ALL, Components
from xlingtox.evaluation.continuation_rows import WeightedRow
from xlingtox.evaluation.effects import Path
from xlingtox.evaluation.row_measures import LogProbability
from xlingtox.models.hooked import HookedLM

ROWS = [
    WeightedRow(0, "en", [40, 41, 42, 43, 44, 45], 3),
    WeightedRow(1, "es", [50, 51, 52, 53], 2, 0.5),
    WeightedRow(1, "es", [50, 51, 60, 61, 62], 2, 0.5),
]


@cache
def pair(name, dtype=torch.float32):
    """A random model, and the same with all weights a little changed."""
    base = families.build(name).to(dtype)
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator).to(dtype))
    return base, tuned


@pytest.fixture(params=families.LAYOUTS)
def family(request, tokenizer):
    # XGLM masks with a number that only 32 bits hold.
    models = pair(request.param, torch.float32 if request.param == "xglm" else torch.float64)
    return request.param, *models, *(HookedLM.load(model, tokenizer=tokenizer) for model in models)


def alone(lm, tuned_lm, kinds, row, steps=1):
    """The effects for one text by itself, without padding."""
    return Path(lm, tuned_lm, LogProbability(), Components.of(lm, tuned_lm, kinds)).effects([row], steps)


def log_probability(model, row):
    """From Hugging Face's own logits of one text alone."""
    chances = raw.forward(model, torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return sum(float(chances[i - 1, row.ids[i]]) for i in range(row.begin, len(row.ids)))


def outs(model, name):
    return [families.out(model, name, layer) for layer in range(families.N_LAYERS)]


def downs(model, name):
    return [families.down(model, name, layer) for layer in range(families.N_LAYERS)]


def inputs(model, modules, row):
    """What each module reads of one text."""
    seen = [None] * len(modules)

    def watch(place):
        return lambda _, args: seen.__setitem__(place, args[0].detach().clone())

    with raw.hooked([module.register_forward_pre_hook(watch(i)) for i, module in enumerate(modules)]):
        raw.forward(model, torch.tensor([row.ids]))
    return seen


def patched(model, modules, values, row):
    """The log-probability of one text when these modules read other values (None: their own)."""

    def read(value):
        return lambda _, args: None if value is None else (value,)

    handles = [module.register_forward_pre_hook(read(value)) for module, value in zip(modules, values, strict=True)]
    with raw.hooked(handles):
        return log_probability(model, row)


def moved(before, after, columns):
    value = before.clone()
    value[..., columns] = after[..., columns]
    return value


def test_all_components_make_up_the_whole_change_in_every_family(family):
    name, base, tuned, lm, tuned_lm = family
    kinds = [kind for kind in ALL if kind != "biases" or downs(base, name)[0].bias is not None]
    for row in ROWS:
        effects = alone(lm, tuned_lm, kinds, row, None)
        change = log_probability(tuned, row) - log_probability(base, row)
        tolerance = 1e-9 if name != "xglm" else 1e-4
        assert float(effects.tuned - effects.base) == pytest.approx(change, abs=tolerance)
        assert float(effects.patched - effects.base) == pytest.approx(change, abs=tolerance)
        assert sum(float(part.sum()) for part in effects.integrated.values()) == pytest.approx(change, rel=0.01)


def test_texts_padded_in_a_batch_have_the_effects_that_they_have_alone(family, tokenizer):
    name = family[0]
    lm, tuned_lm = (HookedLM.load(model, tokenizer=tokenizer) for model in pair(name))
    kinds = [kind for kind in ALL if kind != "biases" or downs(family[1], name)[0].bias is not None]
    together = Path(lm, tuned_lm, LogProbability(), Components.of(lm, tuned_lm, kinds)).effects(ROWS, 2)
    for number, row in enumerate(ROWS):
        by_itself = alone(lm, tuned_lm, kinds, row, 2)
        for part in ("linear", "integrated"):
            for place, effects in getattr(together, part).items():
                torch.testing.assert_close(effects[number], getattr(by_itself, part)[place][0], atol=1e-4, rtol=1e-3)


def test_the_linear_estimate_is_the_gradient_times_the_difference(family, monkeypatch):
    """Finite differences along the difference of one neuron or one head, in float64, alone and unpadded."""
    name, base, tuned, lm, tuned_lm = family
    # Norms and attention compute in 32 bits whatever the model's dtype, which would blur the differences.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    estimates = [alone(lm, tuned_lm, ["neurons", "heads"], row).linear for row in ROWS[:2]]
    step, tolerance = (1e-4, 1e-6) if name != "xglm" else (1e-2, 2e-3)
    for site, modules_of, unit in (("neurons", downs, 7), ("heads", outs, 2)):
        width = 1 if site == "neurons" else modules_of(base, name)[0].weight.numel() // families.D_MODEL // 4
        columns = list(range(unit * width, (unit + 1) * width))
        modules = modules_of(base, name)
        for number, row in enumerate(ROWS[:2]):
            before, after = inputs(base, modules, row), inputs(tuned, modules_of(tuned, name), row)
            for layer in (0, families.N_LAYERS - 1):
                ends = []
                for sign in (step, -step):
                    values = [None] * len(modules)
                    target = before[layer] + sign * (after[layer] - before[layer])
                    values[layer] = moved(before[layer], target, columns)
                    ends.append(patched(base, modules, values, row))
                expected = (ends[0] - ends[1]) / (2 * step)
                assert float(estimates[number][site, layer][0, unit]) == pytest.approx(expected, abs=tolerance)


def test_all_neurons_patched_is_a_plain_patch_and_the_integrated_estimates_add_up_to_it(family):
    name, base, tuned, lm, tuned_lm = family
    for row in ROWS:
        effects = alone(lm, tuned_lm, ["neurons"], row, 16)
        values = inputs(tuned, downs(tuned, name), row)
        expected = patched(base, downs(base, name), values, row) - log_probability(base, row)
        assert float(effects.patched - effects.base) == pytest.approx(expected, abs=1e-9 if name != "xglm" else 1e-4)
        given = sum(float(part.sum()) for part in effects.integrated.values())
        assert given == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_models_in_16_bits_are_attributed_in_32(tokenizer):
    models = [HookedLM.load(model, tokenizer=tokenizer) for model in pair("llama")]
    in_16_bits = [HookedLM.load(model, tokenizer=tokenizer, dtype=torch.bfloat16) for model in pair("llama")]
    path, rounded = (
        Path(*both, LogProbability(), Components.of(*both, ["neurons", "heads"])) for both in (models, in_16_bits)
    )
    effects, in_bfloat16 = path.effects(ROWS, None), rounded.effects(ROWS, None)
    assert in_bfloat16.steps <= 16
    for place, values in in_bfloat16.linear.items():
        assert values.dtype == torch.float32
        assert spearmanr(values.flatten(), effects.linear[place].flatten()).statistic > 0.9, place


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_linear_estimates_order_neurons_and_heads_as_exact_patching(name, tokenizer):
    base, tuned = pair(name, torch.float64)
    lm, tuned_lm = (HookedLM.load(model, tokenizer=tokenizer) for model in (base, tuned))
    row = ROWS[0]
    effects = alone(lm, tuned_lm, ["neurons", "heads"], row)
    for site, modules_of, n_units in (("neurons", downs, 40), ("heads", outs, 4)):
        modules, exact, estimated = modules_of(base, name), [], []
        before, after = inputs(base, modules, row), inputs(tuned, modules_of(tuned, name), row)
        plain, width = log_probability(base, row), before[0].shape[-1] // n_units
        for layer in range(families.N_LAYERS):
            for unit in range(n_units):
                values = [None] * len(modules)
                columns = list(range(unit * width, (unit + 1) * width))
                values[layer] = moved(before[layer], after[layer], columns)
                exact.append(patched(base, modules, values, row) - plain)
                estimated.append(float(effects.linear[site, layer][0, unit]))
        assert spearmanr(exact, estimated).statistic > 0.95
