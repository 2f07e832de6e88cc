"""Ways in, and what is refused at the door."""

import copy
import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
import socket

import families
import peft
import pytest
import torch
import transformers
from huggingface_hub import constants
from torch.testing import assert_close
from toys import pickled, value_or_refusal

from xlingtox import adapters
from xlingtox.interventions import Offset
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet

TEXTS = ["the cat sat on the mat", "la casa"]


@pytest.fixture
def base(tokenizer, tmp_path):
    model = families.build("llama")
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, folder


def adapted(model, targets=("down_proj", "gate_proj", "q_proj"), std=0.3):
    torch.manual_seed(0)
    lora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=list(targets)))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.normal_(std=std)
    return lora.eval()


def logits(model, lm):
    ids, mask = lm.encode(TEXTS[:1])
    with torch.no_grad():
        return model(input_ids=ids).logits, lm.logits(ids, mask)


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_pickled_weights_are_not_read(base, tmp_path, what):
    model, folder = base
    lora = adapted(model)
    lora.save_pretrained(tmp_path / "lora")
    where = folder if what == "model" else tmp_path / "lora"
    for weights in where.glob("*.safetensors"):
        weights.unlink()
    pickled(model, where, "pytorch_model.bin" if what == "model" else "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no weights in safetensors|no adapter_model\.safetensors"):
        HookedLM.load(folder, adapter=tmp_path / "lora")
    assert not (where / "ran").exists()


# --- adapters


@pytest.mark.parametrize("way", ["folder", "option", "memory", "memory with a folder"])
def test_an_adapter_is_merged(base, tokenizer, tmp_path, way):
    model, folder = base
    lora = adapted(model)
    lora.peft_config["default"].base_model_name_or_path = str(folder)
    lora.save_pretrained(tmp_path / "lora")
    lm = {
        "folder": lambda: HookedLM.load(tmp_path / "lora"),
        "option": lambda: HookedLM.load(folder, adapter=tmp_path / "lora"),
        "memory": lambda: HookedLM.load(lora, tokenizer=tokenizer),
        "memory with a folder": lambda: HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora"),
    }[way]()
    theirs, ours = logits(lora, lm)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for layer in range(families.N_LAYERS):
        module = families.down(lora.base_model.model, "llama", layer)
        delta = module.get_delta_weight("default").detach()
        tuned = (module.base_layer.weight.detach() + delta).T
        assert_close(lm.value_vectors(layer), tuned, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(lm.value_vectors(layer), families.values(model, "llama", layer), atol=1e-3)


def test_an_adapter_for_another_base_is_refused(base, tokenizer, tmp_path):
    _, folder = base
    other = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=300, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
        )
    )
    adapted(other).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="another base than"):
        HookedLM.load(folder, adapter=tmp_path / "wide")
    adapted(families.build("gpt2"), ["c_proj"]).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="another base than"):
        HookedLM.load(folder, adapter=tmp_path / "gpt2")


@pytest.mark.parametrize("way", ["memory", "memory with a folder"])
@pytest.mark.parametrize(
    ("name", "targets"), [("bloom", ["word_embeddings", "query_key_value"]), ("llama tied, biased", ["lm_head"])]
)
def test_an_adapter_on_a_tied_embedding_parts_the_two(tokenizer, tmp_path, name, targets, way):
    """As the paper's own of BLOOM: merged into both, it would say something else."""
    model = families.build(name)
    lora = adapted(model, targets)
    lora.save_pretrained(tmp_path / "lora")
    if way == "memory":
        lm = HookedLM.load(lora, tokenizer=tokenizer)
    else:
        lm = HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora")
    ids, mask = lm.encode(TEXTS[:1])
    theirs = lora(input_ids=ids).logits
    assert_close(lm.logits(ids, mask), theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, model(input_ids=ids).logits, atol=1e-1)
    lm.unwrapped().save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_close(again(input_ids=ids).logits, theirs, atol=1e-5, rtol=1e-5)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_adapter_that_does_not_survive_merging_is_refused(tokenizer, tmp_path, monkeypatch, dtype):
    model = families.build("llama")
    adapted(model).save_pretrained(tmp_path / "lora")
    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", peft.tuners.lora.LoraModel.unload)
    with pytest.raises(ValueError, match="cannot be merged") as refusal:
        HookedLM.load(model.to(dtype), tokenizer=tokenizer, adapter=tmp_path / "lora")
    assert ("dtype=torch.float32" in str(refusal.value)) == (dtype != torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("std", [0.005, 0.02, 0.3])
def test_16_bits_round_an_adapter_that_is_merged(base, tmp_path, dtype, std):
    model, folder = base
    lora = adapted(model, std=std)
    lora.save_pretrained(tmp_path / "lora")
    lm = HookedLM.load(folder, adapter=tmp_path / "lora", dtype=dtype)
    assert lm.dtype == dtype
    for layer in range(families.N_LAYERS):
        module = families.down(lora.base_model.model, "llama", layer)
        tuned = (module.base_layer.weight + module.get_delta_weight("default")).detach().T
        assert_close(lm.value_vectors(layer).float(), tuned, atol=1e-2, rtol=1e-2)
    theirs, ours = logits(lora, lm)
    assert (ours.float() - theirs).square().mean().sqrt() < 0.1 * theirs.std()


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_rounding_in_many_layers_is_no_change(tokenizer, tmp_path, name):
    config = families.build(name).config
    config.num_hidden_layers = 40
    config.layer_types = None
    model = families.randomised(transformers.AutoModelForCausalLM.from_config(config)).bfloat16()
    adapted(model, ["q_proj" if name == "llama" else "qkv_proj", "down_proj"], std=0.1).save_pretrained(tmp_path)
    lm = HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path)
    assert lm.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "target"), [("bloom", "word_embeddings"), ("llama tied, biased", "lm_head")])
