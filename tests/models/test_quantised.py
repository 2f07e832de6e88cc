"""Weights of 8 and 4 bits: read, edited, refused where they would be overlooked, and tuned by name with QLoRA."""

import dataclasses

import peft
import pytest
import raw
import torch
import transformers
from datasets import Dataset
from families import randomised
from torch.testing import assert_close
from transformer_lens.model_bridge import sources

from xlingtox.edits.interventions import Scale
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import PAPER_QLORA, tune_dpo

TEXTS = ["the cat sat on the mat", "la casa"]
IDS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}

DOWN = {
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "bloom": "transformer.h.{}.mlp.dense_4h_to_h",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "falcon": "transformer.h.{}.mlp.dense_4h_to_h",
    "phi3": "model.layers.{}.mlp.down_proj",
}


def fused(name):
    """A random model whose query, key and value are one matrix."""
    made = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_inner=128, n_positions=64, **IDS)
        ),
        "bloom": lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **IDS)
        ),
        "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(intermediate_size=128, max_position_embeddings=64, **WIDE)
        ),
        "falcon": lambda: transformers.FalconForCausalLM(
            transformers.FalconConfig(num_kv_heads=2, new_decoder_architecture=True, **WIDE)
        ),
        "phi3": lambda: transformers.Phi3ForCausalLM(
            transformers.Phi3Config(
                intermediate_size=128,
                num_key_value_heads=2,
                max_position_embeddings=64,
                original_max_position_embeddings=64,
                **WIDE,
            )
        ),
    }
    return randomised(made[name]())


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_logits(lm, ids, mask):
    """Return the quantised model's logits by Hugging Face's own forward."""
    return raw.forward(lm._hf_backend.model, ids, mask).logits


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", DOWN)
def test_fused_families_are_read_and_edited_without_a_bridge(name, bits, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = fused(name)
    lm = HookedLM.load(saved(model, tokenizer, tmp_path), bits=bits)
    with pytest.raises(ValueError, match=r"has no \.tl, since TransformerLens cannot hook"):
        _ = lm.tl
    assert lm.quantised
    assert (lm.n_layers, lm.d_model, lm.gated) == (2, 64, name == "phi3")
    ids, mask = lm.encode(TEXTS[:1])
    down = lm._hf_backend.model.get_submodule(DOWN[name].format(1))
    seen = []
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    theirs = plain_logits(lm, ids, mask)
    handle.remove()
    ours = {}
    with lm.hooks(post={1: lambda value: ours.update(post=value.clone())}):
        assert_close(lm.logits(ids, mask), theirs, atol=1e-4, rtol=1e-4)
    assert_close(ours["post"], seen[0].view(ours["post"].shape), atol=1e-5, rtol=1e-5)
    # Vectors are those of the weights before they were packed, but for rounding.
    module = model.get_submodule(DOWN[name].format(1)).weight.detach()
    true = module if name == "gpt2" else module.T
    assert lm.value_vectors(1).shape == true.shape
    assert (lm.value_vectors(1) - true).abs().max() < {8: 0.02, 4: 0.25}[bits] * true.abs().max()
    if name == "phi3":
        gate, up = model.model.layers[1].mlp.gate_up_proj.weight.detach().chunk(2)
        for vectors, exact in ((lm.key_vectors(1), gate), (lm.up_vectors(1), up)):
            assert (vectors - exact).abs().max() < {8: 0.02, 4: 0.25}[bits] * exact.abs().max()

    def silence(_, args):
        changed = args[0].clone()
        changed[..., [3, 7]] = 0
        return (changed,)

    handle = down.register_forward_pre_hook(silence)
    expected = plain_logits(lm, ids, mask)
    handle.remove()
    with Scale(NeuronSet.of([(1, 3), (1, 7)]), 0.0).on(lm):
        assert_close(lm.logits(ids, mask), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, theirs, atol=1e-3)
    assert generate(lm, TEXTS, max_new_tokens=3, progress=False)


def test_falcons_new_decoder_is_read_whole_too(tokenizer, tmp_path):
    model = fused("falcon")
    lm = HookedLM.load(model, tokenizer=tokenizer)
    ids, mask = lm.encode(TEXTS)
    assert_close(lm.logits(ids, mask)[mask], raw.forward(model, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
    edit = Scale(NeuronSet.of([(1, 3)]), 0.0)
    with edit.on(lm):
        hooked = lm.logits(ids, mask)
    assert_close(
        edit.bake(lm, output_dir=tmp_path / "baked").logits(ids, mask)[mask], hooked[mask], atol=1e-5, rtol=1e-5
    )


# --- what would be overlooked


@pytest.fixture
def four(tokenizer, tmp_path):
    """A checkpoint that is stored in 4 bits."""
    pytest.importorskip("bitsandbytes")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=128, **WIDE))
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    saved(randomised(model), tokenizer, tmp_path / "whole")
    packed = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=config, device_map="cpu"
    )
    return saved(packed, tokenizer, tmp_path / "four")


