"""GGUF files: read as what they stand for, edited, baked, and tuned."""

import importlib.util

import families
import gguf
import numpy as np
import pytest
import raw
import torch
import transformers
from torch.testing import assert_close

from xlingtox.edits.interventions import Scale
from xlingtox.models import gguf_files
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning.dpo import tune_dpo

TEXTS = ["the cat sat on the mat", "la casa"]
KINDS = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
}


def llama():
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
    )
    return families.randomised(transformers.LlamaForCausalLM(config))


def written(model, path, kind):
    """Write a Llama as llama.cpp's converter does."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_file_type(KINDS[kind])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)

    def add(name, weight):
        packed = gguf.quantize(np.ascontiguousarray(weight.numpy()), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])

    def turned(weight, heads):
        """Rotary halves side by side, as llama.cpp turns them."""
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    add("token_embd.weight", state["model.embed_tokens.weight"])
    add("output.weight", state["lm_head.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        inside = f"model.layers.{layer}."
        for name, path_, heads in (
            ("attn_q", "self_attn.q_proj", config.num_attention_heads),
            ("attn_k", "self_attn.k_proj", config.num_key_value_heads),
        ):
            add(f"blk.{layer}.{name}.weight", turned(state[f"{inside}{path_}.weight"], heads))
        for name, path_ in (
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ):
            add(f"blk.{layer}.{name}.weight", state[f"{inside}{path_}.weight"])
        for name, path_ in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            writer.add_tensor(f"blk.{layer}.{name}.weight", state[f"{inside}{path_}.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=["F32", "Q8_0", "Q4_1"])
def file(request, tmp_path):
    (tmp_path / "models").mkdir()
    return written(llama(), tmp_path / "models" / f"tiny.{request.param}.gguf", request.param), request.param


def test_a_file_is_read_for_what_it_stands_for(file, tokenizer, capfd):
    path, kind = file
    lm = HookedLM.load(path, tokenizer=tokenizer)
    assert "de-quantizing" not in capfd.readouterr().err
    identity = lm.identity()
    assert (identity.name, identity.dtype) == (str(path), f"float32, dequantised from GGUF {kind}")
    ids, mask = lm.encode(TEXTS)
    plain = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    assert_close(lm.logits(ids, mask)[mask], raw.forward(plain, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
    if kind == "F32":
        assert_close(lm.logits(ids, mask)[mask], raw.forward(llama(), ids, mask).logits[mask], atol=1e-4, rtol=1e-4)
    assert lm.tl is not None
    # A folder with nothing else to load is that file.
    assert HookedLM.load(path.parent, tokenizer=tokenizer).fingerprint() == lm.fingerprint()


@pytest.mark.parametrize("way", ["file", "memory"])
def test_what_came_from_gguf_is_baked_and_tuned(file, tokenizer, tmp_path, way):
    path, kind = file
    if way == "file":
        lm = HookedLM.load(path, tokenizer=tokenizer)
    else:
        plain = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
        lm = HookedLM.load(plain, tokenizer=tokenizer)
        assert lm.identity().dtype == "float32, dequantised from GGUF"
        assert gguf_files.is_from_gguf(plain) or not hasattr(plain, "hf_quantizer")
    edit = Scale(NeuronSet.of([(1, 3)]), 0.0)
    ids, mask = lm.encode(TEXTS)
    with edit.on(lm):
        hooked = lm.logits(ids, mask)
    edit.bake(lm, output_dir=tmp_path / "baked")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    assert_close(raw.forward(again, ids, mask).logits[mask], hooked[mask], atol=1e-5, rtol=1e-5)
    if kind == "Q4_1":
        from preferences import PAIRS, RECIPE

        tuned = tune_dpo(lm, PAIRS, output_dir=tmp_path / "run", recipe=RECIPE, progress=False)
        assert tuned.identity().dtype == "float32"
        assert tuned.fingerprint() != lm.fingerprint()


def test_what_is_no_gguf_file(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        HookedLM.load(tmp_path / "none.gguf", tokenizer=tokenizer)
    (tmp_path / "other.gguf").write_bytes(b"PK" * 100)
    with pytest.raises(ValueError, match=r"other\.gguf is no GGUF file"):
        HookedLM.load(tmp_path / "other.gguf", tokenizer=tokenizer)
    content = written(llama(), tmp_path / "tiny.gguf", "F32").read_bytes()
    for share in (2, 20):
        (tmp_path / "cut.gguf").write_bytes(content[: len(content) // share])
        with pytest.raises(ValueError, match=r"cut\.gguf cannot be read as GGUF"):
            HookedLM.load(tmp_path / "cut.gguf", tokenizer=tokenizer)
    (tmp_path / "several").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "several" / name).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="holds 2 GGUF files: give the path of one"):
        HookedLM.load(tmp_path / "several", tokenizer=tokenizer)


def test_bits_and_a_missing_package(tmp_path, tokenizer, monkeypatch):
    path = written(llama(), tmp_path / "tiny.gguf", "Q8_0")
    with pytest.raises(ValueError, match=r"bits=4 is asked of .*tiny\.gguf, a GGUF file"):
        HookedLM.load(path, tokenizer=tokenizer, bits=4)
    assert HookedLM.load(path, tokenizer=tokenizer, dtype=torch.bfloat16).dtype == torch.bfloat16
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find_spec(name, *rest)
    )
    with pytest.raises(ImportError, match=r"pip install 'xlingtox\[gguf\]'"):
        HookedLM.load(path, tokenizer=tokenizer)
