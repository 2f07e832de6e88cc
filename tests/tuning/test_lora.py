"""Adapters: kept, merged, named after their base, and put on a quantised base."""

import copy
import dataclasses
import json
import warnings

import families
import preferences
import pytest
import torch
from preferences import PAIRS, PROMPTS, RECIPE, Reached, same, weights
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from xlingtox.edits.interventions import Scale
from xlingtox.models import loading
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import PAPER_QLORA, Lora, tune_dpo, tuner

tuned, reached = preferences.tuned, preferences.reached


LORA = dataclasses.replace(RECIPE, lora=Lora(rank=4, bits=None), learning_rate=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", "cohere"])
def test_an_adapter_is_kept_and_merged(name, tokenizer, tmp_path):
    """Adapter, merged, saved, hooked: the same logits, and the value vectors of the merged model."""
    peft = pytest.importorskip("peft")
    source = families.build(name)
    lm = HookedLM.load(source, tokenizer=tokenizer)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        after = tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=LORA, progress=False)
    assert not [warning for warning in warned if "peft" in warning.filename]
    ids, mask = after.encode(["the cat sat on the"])
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(source), tmp_path / "adapter").eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(after.logits(ids, mask), adapted(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert_close(after.logits(ids, mask), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after.logits(ids, mask), source(input_ids=ids).logits, atol=1e-2)
    for layer in range(lm.n_layers):
        assert torch.equal(after.value_vectors(layer), families.values(plain, name, layer))
        assert not torch.equal(after.value_vectors(layer), lm.value_vectors(layer))
    instead = json.loads((tmp_path / "recipe.json").read_text("utf-8"))["instead"]
    assert any("tied" in words for words in instead) == (name != "llama")
    assert ("embed_tokens" in str(sorted(adapted.peft_config["default"].target_modules))) == (name == "llama")


def test_an_adapter_names_its_base_where_that_is_what_lies_there(base, tokenizer, tmp_path):
    """PEFT writes down the path that a model in memory remembers, even if another model lies there."""
    pytest.importorskip("peft")
    named = tune_dpo(base[1], PAIRS, output_dir=tmp_path / "named", recipe=LORA, progress=False)
    assert HookedLM.load(tmp_path / "named" / "adapter").fingerprint() == named.fingerprint()
    edited = Scale(NeuronSet.of([(0, 1), (1, 3)]), 0.0).bake(HookedLM.load(base[1]))
    sources = {"edited": edited, "loaded": HookedLM.load(base[1]), "adapted": tmp_path / "named" / "adapter"}
    for name, source in sources.items():
        after = tune_dpo(source, PAIRS, output_dir=tmp_path / name, recipe=LORA, progress=False)
        with pytest.raises(ValueError, match="does not name its base"):
            HookedLM.load(tmp_path / name / "adapter")
        if isinstance(source, HookedLM):
            again = HookedLM.load(source.unwrapped(), tokenizer=tokenizer, adapter=tmp_path / name / "adapter")
            ids, mask = after.encode(PROMPTS)
            assert_close(again.logits(ids, mask), after.logits(ids, mask), atol=1e-5, rtol=1e-5)


def test_a_model_with_code_of_its_own_is_tuned_and_baked(base, tmp_path):
    folder = base[1]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.LlamaForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["LlamaForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM as Theirs\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class LlamaForCausalLM(Theirs):\n    config_class = MineConfig\n",
        "utf-8",
    )
    lm = HookedLM.load(folder, trust_remote_code=True)
    assert lm.remote_code
    short = dataclasses.replace(RECIPE, steps=2)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=short, progress=False)
    assert after.remote_code
    assert after.fingerprint() != lm.fingerprint()
    halved = Scale(NeuronSet.of([(0, 1)]), 0.5).bake(lm, output_dir=tmp_path / "baked")
    assert halved.remote_code


def test_an_adapter_that_cannot_be_merged_fails_and_is_kept(tuned, tmp_path, monkeypatch):
    pytest.importorskip("peft")

    def changed(*_):
        raise ValueError("cannot be merged into")

    monkeypatch.setattr("xlingtox.models.adapters.merge_adapter", changed)
    with pytest.raises(ValueError, match="cannot be merged"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=LORA, progress=False)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "config.json").exists()


def test_a_quantised_base_is_read_from_the_model_that_was_given(tuned, reached, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    asked, real = {}, loading.from_checkpoint

    def from_checkpoint(source, bits, trust_remote_code):
        asked.update(source=source, bits=bits)
        return real(source)

    monkeypatch.setattr(loading, "from_checkpoint", from_checkpoint)
    monkeypatch.setattr(tuner, "_check_packages", lambda _: None)
    recipe = dataclasses.replace(PAPER_QLORA, max_length=32, steps=2, epochs=None)
    with pytest.raises(Reached):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=recipe, validation=PAIRS, progress=False)
    assert asked == {"source": str(tmp_path / "base"), "bits": 4}
    based = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert same(weights(based), weights(tuned.source))
    assert (reached["peft_config"].r, reached["peft_config"].lora_alpha) == (64, 16)
    assert reached["args"].gradient_checkpointing
    instead = json.loads((tmp_path / "recipe.json").read_text("utf-8"))["instead"]
    assert "the adapter is merged into the base as it was given, not into the one of 4 bits" in instead