def unread(monkeypatch):
    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("xlingtox.models.loading.read_weights", read)


def test_other_bits_than_the_stored_ones(four, monkeypatch):
    assert HookedLM.load(four).identity().dtype == HookedLM.load(four, bits=4).identity().dtype == "uint8"
    unread(monkeypatch)
    with pytest.raises(ValueError, match=r"bits=8 is asked of .*four, whose weights are stored in 4 bits"):
        HookedLM.load(four, bits=8)


def test_bits_that_pack_nothing(tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    folder = saved(fused("gpt2"), tokenizer, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    monkeypatch.setattr("xlingtox.models.loading.read_weights", lambda *_, **__: plain)
    with pytest.raises(ValueError, match=r"bits=8 quantises no weight of .*GPT2LMHeadModel"):
        HookedLM.load(folder, bits=8)


def test_an_adapter_on_stored_bits(four, tmp_path, monkeypatch):
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["down_proj"])).save_pretrained(tmp_path / "lora")
    unread(monkeypatch)
    with pytest.raises(ValueError, match="not merged into weights that are stored in 4 bits"):
        HookedLM.load(four, adapter=tmp_path / "lora")


# --- QLoRA by name

PAIRS = Dataset.from_dict(
    {
        "prompt": ["the cat", "the dog", "la casa", "das ist ein hund"],
        "chosen": [" sat on the mat", " ran away", " es grande", " im haus"],
        "rejected": [" ran from the house", " sat", " duerme en la cama", " und eine katze"],
    }
)
SHORT = dataclasses.replace(
    PAPER_QLORA, steps=2, epochs=None, patience=None, validation_share=0.0, warm_up=0, learning_rate=1e-3, max_length=32
)


def base_of(name):
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=128, **WIDE)),
        "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(intermediate_size=128, **WIDE)),
        "bloom": lambda: fused("bloom"),
    }
    return randomised(made[name]())


def test_weights_of_4_bits_stay_as_they_were_read(four):
    """Also in evaluation mode, where bitsandbytes would pack them again on some CPUs, and pass no gradient."""
    lm = HookedLM.load(four)
    ids, mask = lm.encode(TEXTS)
    before, first = lm.fingerprint(), lm.logits(ids, mask)
    assert torch.equal(lm.logits(ids, mask), first)
    assert lm.fingerprint() == before == HookedLM.load(four).fingerprint()
    model = lm.unwrapped()
    state = model.model.embed_tokens(ids).detach().requires_grad_()
    for training in (True, False):
        model.train(training)
        (slope,) = torch.autograd.grad(model.model.layers[0].mlp.down_proj(torch.cat([state, state], -1)).sum(), state)
        exact = lm.value_vectors(0).sum(-1).view(2, -1).sum(0)
        assert_close(slope[0, 0], exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "bloom", "cohere"])
def test_the_papers_qlora_runs_to_its_end_and_is_merged(name, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    folder = saved(base_of(name), tokenizer, tmp_path / "base")
    kinds, trained = set(), []
    construct = sources.build_bridge_from_module

    def bridge(*args, **named):
        trained.append((tmp_path / "run" / "adapter").is_dir())
        return construct(*args, **named)

    real = peft.get_peft_model

    def adapted(model, *args, **named):
        kinds.update(type(module).__name__ for module in model.modules())
        return real(model, *args, **named)

    monkeypatch.setattr(sources, "build_bridge_from_module", bridge)
    monkeypatch.setattr("trl.trainer.dpo_trainer.get_peft_model", adapted)
    tuned = tune_dpo(str(folder), PAIRS, output_dir=tmp_path / "run", recipe=SHORT, progress=False)
    assert "Linear4bit" in kinds
    assert trained == [True]
    assert not tuned.quantised
    assert tuned.tl is not None
    # The adapter on the whole base gives the logits of the merged checkpoint.
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = tuned.encode(TEXTS)
    before = raw.forward(plain, ids, mask).logits[mask]
    with_adapter = peft.PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    expected = raw.forward(with_adapter.base_model.model, ids, mask).logits[mask]
    assert_close(tuned.logits(ids, mask)[mask], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, before, atol=1e-3)


def test_packed_weights_are_not_tuned_whole(four, tmp_path):
    recipe = dataclasses.replace(SHORT, lora=None)
    with pytest.raises(ValueError, match="is quantised: its weights cannot be tuned"):
        tune_dpo(four, PAIRS, output_dir=tmp_path / "run", recipe=recipe, progress=False)
    assert not (tmp_path / "run").exists()
