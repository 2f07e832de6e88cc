"""Edits in weights: baked equals hooked, in every family that has the place for it, and is refused elsewhere."""

import json
import subprocess
import sys
import textwrap

import families
import pytest
import torch
import transformers
from families import LAYOUTS, N_LAYERS
from safetensors.torch import load_file
from torch.testing import assert_close

from xlingtox.baking import ControlVectors
from xlingtox.generation import generate
from xlingtox.interventions import Offset, Scale, Set
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet

TEXTS = ["the cat sat on the mat", "la casa es grande", "кот"]
NEURONS = NeuronSet.of([(1, 0), (1, 39), (2, 5), (0, 7)])
OFFSET = Offset(NEURONS, -1.5) + Offset(NeuronSet.of([(1, 0)]), (0.25,))
SCALE = Scale(NEURONS, (0.0, 2.0, -1.0, 0.5))
MIXED = Scale(NEURONS, 2.0) + Offset(NEURONS, 1.0) + Scale(NeuronSet.of([(2, 5)]), 0.5)
MIXED += Set(NeuronSet.of([(0, 7)]), 0.75)
BIASED = ["gpt2", "bloom", "llama tied, biased", "xglm", "opt"]
GIVEN = ["llama", "qwen2"]
WITHOUT = ["mistral", "cohere", "cohere2", "qwen3", "gemma2", "gemma3", "phi3"]


@pytest.fixture(scope="module", params=list(LAYOUTS))
def family(request, tokenizer):
    model = families.build(request.param)
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer)


def equal(edit, lm, baked):
    ids, mask = lm.encode(TEXTS)
    with edit.on(lm):
        hooked = lm.logits(ids, mask)[mask]
        texts = generate(lm, TEXTS, max_new_tokens=10, greedy=True, progress=False).texts
    assert_close(baked.logits(ids, mask)[mask], hooked, atol=1e-5, rtol=1e-5)
    assert generate(baked, TEXTS, max_new_tokens=10, greedy=True, progress=False).texts == texts
    assert not torch.allclose(lm.logits(ids, mask)[mask], hooked, atol=1e-3)


def test_every_family_is_in_one_group():
    assert sorted(BIASED + GIVEN + WITHOUT) == sorted(LAYOUTS)


def test_scaling_is_baked_everywhere(family):
    _, _, lm = family
    before = {name: weight.clone() for name, weight in lm.unwrapped().state_dict().items()}
    equal(SCALE, lm, SCALE.bake(lm))
    assert all(torch.equal(weight, before[name]) for name, weight in lm.unwrapped().state_dict().items())


@pytest.mark.parametrize("edit", [OFFSET, MIXED], ids=["offset", "mixed"])
def test_offsets_are_baked_where_a_bias_can_be(family, edit):
    name, _, lm = family
    if name in WITHOUT:
        with pytest.raises(ValueError, match=r"cannot be baked into.*control_vectors"):
            edit.bake(lm)
        return
    equal(edit, lm, edit.bake(lm))


