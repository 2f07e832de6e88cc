"""Loading: every source that HookedLM.load takes, and the refusals."""

import copy
import dataclasses
import functools
import importlib.util
import json
import re
import socket

import families
import pytest
import torch
import transformers
from huggingface_hub import constants
from torch.testing import assert_close
from toys import pickled, value_or_refusal

from xlingtox.edits.interventions import Offset
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat on the mat", "la casa"]


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_pickled_weights_are_not_read(base, tmp_path, what):
    model, folder = base
    lora = families.adapted(model)
    lora.save_pretrained(tmp_path / "lora")
    where = folder if what == "model" else tmp_path / "lora"
    for weights in where.glob("*.safetensors"):
        weights.unlink()
    pickled(model, where, "pytorch_model.bin" if what == "model" else "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no weights in safetensors|no adapter_model\.safetensors"):
        HookedLM.load(folder, adapter=tmp_path / "lora")
    assert not (where / "ran").exists()


# --- where weights go


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu"), {"": torch.device("cpu")}])
def test_a_device_map(base, device_map):
    model, folder = base
    lm = HookedLM.load(folder, device_map=device_map)
    ids, mask = lm.encode(TEXTS[:1])
    assert_close(lm.logits(ids, mask).cpu(), model(input_ids=ids.cpu()).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": {"": "cuda:7"}}, "names cuda:7: this machine has"),
        ({"device_map": "cuda:99"}, "names cuda:99"),
        ({"device_map": {"": 40}}, "names 40"),
        ({"device_map": 40}, "names 40"),
        ({"device_map": torch.device("cuda:99")}, "names cuda:99"),
        ({"device_map": "xpu"}, "device_map's place 'xpu' is not available"),
        ({"device_map": {"": "xpu:1"}}, "device_map's place 'xpu:1' is not available"),
        ({"device_map": {"model": "cpu", "lm_head": "mps"}}, "device_map's place 'mps' is not available"),
        ({"device_map": "nonsense"}, "device_map's place 'nonsense' is not available"),
        ({"device_map": "cpu", "device": "cpu"}, "not both"),
        ({"bits": 3}, "bits is 3 .*expected one of 4, 8 or None"),
    ],
)
def test_places_that_are_not_there(base, options, words):
    _, refusal = value_or_refusal(lambda: HookedLM.load(base[1], **options))
    assert re.search(words, refusal)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_what_weights_cannot_be_cast_to(base, tokenizer, dtype):
    model, folder = base
    for load in (
        lambda: HookedLM.load(folder, dtype=dtype),
        lambda: HookedLM.load(model, tokenizer=tokenizer, dtype=dtype),
    ):
        _, refusal = value_or_refusal(load)
        assert re.search(r"dtype is .*: expected torch\.float32, torch\.bfloat16", refusal)


@pytest.mark.parametrize(
    ("options", "package"), [({"device_map": "auto"}, "accelerate"), ({"bits": 4}, "bitsandbytes")]
)
def test_a_missing_package_is_named(base, monkeypatch, options, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest)
    )
    with pytest.raises(ImportError, match=f"needs? the package {package}: pip install "):
        HookedLM.load(base[1], **options)


@pytest.mark.parametrize("option", [{"device_map": "cpu"}, {"bits": 8}, {"revision": "main"}])
def test_options_of_checkpoints_are_not_for_memory(base, tokenizer, option):
    with pytest.raises(ValueError, match="the model was given in memory"):
        HookedLM.load(base[0], tokenizer=tokenizer, **option)


def test_a_local_folder_needs_no_network(base, tmp_path, monkeypatch):
    touched = []

    def refuse(*_, **__):
        touched.append(1)
        raise AssertionError("the network was touched")

    # The tests' own setting would hold a call back before it comes to a socket.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises((AssertionError, OSError)):
        HookedLM.load("nobody/nothing")
    assert touched
    touched.clear()
    assert HookedLM.load(base[1]).n_layers == families.N_LAYERS
    lora = families.adapted(base[0])
    lora.peft_config["default"].base_model_name_or_path = str(base[1])
    lora.save_pretrained(tmp_path / "lora")
    assert HookedLM.load(tmp_path / "lora").n_layers == families.N_LAYERS
    assert not touched


def test_remote_code_runs_only_when_asked_for(base):
    _, folder = base
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "mine.py").write_text("raise SystemExit('code was run')\n", "utf-8")
    with pytest.raises(ValueError, match="trust_remote_code"):
        HookedLM.load(folder)


