"""Tuning some neurons only, or all but them: what lies outside the part stays bit by bit, and the rest is trained."""

import dataclasses

import families
import pytest
import torch
from preferences import PAIRS, RECIPE, Interrupted
from safetensors.torch import load_file
from test_resuming import interrupt
from torch.nn.functional import logsigmoid
from torch.nn.utils import clip_grad_norm_

from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import Lora, Recipe, part, tune
from xlingtox.tuning.part import TrainedPart, check_part, mask_gradients, trained_part
from xlingtox.tuning.run_folder import RunFolder

FAMILIES = ["gpt2", "llama", "llama tied, biased", "phi3", "gemma2", "bloom"]
CHOSEN = {0: [3, 17, 38], 2: [0, 39]}
NEURONS = NeuronSet.of([(layer, index) for layer, indices in reversed(CHOSEN.items()) for index in indices])


def by_hand(name, model):
    """Which entries of each weight belong to the neurons, from the families' own layouts."""
    masks = {weight: torch.zeros_like(tensor, dtype=torch.bool) for weight, tensor in model.named_parameters()}
    layout, width = families.LAYOUTS[name], families.d_mlp(name)
    for layer, indices in CHOSEN.items():
        block = layout.block.format(layer)
        readers = {layout.key: indices}
        if layout.up == layout.key:
            readers[layout.key] = indices + [index + width for index in indices]
        elif layout.up is not None:
            readers[layout.up] = indices
        for path, places in readers.items():
            weight = masks[f"{block}.{path}.weight"]
            (weight.T if name == "gpt2" else weight)[places] = True
            if f"{block}.{path}.bias" in masks:
                masks[f"{block}.{path}.bias"][places] = True
        weight = masks[f"{block}.{layout.down}.weight"]
        (weight if name == "gpt2" else weight.T)[indices] = True
    return masks


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int32)


def check_changed(before, after, masks, kind):
    """Outside the part nothing has changed, not even the sign of a zero; inside it nearly everything has."""
    n_inside = n_changed = 0
    for name, mask in masks.items():
        trained = mask if kind == "only" else ~mask
        changed = bits(before[name]) != bits(after[name])
        assert not changed[~trained].any(), name
        n_inside, n_changed = n_inside + int(trained.sum()), n_changed + int(changed.sum())
    assert 0.75 * n_inside < n_changed <= n_inside


@pytest.fixture(scope="module")
def lms(tokenizer):
    return {name: HookedLM.load(families.build(name), tokenizer=tokenizer) for name in FAMILIES}


@pytest.mark.parametrize("kind", ["only", "all but"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_a_plain_loop_changes_the_part_alone(lms, name, kind, optimizer):
    lm = lms[name]
    trained, model = TrainedPart(NEURONS, kind), lm.unwrapped()
    model.requires_grad_(True)
    mask_gradients(model, trained.places(lm), kind)
    before = {weight: tensor.clone() for weight, tensor in model.named_parameters()}
    options = {"weight_decay": 0.0} if optimizer is torch.optim.AdamW else {}
    stepper = optimizer([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3, **options)
    ids = torch.arange(2, 26).reshape(2, 12) * 7 % 300
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad()
    check_changed(before, dict(model.named_parameters()), by_hand(name, model), kind)


def loss_by_hand(policy, reference, tokenizer):
    """DPO's loss over the pairs, with the end of text after each side."""

    def log_p(model, prompt, side):
        n = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + side)["input_ids"] + [0]])
        chances = model(input_ids=ids).logits[0].log_softmax(-1)
        return sum(chances[i - 1, ids[0, i]] for i in range(n, ids.shape[1]))

    losses = []
    for row in PAIRS:
        chosen, rejected = (
            log_p(policy, row["prompt"], row[side]) - log_p(reference, row["prompt"], row[side]).detach()
            for side in ("chosen", "rejected")
        )
        losses.append(-logsigmoid(RECIPE.beta * (chosen - rejected)))
    return sum(losses) / len(losses)