def test_a_wrong_merge_in_16_bits_is_no_rounding(tokenizer, tmp_path, monkeypatch, name, target):
    """An adapter on an embedding that is tied to the output, merged into both."""
    model = families.build(name).bfloat16()
    adapted(model, [target], std=0.05).save_pretrained(tmp_path / "lora")
    assert HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora").dtype == torch.bfloat16
    monkeypatch.setattr(adapters, "_part", lambda *ends: None)
    with pytest.raises(ValueError, match="cannot be merged"):
        HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora")


@pytest.mark.parametrize("layers", [2, 5])
def test_an_adapter_of_a_base_with_other_layers_is_refused(base, tmp_path, layers):
    """PEFT would leave out what has no place, and draw what is missing at random."""
    other = transformers.LlamaForCausalLM(
        base[0].config.__class__(**{**base[0].config.to_dict(), "num_hidden_layers": layers})
    )
    adapted(other).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"another base than .*layers"):
        HookedLM.load(base[1], adapter=tmp_path / "lora")


def test_an_adapter_that_names_another_base_is_warned_of(base, tmp_path, caplog):
    lora = adapted(base[0])
    lora.peft_config["default"].base_model_name_or_path = "someone/other"
    lora.save_pretrained(tmp_path / "lora")
    HookedLM.load(base[1], adapter=tmp_path / "lora")
    assert "trained on someone/other; it is merged into" in caplog.text


