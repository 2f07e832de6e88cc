"""LoRA adapters: merged before neurons are looked at, or refused."""

import copy
import hashlib
import json
import re

import families
import peft
import pytest
import torch
import transformers
from families import adapted
from torch.testing import assert_close
from toys import value_or_refusal

from xlingtox.models import adapters
from xlingtox.models.hooked import HookedLM

TEXTS = ["the cat sat on the mat", "la casa"]


def logits(model, lm):
    ids, mask = lm.encode(TEXTS[:1])
    with torch.no_grad():
        return model(input_ids=ids).logits, lm.logits(ids, mask)


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
    wider_model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=300, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
        )
    )
    adapted(wider_model).save_pretrained(tmp_path / "wide")
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
    """The paper's adapter of BLOOM is such a one. Merged into both embeddings, it would give other logits."""
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
        HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora", dtype=dtype)
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
    lm = HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path, dtype=torch.bfloat16)
    assert lm.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "target"), [("bloom", "word_embeddings"), ("llama tied, biased", "lm_head")])
def test_a_wrong_merge_in_16_bits_is_no_rounding(tokenizer, tmp_path, monkeypatch, name, target):
    """An adapter on an embedding that is tied to the output, merged into both."""
    model = families.build(name).bfloat16()
    adapted(model, [target], std=0.05).save_pretrained(tmp_path / "lora")
    assert HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora", dtype=torch.bfloat16)
    monkeypatch.setattr(adapters, "_untie", lambda *ends: None)
    with pytest.raises(ValueError, match="cannot be merged"):
        HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora", dtype=torch.bfloat16)


@pytest.mark.parametrize("layers", [2, 5])
def test_an_adapter_of_a_base_with_other_layers_is_refused(base, tmp_path, layers):
    """PEFT would leave out what has no place, and draw what is missing at random."""
    wider_model = transformers.LlamaForCausalLM(
        base[0].config.__class__(**{**base[0].config.to_dict(), "num_hidden_layers": layers})
    )
    adapted(wider_model).save_pretrained(tmp_path / "lora")
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
        for snapshot in saved:
            snapshot.save_pretrained(place / "snapshots" / commit)

    return add


def test_adapters_on_the_hub(base, tokenizer, hub):
    """Adapters in the hub's cache are read without the network."""
    model, _ = base
    lora = adapted(model)
    lora.peft_config["default"].base_model_name_or_path = "me/base"
    tokenizer_with_padding = copy.deepcopy(tokenizer)
    tokenizer_with_padding.pad_token = tokenizer_with_padding.eos_token
    hub("me/base", "main", model, tokenizer)
    hub("me/lora", "main", lora, tokenizer_with_padding)
    for lm in (HookedLM.load("me/lora"), HookedLM.load("me/base", adapter="me/lora")):
        theirs, ours = logits(lora, lm)
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert lm.tokenizer.pad_token_id == tokenizer_with_padding.pad_token_id != tokenizer.pad_token_id
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
    with pytest.raises(ValueError, match="revision 'v9' is for a hub name"):
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


@pytest.mark.parametrize("way", ["folder", "memory"])
def test_biases_of_an_adapter_that_the_base_has_no_place_for(base, tokenizer, tmp_path, way):
    model, folder = base
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], lora_bias=True)
    lora = peft.get_peft_model(copy.deepcopy(model), config)
    lora.save_pretrained(tmp_path / "lora")
    source, how = (folder, {"adapter": tmp_path / "lora"}) if way == "folder" else (lora, {"tokenizer": tokenizer})
    with pytest.raises(ValueError, match=r"it has biases \(lora_bias\), and .*layers\.0\.mlp\.down_proj has none"):
        HookedLM.load(source, **how)


def test_biases_of_an_adapter_are_merged_where_there_is_a_place(tokenizer, tmp_path):
    model = families.build("llama tied, biased")
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], lora_bias=True)
    lora = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    lora.save_pretrained(tmp_path / "lora")
    theirs, ours = logits(lora, HookedLM.load(model, tokenizer=tokenizer, adapter=tmp_path / "lora"))
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_adapter_is_looked_at_before_its_base_is_read(base, tmp_path, monkeypatch):
    model, folder = base
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / "prompt")

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("xlingtox.models.loading.read_weights", read)
    with pytest.raises(ValueError, match="adds prompt tokens before the text"):
        HookedLM.load(folder, adapter=tmp_path / "prompt")