ONE_STEP = Recipe(
    steps=1, batch_size=4, learning_rate=1.0, warm_up=0, max_length=32, end_token=True, optimizer="sgd",
    max_grad_norm=0.01,
)  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "all but"), ("phi3", "only")])
def test_one_step_is_that_of_a_hand_masked_loop(lms, tokenizer, tmp_path, name, kind):
    """The norm to which gradients are clipped is that of the part: it is far below the norm of the whole here."""
    lm = lms[name]
    neurons = {"only": "only", "all but": "frozen"}[kind]
    tune(lm, PAIRS, output_dir=tmp_path, recipe=ONE_STEP, progress=False, **{neurons: NEURONS})
    model, masks = lm.unwrapped(), by_hand(name, lm.unwrapped())
    loss_by_hand(model, lm.unwrapped(), tokenizer).backward()
    trained = {weight: mask if kind == "only" else ~mask for weight, mask in masks.items()}
    gradients = {weight: tensor.grad * trained[weight] for weight, tensor in model.named_parameters()}
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert norm > ONE_STEP.max_grad_norm
    saved = load_file(tmp_path / "model.safetensors")
    for weight, tensor in model.named_parameters():
        expected = tensor - gradients[weight] * ONE_STEP.max_grad_norm / norm
        torch.testing.assert_close(saved[weight], expected, atol=1e-6, rtol=1e-5)
    check_changed(dict(model.named_parameters()), saved, masks, kind)


def test_a_run_of_a_part_resumes_and_refuses_another_part(lms, tmp_path, monkeypatch):
    lm, recipe = lms["llama"], dataclasses.replace(RECIPE, steps=3, save_every=1, method="kto")
    recipe = dataclasses.replace(recipe, gradient_checkpointing=True, optimizer="adamw_torch")
    how = {"recipe": recipe, "progress": False}
    whole = tune(lm, PAIRS, output_dir=tmp_path / "whole", only=NEURONS, **how)
    with monkeypatch.context() as patched:
        interrupt(patched, 2)
        with pytest.raises(Interrupted):
            tune(lm, PAIRS, output_dir=tmp_path / "cut", only=NEURONS, **how)
    same = NeuronSet.of(reversed(NEURONS.neurons), scores=[0.5] * len(NEURONS))
    resumed = tune(lm, PAIRS, output_dir=tmp_path / "cut", only=same, **how)
    assert resumed.fingerprint() == whole.fingerprint() != lm.fingerprint()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    check_changed(
        lm.plain_weights(), load_file(tmp_path / "cut" / "model.safetensors"), by_hand("llama", lm.unwrapped()), "only"
    )
    for other in ({"only": NEURONS - NeuronSet.of([(2, 39)])}, {"frozen": NEURONS}, {}):
        with pytest.raises(ValueError, match=r"another run \(other trained_part\)"):
            tune(lm, PAIRS, output_dir=tmp_path / "cut", **other, **how)


def test_an_older_record_is_one_of_all_weights(tmp_path):
    """Records of earlier versions say nothing of a part."""
    record = {"recipe": {"steps": 1}, "model": {"fingerprint": "a"}}
    assert not RunFolder(tmp_path).claimed(record)
    assert not RunFolder(tmp_path).claimed(record | {"trained_part": None})
    with pytest.raises(ValueError, match=r"another run \(other trained_part\)"):
        RunFolder(tmp_path).claimed(record | {"trained_part": TrainedPart(NEURONS, "only").record()})


EMPTY = NeuronSet.of([])


@pytest.mark.parametrize(
    ("sets", "recipe", "words"),
    [
        ({"only": NEURONS, "frozen": NEURONS}, {}, "only and frozen are both given: give one"),
        ({"only": EMPTY}, {}, "only is an empty set of neurons: give at least one, or leave only out"),
        ({"frozen": EMPTY}, {}, "frozen is an empty set of neurons"),
        ({"only": NeuronSet.of([(3, 0)])}, {}, r"neuron \(3, 0\) is outside the model"),
        ({"frozen": NeuronSet.of([(0, 40)])}, {}, r"neuron \(0, 40\) is outside the model"),
        ({"only": NeuronSet.of([(0, 1)], site="heads")}, {}, "is a set of heads: expected neurons"),
        ({"only": NEURONS}, {"lora": Lora(rank=2, bits=None)}, "the recipe has lora, which changes whole matrices"),
        ({"frozen": NEURONS}, {"optimizer": "lion_32bit"}, "the optimizer 'lion_32bit' is not known to leave"),
    ],
)
def test_what_cannot_be_exact_is_refused_before_any_work(lms, tmp_path, sets, recipe, words):
    recipe = dataclasses.replace(RECIPE, **recipe)
    with pytest.raises(ValueError, match=words) as refusal:
        tune(lms["gpt2"], PAIRS, output_dir=tmp_path / "out", recipe=recipe, progress=False, **sets)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_sharded_weights_and_quantised_models_are_refused(lms, monkeypatch):
    trained = trained_part(NEURONS, None)
    monkeypatch.setattr(part.launch, "sharded", lambda: True)
    with pytest.raises(ValueError, match="not possible with sharded weights: start without --use_fsdp"):
        check_part(trained, RECIPE)
    monkeypatch.setattr(HookedLM, "quantised", True)
    with pytest.raises(ValueError, match="is quantised: single neurons cannot be tuned in it"):
        trained.places(lms["llama"])