def test_a_checkpoint_with_an_adapter_in_its_folder_has_tuned_value_vectors(base, tmp_path):
    """Transformers would put the adapter beside the weights, whose value vectors are the base's."""
    model, folder = base
    lora = adapted(model)
    lora.peft_config["default"].base_model_name_or_path = str(folder)
    both = tmp_path / "both"
    model.save_pretrained(both)
    lora.save_pretrained(both)
    lm = HookedLM.load(both, tokenizer=HookedLM.load(folder).tokenizer)
    theirs, ours = logits(lora, lm)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lm.value_vectors(0), families.values(model, "llama", 0), atol=1e-3)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(name, revision, save)`: a cache as the hub's client keeps it, to which each call adds a snapshot."""
    for where in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(where, str(tmp_path / "hub"))

    def add(name, revision, *saved):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / revision).write_text(commit, "utf-8")
        for each in saved:
            each.save_pretrained(place / "snapshots" / commit)

    return add


def test_adapters_on_the_hub(base, tokenizer, hub):
    """From the cache: no network."""
    model, _ = base
    lora = adapted(model)
    lora.peft_config["default"].base_model_name_or_path = "me/base"
    own = copy.deepcopy(tokenizer)
    own.pad_token = own.eos_token
    hub("me/base", "main", model, tokenizer)
    hub("me/lora", "main", lora, own)
    for lm in (HookedLM.load("me/lora"), HookedLM.load("me/base", adapter="me/lora")):
        theirs, ours = logits(lora, lm)
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert lm.tokenizer.pad_token_id == own.pad_token_id != tokenizer.pad_token_id
    assert HookedLM.load("me/lora").name == "me/lora"
    assert HookedLM.load("me/base", adapter="me/lora").name == "me/base + me/lora"


def test_the_revision_of_an_adapter_and_that_of_its_base(base, tokenizer, hub, tmp_path):
    """PEFT's configuration names the base's; the adapter's own is the one that is asked for."""
    model, _ = base
    lora = adapted(model)
    lora.peft_config["default"].base_model_name_or_path = "me/base"
    lora.peft_config["default"].revision = "old"
    hub("me/base", "old", model, tokenizer)
    hub("me/base", "main", families.randomised(families.build("llama"), seed=1), tokenizer)
    hub("me/lora", "v9", lora)
    lora.save_pretrained(tmp_path / "lora")
    for lm, revision in ((HookedLM.load("me/lora", revision="v9"), "v9"), (HookedLM.load(tmp_path / "lora"), None)):
        theirs, ours = logits(lora, lm)
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert lm.identity().revision == revision
    with pytest.raises(ValueError, match="revision 'v9' is of a hub name"):
        HookedLM.load(tmp_path / "lora", revision="v9")


def test_no_adapter_there(base, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter.*adapter_config\.json"):
        HookedLM.load(base[1], adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), "utf-8")
    with pytest.raises(ValueError, match="does not name its base"):
        HookedLM.load(tmp_path)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"adapter_config.json": "{"}, r"adapter_config\.json is broken .*expected a JSON object"),
        ({"adapter_config.json": "[]"}, r"adapter_config\.json is broken"),
        ({"adapter_config.json": '{"r": 2}'}, r"adapter_config\.json is broken .*peft_type"),
        ({"adapter_config.json": '{"peft_type": "NEWER"}'}, r"not one that the installed PEFT can read: .*NEWER"),
        ({"adapter_model.safetensors": "abc" * 50}, r"adapter_model\.safetensors is broken"),
    ],
)
def test_a_broken_adapter_is_told_from_one_of_another_base(base, tmp_path, broken, words):
    adapted(base[0]).save_pretrained(tmp_path / "lora")
    for name, text in broken.items():
        (tmp_path / "lora" / name).write_text(text, "utf-8")
    _, refusal = value_or_refusal(lambda: HookedLM.load(base[1], adapter=tmp_path / "lora"))
    assert re.search(words, refusal)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_an_adapter_without_weights_to_merge_is_refused(base, tokenizer, tmp_path, kind):
    model, folder = base
    prompted = peft.get_peft_model(copy.deepcopy(model), kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    prompted.save_pretrained(tmp_path / "prompt")
    for load in (
        lambda: HookedLM.load(prompted, tokenizer=tokenizer),
        lambda: HookedLM.load(folder, adapter=tmp_path / "prompt"),
    ):
        with pytest.raises(ValueError, match=r"_TUNING, which .* has no weights to merge: expected LoRA"):
            load()


def test_an_adapter_with_more_tokens_than_its_base(base, tokenizer, tmp_path):
    model, folder = base
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["zebra"])
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(len(more))
    lora = adapted(wider)
    lora.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    _, refusal = value_or_refusal(lambda: HookedLM.load(folder, adapter=tmp_path / "lora"))
    assert re.search(r"embed_tokens.*\[301, 32\].*\[300, 32\].*resize_token_embeddings", refusal)
    theirs, ours = logits(lora, HookedLM.load(wider, tokenizer=more, adapter=tmp_path / "lora"))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_a_wider_base_says_so(base, tmp_path):
    config = base[0].config.__class__(**{**base[0].config.to_dict(), "hidden_size": 48})
    adapted(transformers.LlamaForCausalLM(config), ["down_proj"]).save_pretrained(tmp_path / "lora")
    _, refusal = value_or_refusal(lambda: HookedLM.load(base[1], adapter=tmp_path / "lora"))
    assert re.search(r"another base than .*size mismatch.*down_proj.*\[48, 2\].*\[32, 2\]", refusal)
    assert "resize" not in refusal


def test_broken_weights_are_told(base):
    (base[1] / "model.safetensors").write_bytes(b"abc" * 50)
    with pytest.raises(ValueError, match="weights that are broken"):
        HookedLM.load(base[1])


def test_a_model_with_an_unmerged_adapter_inside_is_refused(tokenizer):
    model = families.build("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["down_proj"]))
    with pytest.raises(ValueError, match="not merged"):
        HookedLM.load(model, tokenizer=tokenizer)


@pytest.mark.parametrize("targets", [["down_proj"], ["q_proj"], ["q_proj", "down_proj", "gate_proj"]])
def test_a_bridge_over_an_unmerged_adapter_is_refused(tokenizer, targets):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = families.build("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    with pytest.raises(ValueError, match="not merged"):
        HookedLM.load(bridge, tokenizer=tokenizer)


# --- where weights go


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu"), {"": torch.device("cpu")}])
def test_a_device_map(base, device_map):
    model, folder = base
    lm = HookedLM.load(folder, device_map=device_map)
    theirs, ours = logits(model, lm)
    assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": {"": "cuda:7"}}, "names cuda:7: this machine has"),
        ({"device_map": "cuda:99"}, "names cuda:99"),
        ({"device_map": {"": 40}}, "names 40"),
        ({"device_map": 40}, "names 40"),
        ({"device_map": torch.device("cuda:99")}, "names cuda:99"),
        ({"device_map": "xpu"}, "device_map's place 'xpu' is not to be had"),
        ({"device_map": {"": "xpu:1"}}, "device_map's place 'xpu:1' is not to be had"),
        ({"device_map": {"model": "cpu", "lm_head": "mps"}}, "device_map's place 'mps' is not to be had"),
        ({"device_map": "nonsense"}, "device_map's place 'nonsense' is not to be had"),
        ({"device_map": "cpu", "device": "cpu"}, "not both"),
        ({"bits": 3}, "expected 4 or 8"),
    ],
)
def test_places_that_are_not_there(base, options, words):
    _, refusal = value_or_refusal(lambda: HookedLM.load(base[1], **options))
    assert re.search(words, refusal)


@pytest.mark.parametrize("dtype", ["bfloat16", "auto", torch.int8, torch.float8_e4m3fn, float])
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
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else there(name, *rest)
    )
    with pytest.raises(ValueError, match=f"pip install {package}"):
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
    lora = adapted(base[0])
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
    own = lm.identity()
    assert (own.name, own.revision, own.dtype) == (str(folder), None, "float32")
    assert own.fingerprint == lm.fingerprint()
    assert HookedLM.load(folder, dtype=torch.bfloat16).identity().dtype == "bfloat16"
    assert dataclasses.asdict(own) == dataclasses.asdict(HookedLM.load(folder).identity())


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
    with pytest.raises(ValueError, match="logits that are no numbers"):
        HookedLM.load(model, tokenizer=tokenizer)


def test_tokens_that_the_model_does_not_know(tokenizer):
    model = families.build("llama")
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == families.VOCABULARY
    lm, usual = (HookedLM.load(model, tokenizer=each) for each in (padded, tokenizer))
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
    with pytest.raises(ValueError, match="revision 'abc' is of a hub name"):
        HookedLM.load(folder, revision="abc")
    for load in (
        lambda: HookedLM.load(folder, device="xpu"),
        lambda: HookedLM.load(model, tokenizer=tokenizer, device="xpu"),
    ):
        with pytest.raises(ValueError, match="device 'xpu' is not to be had on this machine"):
            load()


def test_a_folder_in_the_home_directory(base, monkeypatch):
    _, folder = base
    monkeypatch.setenv("HOME", str(folder.parent))
    assert HookedLM.load("~/base").n_layers == families.N_LAYERS


def test_hooks_of_the_callers_model_stay_there(tokenizer, caplog):
    model, calls = families.build("llama"), []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: calls.append(1))
    lm = HookedLM.load(model, tokenizer=tokenizer)
    assert "not taken along" in caplog.text
    lm.logits(*lm.encode(TEXTS))
    assert not calls
    model(input_ids=lm.encode(TEXTS)[0])
    assert calls
    handle.remove()


def test_a_projection_before_the_output_is_told(tokenizer):
    """As in OPT of 350 million parameters."""
    config = families.build("opt").config
    config.word_embed_proj_dim = 16
    lm = HookedLM.load(families.randomised(transformers.OPTForCausalLM(config)), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="projection between the residual stream"):
        NeuronSet.of([(0, 1)]).promoted_tokens(lm, k=3)


def test_fingerprints_tell_what_changed_places(tokenizer):
    model = families.build("llama")
    other = copy.deepcopy(model)
    mlp = other.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    prints = [HookedLM.load(each, tokenizer=tokenizer).fingerprint() for each in (model, other, copy.deepcopy(model))]
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
    with pytest.raises(ValueError, match="from a cache than without one"):
        HookedLM.load(bridge, tokenizer=tokenizer)


def test_beside_a_plain_model_it_is_warned_of_and_never_runs(tokenizer, monkeypatch, caplog):
    from transformer_lens.model_bridge import sources

    build = sources.build_bridge_from_module
    monkeypatch.setattr(sources, "build_bridge_from_module", lambda *args, **named: forgetful(build(*args, **named)))
    lm = HookedLM.load(families.build("llama"), tokenizer=tokenizer)
    assert "TransformerLens has other logits than Hugging Face" in caplog.text
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