# --- which model it was


def test_identity(base):
    _model, folder = base
    lm = HookedLM.load(folder)
    identity = lm.identity()
    assert (identity.name, identity.revision, identity.dtype) == (str(folder), None, "float32")
    assert identity.fingerprint == lm.fingerprint()
    assert HookedLM.load(folder, dtype=torch.bfloat16).identity().dtype == "bfloat16"
    assert dataclasses.asdict(identity) == dataclasses.asdict(HookedLM.load(folder).identity())


def test_a_fingerprint_follows_the_weights(base):
    lm = HookedLM.load(base[1])
    before = lm.fingerprint()
    assert lm.fingerprint() == before
    with torch.no_grad():
        lm.tl.blocks[1].mlp.W_out[2, 3] += 1.0
    assert lm.fingerprint() != before


# --- processed weights


def test_processed_weights_are_refused(tokenizer):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = families.build("gpt2")
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
    bridge.enable_compatibility_mode()
    with pytest.raises(ValueError, match="processed"):
        HookedLM.load(bridge, tokenizer=tokenizer)


def test_centred_weights_are_refused(tokenizer):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = families.build("gpt2")
    with torch.no_grad():
        for layer in range(families.N_LAYERS):
            weight = families.down(model, "gpt2", layer).weight
            weight -= weight.mean(-1, keepdim=True)
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
    with pytest.raises(ValueError, match="centred"):
        HookedLM.load(bridge, tokenizer=tokenizer)


# --- models, tokenizers and options that do not fit


def test_broken_weights_are_told(base):
    (base[1] / "model.safetensors").write_bytes(b"abc" * 50)
    with pytest.raises(ValueError, match="weights that are broken"):
        HookedLM.load(base[1])


def test_weights_that_are_missing_are_not_drawn_at_random(base):
    from safetensors.torch import load_file, save_file

    _, folder = base
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the model's weights, model\.layers\.1\.mlp\.down_proj\.weight"):
        HookedLM.load(folder)


def test_weights_that_are_no_numbers(tokenizer):
    model = families.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] = torch.nan
    with pytest.raises(ValueError, match="logits that are not finite"):
        HookedLM.load(model, tokenizer=tokenizer)


def test_tokens_that_the_model_does_not_know(tokenizer):
    model = families.build("llama")
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == families.VOCABULARY
    lm, usual = (HookedLM.load(model, tokenizer=its_tokenizer) for its_tokenizer in (padded, tokenizer))
    (ids, mask), (others, _) = lm.encode(TEXTS), usual.encode(TEXTS)
    assert_close(lm.logits(ids, mask)[mask], usual.logits(others, mask)[mask], atol=1e-6, rtol=0)
    worded = copy.deepcopy(tokenizer)
    worded.add_tokens(["zebra"])
    with pytest.raises(ValueError, match=r"gives token 300, and .* knows 300.*resize_token_embeddings"):
        HookedLM.load(model, tokenizer=worded).encode(["the zebra"])
    ended = copy.deepcopy(tokenizer)
    ended.add_special_tokens({"eos_token": "[END]"})
    with pytest.raises(ValueError, match="end of sequence is token 300, and the model knows 300"):
        HookedLM.load(model, tokenizer=ended)


def test_options_that_would_be_overlooked(base, tokenizer):
    model, folder = base
    lm = HookedLM.load(folder)
    with pytest.raises(ValueError, match="is loaded already"):
        HookedLM.load(lm, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="revision 'abc' is for a hub name"):
        HookedLM.load(folder, revision="abc")
    for load in (
        lambda: HookedLM.load(folder, device="xpu"),
        lambda: HookedLM.load(model, tokenizer=tokenizer, device="xpu"),
    ):
        with pytest.raises(ValueError, match="device 'xpu' is not available on this machine"):
            load()


def test_a_folder_in_the_home_directory(base, monkeypatch):
    _, folder = base
    monkeypatch.setenv("HOME", str(folder.parent))
    assert HookedLM.load("~/base").n_layers == families.N_LAYERS


def test_hooks_of_the_callers_model_stay_there(tokenizer, caplog):
    model, calls = families.build("llama"), []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: calls.append(1))
    lm = HookedLM.load(model, tokenizer=tokenizer)
    assert "hooks on this model are not copied" in caplog.text
    lm.logits(*lm.encode(TEXTS))
    assert not calls
    model(input_ids=lm.encode(TEXTS)[0])
    assert calls
    handle.remove()