def test_a_checkpoint_that_plain_transformers_loads(family, tmp_path):
    name, _, lm = family
    edit = SCALE if name in WITHOUT else OFFSET
    baked = edit.bake(lm, tmp_path)
    equal(edit, lm, baked)
    assert baked.name == str(tmp_path)
    record = json.loads((tmp_path / "bake.json").read_text("utf-8"))
    assert record["fingerprint"] == lm.fingerprint()
    assert record["written_as"] == {"qwen2": "LlamaForCausalLM", "llama": "mlp_bias"}.get(name, "as it was")
    if name not in ("gpt2", "qwen2"):
        return  # a fresh process each would take minutes
    ids, mask = lm.encode(TEXTS[:1])
    torch.save(baked.logits(ids, mask), tmp_path / "ours.pt")
    code = f"""
        import torch, sys, transformers
        model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained({str(tmp_path)!r})
        ids = tokenizer({TEXTS[0]!r}, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            theirs = model(input_ids=ids).logits
        assert "xlingtox" not in sys.modules
        torch.testing.assert_close(theirs, torch.load({str(tmp_path / "ours.pt")!r}), atol=1e-5, rtol=1e-5)
        print("the same")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr


def test_control_vectors_where_a_constant_is_the_same(family, tmp_path):
    name, model, lm = family
    if name.startswith("gemma"):
        with pytest.raises(ValueError, match="norm or a scale after its MLP: no constant fits"):
            OFFSET.control_vectors(lm)
        return
    found = OFFSET.control_vectors(lm)
    assert sorted(found.vectors) == [0, 1, 2]
    by_hand = -1.25 * families.values(model, name, 1)[0] - 1.5 * families.values(model, name, 1)[39]
    assert_close(found.vectors[1], by_hand, atol=1e-6, rtol=1e-5)
    ids, mask = lm.encode(TEXTS)
    with OFFSET.on(lm):
        hooked = lm.logits(ids, mask)[mask]
    with found.on(lm):
        assert_close(lm.logits(ids, mask)[mask], hooked, atol=1e-5, rtol=1e-5)
    found.save(tmp_path / "vectors")
    assert sorted(load_file(tmp_path / "vectors")) == [f"layer.{layer}" for layer in range(N_LAYERS)]
    again = ControlVectors.load(tmp_path / "vectors")
    assert all(torch.equal(again.vectors[layer], found.vectors[layer]) for layer in found.vectors)


@pytest.mark.parametrize("kind", [Scale, Set])
def test_what_is_no_constant_is_no_control_vector(lm, kind):
    with pytest.raises(ValueError, match="only offsets are constant"):
        kind(NeuronSet.of([(1, 0)]), 0.5).control_vectors(lm)


def test_mistral_without_a_window_is_written_as_llama(tokenizer, tmp_path):
    size = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    config = transformers.MistralConfig(
        num_attention_heads=4, num_key_value_heads=2, sliding_window=None, max_position_embeddings=64, **size
    )
    lm = HookedLM.load(transformers.MistralForCausalLM(config).eval(), tokenizer=tokenizer)
    edit = Offset(NEURONS, 30.0)
    equal(edit, lm, edit.bake(lm, tmp_path))
    assert json.loads((tmp_path / "bake.json").read_text("utf-8"))["written_as"] == "LlamaForCausalLM"


def test_gguf(lm, tmp_path):
    found = Offset(NeuronSet.of([(1, 0), (1, 5)]), -2.0).control_vectors(lm)
    with pytest.raises(ValueError, match="cannot steer the first block"):
        Offset(NeuronSet.of([(0, 0)]), 1.0).control_vectors(lm).save_gguf(tmp_path / "no.gguf", "gpt2")
    gguf = pytest.importorskip("gguf")
    found.save_gguf(tmp_path / "steer.gguf", "gpt2")
    reader = gguf.GGUFReader(tmp_path / "steer.gguf")
    (tensor,) = reader.tensors
    assert tensor.name == "direction.1"
    assert_close(torch.tensor(tensor.data), found.vectors[1])


@pytest.mark.parametrize("positions", ["prompt", "new"])
def test_an_edit_of_some_positions_is_not_baked(lm, positions):
    edit = Offset(NeuronSet.of([(1, 0)]), 1.0, positions)
    with pytest.raises(ValueError, match="acts at some positions only"):
        edit.bake(lm)
    with pytest.raises(ValueError, match="acts at some positions only"):
        edit.control_vectors(lm)


def test_nothing_is_written_before_it_is_known_to_fit(tokenizer, tmp_path):
    lm = HookedLM.load(families.build("cohere"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="cannot be baked"):
        OFFSET.bake(lm, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OSError, match="cannot write"):
        SCALE.bake(lm, tmp_path / "file")


def test_rounding_in_bfloat16(tokenizer):
    """A baked bias is rounded once more than a hooked offset: no further from the truth than bfloat16 itself."""
    model = families.build("gpt2")
    whole, half = (HookedLM.load(model, tokenizer=tokenizer, dtype=kind) for kind in (torch.float32, torch.bfloat16))
    ids, mask = whole.encode(TEXTS)
    with OFFSET.on(whole):
        truth = whole.logits(ids, mask)[mask]
    with OFFSET.on(half):
        hooked = half.logits(ids, mask)[mask].float()
    baked = OFFSET.bake(half).logits(ids, mask)[mask].float()
    assert (baked - truth).abs().mean() < 2 * (hooked - truth).abs().mean()