def test_a_projection_before_the_output_is_told(tokenizer):
    """OPT of 350 million parameters has such a projection."""
    config = families.build("opt").config
    config.word_embed_proj_dim = 16
    lm = HookedLM.load(families.randomised(transformers.OPTForCausalLM(config)), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="projection between the residual stream"):
        NeuronSet.of([(0, 1)]).promoted_tokens(lm, k=3)


def test_fingerprints_tell_what_changed_places(tokenizer):
    model = families.build("llama")
    changed = copy.deepcopy(model)
    mlp = changed.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    prints = [
        HookedLM.load(source, tokenizer=tokenizer).fingerprint() for source in (model, changed, copy.deepcopy(model))
    ]
    assert prints[0] == prints[2] != prints[1]
    with torch.inference_mode():
        assert HookedLM.load(families.build("llama"), tokenizer=tokenizer).fingerprint() == prints[0]


# --- a TransformerLens that does not know this release of transformers


def forgetful(bridge):
    """A bridge whose attention overlooks the cache, as where transformers calls it by another name."""

    def overlook(_, args, named):
        return args, {name: value for name, value in named.items() if "past" not in name and "cache" not in name}

    for block in bridge.blocks:
        block.attn.register_forward_pre_hook(overlook, with_kwargs=True)
    return bridge


def test_a_bridge_that_overlooks_its_cache_is_refused(tokenizer):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = families.build("llama")
    bridge = forgetful(build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config))
    with pytest.raises(ValueError, match="with a cache than without one"):
        HookedLM.load(bridge, tokenizer=tokenizer)


def test_beside_a_plain_model_it_is_warned_of_and_never_runs(tokenizer, monkeypatch, caplog):
    from transformer_lens.model_bridge import sources

    build = sources.build_bridge_from_module
    monkeypatch.setattr(sources, "build_bridge_from_module", lambda *args, **named: forgetful(build(*args, **named)))
    lm = HookedLM.load(families.build("llama"), tokenizer=tokenizer)
    assert "TransformerLens gives other logits than Hugging Face" in caplog.text
    lm.logits(*lm.encode(TEXTS))
    lm.tl.blocks[0].mlp.hook_post.add_hook(lambda value, hook: None)
    with pytest.raises(RuntimeError, match="other logits than Hugging"):
        lm.logits(*lm.encode(TEXTS))


def _keep(seen, key, state):
    seen[key] = state.clone()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_read_for_what_they_do(tokenizer, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    size = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(num_attention_heads=4, max_position_embeddings=64, **size)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = HookedLM.load(tmp_path, bits=bits)
    assert (lm.d_mlp, lm.n_layers) == (192, 2)
    ids, mask = lm.encode(TEXTS)
    for layer in range(2):
        true = model.model.layers[layer].mlp.down_proj.weight.detach().T
        assert (lm.value_vectors(layer) - true).abs().max() < {8: 0.02, 4: 0.2}[bits] * true.abs().max()
        neurons = NeuronSet.of([(layer, 5), (layer, 190)])
        seen = {}
        for value in (0.0, 2.0):
            keep = {layer + 1: functools.partial(_keep, seen, value)}
            with Offset(neurons, value).on(lm), lm.hooks(residual=keep):
                lm.logits(ids, mask)
        moved = (seen[2.0] - seen[0.0])[mask]
        expected = 2.0 * lm.value_vectors(layer)[[5, 190]].sum(0).expand_as(moved)
        assert_close(moved, expected, atol=2e-2 * float(expected.abs().max()) + 1e-3, rtol=5e-2)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_broken_file_of_a_checkpoint_is_named_in_a_line(base, file):
    folder = base[1]
    (folder / file).write_text("{", "utf-8")
    with pytest.raises(ValueError, match="cannot be read") as refused:
        HookedLM.load(folder)
    assert str(folder) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_weights_of_other_shapes_than_the_configuration_says(base):
    folder = base[1]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    width = next(name for name in ("intermediate_size", "n_inner") if config.get(name))
    (folder / "config.json").write_text(json.dumps(config | {width: config[width] + 8}), "utf-8")
    with pytest.raises(ValueError, match="has weights of other shapes than its configuration says"):
        HookedLM.load(folder)


def test_a_model_is_wrapped_by_load_and_not_by_the_constructor(model, tokenizer):
    with pytest.raises(TypeError, match=r"HookedLM\.load\(model, tokenizer=\.\.\.\)"):
        HookedLM(model, tokenizer, "mine")
