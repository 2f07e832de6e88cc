"""Edits in weights: baked equals hooked, in every family that has the place for it, and is refused elsewhere."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import families
import gguf
import pytest
import torch
import transformers
from datasets import Dataset
from families import LAYOUTS, N_LAYERS
from safetensors.torch import load_file
from torch.testing import assert_close

from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Offset, Scale, Set
from xlingtox.models.generation import decode, generate, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning.dpo import MINI, tune_dpo

TEXTS = ["the cat sat on the mat", "la casa es grande", "кот"]
NEURONS = NeuronSet.of([(1, 0), (1, 39), (2, 5), (0, 7)])
OFFSET = Offset(NEURONS, -1.5) + Offset(NeuronSet.of([(1, 0)]), (0.25,))
SCALE = Scale(NEURONS, (0.0, 2.0, -1.0, 0.5))
MIXED = Scale(NEURONS, 2.0) + Offset(NEURONS, 1.0) + Scale(NeuronSet.of([(2, 5)]), 0.5)
MIXED += Set(NeuronSet.of([(0, 7)]), 0.75)
BIASED = ["gpt2", "bloom", "llama tied, biased", "xglm", "opt"]
GIVEN = {"llama": "mlp_bias", "qwen2": "LlamaForCausalLM", "cohere": "attention_bias", "cohere2": "attention_bias"}
WITHOUT = ["mistral", "qwen3", "gemma2", "gemma3", "phi3"]


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
    assert sorted([*BIASED, *GIVEN, *WITHOUT]) == sorted(LAYOUTS)


def test_scaling_is_baked_everywhere(family):
    _, _, lm = family
    before = {name: weight.clone() for name, weight in lm.unwrapped().state_dict().items()}
    equal(SCALE, lm, SCALE.bake(lm))
    assert all(torch.equal(weight, before[name]) for name, weight in lm.unwrapped().state_dict().items())


@pytest.mark.parametrize("edit", [OFFSET, MIXED], ids=["offset", "mixed"])
def test_offsets_are_baked_where_a_bias_can_be(family, edit):
    name, _, lm = family
    if name in WITHOUT:
        # What is advised must not be refused next.
        instead = "control_vectors" if edit is OFFSET and not name.startswith("gemma") else r"edit\.on\(lm\)"
        with pytest.raises(ValueError, match=rf"cannot be baked into.*{instead}"):
            edit.bake(lm)
        return
    equal(edit, lm, edit.bake(lm))


def test_a_checkpoint_that_plain_transformers_loads(family, tmp_path):
    name, _, lm = family
    edit = SCALE if name in WITHOUT else OFFSET
    baked = edit.bake(lm, output_dir=tmp_path)
    equal(edit, lm, baked)
    assert baked.name == str(tmp_path)
    record = json.loads((tmp_path / "bake.json").read_text("utf-8"))
    assert record["fingerprint"] == lm.fingerprint()
    assert record["written_as"] == GIVEN.get(name, "as it was")
    first = record["steps"][0]
    assert first["neurons"] == [[1, 0], [1, 39], [2, 5], [0, 7]]
    assert first["value"] in (-1.5, [0.0, 2.0, -1.0, 0.5])
    with pytest.raises(ValueError, match=r"holds a model already \(config.json\)"):
        edit.bake(lm, output_dir=tmp_path)


def test_a_fresh_process_with_plain_transformers_writes_the_same(tokenizer, tmp_path):
    """One process for all families: that of starting it is most of the cost."""
    for name in LAYOUTS:
        lm = HookedLM.load(families.build(name), tokenizer=tokenizer)
        edit = SCALE if name in WITHOUT else OFFSET
        edit.bake(lm, output_dir=tmp_path / name)
        ids, mask = lm.encode(TEXTS[:1])
        with edit.on(lm):
            hooked = lm.logits(ids, mask)
            written = decode(lm, ids, mask, 8, pick=pick_greedily)[0]
        torch.save((ids, hooked, written), tmp_path / name / "ours.pt")
    code = f"""
        import pathlib, sys, torch, transformers
        for folder in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
            model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            ids, hooked, written = torch.load(folder / "ours.pt")
            assert tokenizer({TEXTS[0]!r})["input_ids"] == ids[0].tolist()
            with torch.no_grad():
                theirs = model(input_ids=ids).logits
            torch.testing.assert_close(theirs, hooked, atol=1e-5, rtol=1e-5)
            text = model.generate(input_ids=ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1]:]
            assert text.tolist() == written[0, : len(text)].tolist(), folder
            print(folder.name)
        assert "xlingtox" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == sorted(LAYOUTS), done.stderr


def test_control_vectors_where_a_constant_is_the_same(family, tmp_path):
    name, model, lm = family
    if name.startswith("gemma"):
        with pytest.raises(ValueError, match="norm after its MLP: no constant fits"):
            OFFSET.control_vectors(lm)
        return
    vectors = OFFSET.control_vectors(lm)
    assert sorted(vectors.vectors) == [0, 1, 2]
    by_hand = -1.25 * families.values(model, name, 1)[0] - 1.5 * families.values(model, name, 1)[39]
    assert_close(vectors.vectors[1], by_hand, atol=1e-6, rtol=1e-5)
    ids, mask = lm.encode(TEXTS)
    with OFFSET.on(lm):
        hooked = lm.logits(ids, mask)[mask]
    with vectors.on(lm):
        assert_close(lm.logits(ids, mask)[mask], hooked, atol=1e-5, rtol=1e-5)
    vectors.save(tmp_path / "vectors")
    assert sorted(load_file(tmp_path / "vectors")) == [f"layer.{layer}" for layer in range(N_LAYERS)]
    again = ControlVectors.load(tmp_path / "vectors")
    assert again == vectors
    assert again != ControlVectors({layer: 2 * vector for layer, vector in vectors.vectors.items()})


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
    equal(edit, lm, edit.bake(lm, output_dir=tmp_path))
    assert json.loads((tmp_path / "bake.json").read_text("utf-8"))["written_as"] == "LlamaForCausalLM"


def test_gguf(lm, tmp_path):
    vectors = Offset(NeuronSet.of([(1, 0), (1, 5)]), -2.0).control_vectors(lm)
    with pytest.raises(ValueError, match="cannot steer the first block"):
        Offset(NeuronSet.of([(0, 0)]), 1.0).control_vectors(lm).save_gguf(tmp_path / "no.gguf", "gpt2")
    vectors.save_gguf(tmp_path / "steer.gguf", "gpt2")
    reader = gguf.GGUFReader(tmp_path / "steer.gguf")
    (tensor,) = reader.tensors
    assert tensor.name == "direction.1"
    assert_close(torch.tensor(tensor.data), vectors.vectors[1])
    assert reader.get_field("controlvector.model_hint").contents() == "gpt2"
    assert reader.get_field("controlvector.layer_count").contents() == 1


def test_a_missing_package_is_named_with_its_extra(lm, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'xlingtox\[gguf\]'"):
        Offset(NeuronSet.of([(1, 0)]), -2.0).control_vectors(lm).save_gguf(tmp_path / "steer.gguf", "gpt2")


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_vector_of_no_layer(lm, layer):
    with pytest.raises(ValueError, match=f"a vector of layer {layer}: .* has layers 0 to 1"):
        ControlVectors({layer: torch.ones(lm.d_model)}).on(lm).__enter__()


@pytest.mark.parametrize("positions", ["prompt", "new"])
def test_an_edit_of_some_positions_is_not_baked(lm, positions):
    edit = Offset(NeuronSet.of([(1, 0)]), 1.0, positions=positions)
    with pytest.raises(ValueError, match="acts at some positions only"):
        edit.bake(lm)
    with pytest.raises(ValueError, match="acts at some positions only"):
        edit.control_vectors(lm)


def test_nothing_is_written_before_it_is_known_to_fit(tokenizer, tmp_path):
    lm = HookedLM.load(families.build("phi3"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="cannot be baked"):
        OFFSET.bake(lm, output_dir=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OSError, match="cannot write"):
        SCALE.bake(lm, output_dir=tmp_path / "file")


def test_rounding_in_bfloat16(tokenizer):
    """A baked bias is rounded once more than a hooked offset: no further from the truth than bfloat16 itself."""
    model = families.build("gpt2")
    single, half = (HookedLM.load(model, tokenizer=tokenizer, dtype=kind) for kind in (torch.float32, torch.bfloat16))
    ids, mask = single.encode(TEXTS)
    with OFFSET.on(single):
        truth = single.logits(ids, mask)[mask]
    with OFFSET.on(half):
        hooked = half.logits(ids, mask)[mask].float()
    baked = OFFSET.bake(half)
    gap = (baked.logits(ids, mask)[mask].float() - truth).abs().mean()
    assert gap < 2 * (hooked - truth).abs().mean()
    # Worked out exactly, rounded once.
    before = copy.deepcopy(model).bfloat16()
    values = families.values(before, "gpt2", 1).double()
    exact = families.down(before, "gpt2", 1).bias.double() - 1.25 * values[0] - 1.5 * values[39]
    assert torch.equal(families.down(baked.unwrapped(), "gpt2", 1).bias, exact.bfloat16())


def test_far_positions_in_bfloat16(tokenizer):
    """Rotary frequencies are exact: rounded, they turn the last of a thousand positions by radians."""
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    model = families.randomised(transformers.LlamaForCausalLM(config)).bfloat16()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.bfloat16)
    ids = torch.randint(0, 300, (1, 1500), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(lm.logits(ids, mask), model(input_ids=ids).logits)
    edit = Offset(NEURONS, 0.5)
    with edit.on(lm):
        hooked = lm.logits(ids, mask).float()
    assert (edit.bake(lm).logits(ids, mask).float() - hooked).abs().max() < 0.1 * hooked.abs().max()


def test_settings_of_sampling_beside_greedy_decoding_are_no_obstacle(tokenizer, tmp_path):
    """The checkpoint of Llama 2 has such settings: transformers reads them but does not write them."""
    model = families.build("llama")
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.9
    model.generation_config.top_p, model.generation_config.max_length = 0.6, 50
    SCALE.bake(HookedLM.load(model, tokenizer=tokenizer), output_dir=tmp_path / "out")
    assert model.generation_config.temperature == 0.9
    written = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (written.temperature, written.top_p, written.max_length) == (None, None, 50)


def granite(**settings):
    size = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    config = transformers.GraniteConfig(
        num_attention_heads=4,
        max_position_embeddings=64,
        residual_multiplier=0.22,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        logits_scaling=4.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        **size,
        **settings,
    )
    return families.randomised(transformers.GraniteForCausalLM(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_multiplier_is_folded_in(tokenizer, tmp_path, dtype):
    model = granite()
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=dtype)
    assert lm.mlp_multipliers == pytest.approx([0.22] * 3, rel=1e-5 if dtype == torch.float32 else 5e-3)
    if dtype == torch.float32:
        equal(OFFSET, lm, OFFSET.bake(lm, output_dir=tmp_path / "out"))
        assert json.loads((tmp_path / "out" / "bake.json").read_text("utf-8"))["written_as"] == "mlp_bias"
    vectors = OFFSET.control_vectors(lm)
    plain, ids = copy.deepcopy(model), lm.encode(TEXTS[:1])[0]
    for layer, vector in vectors.vectors.items():
        values = model.model.layers[layer].mlp.down_proj.weight.T.detach()
        by_hand = {0: -1.5 * values[7], 1: -1.25 * values[0] - 1.5 * values[39], 2: -1.5 * values[5]}[layer]
        assert_close(vector, 0.22 * by_hand, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=1e-5)
        plain.model.layers[layer].mlp.down_proj.register_forward_hook(lambda _, args, out, push=by_hand: out + push)
    if dtype == torch.float32:
        with torch.no_grad(), vectors.on(lm):
            assert_close(lm.logits(ids, torch.ones_like(ids) > 0), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_a_family_with_biases_keeps_its_class(tokenizer, tmp_path):
    size = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    config = transformers.SmolLM3Config(
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, **size
    )
    lm = HookedLM.load(families.randomised(transformers.SmolLM3ForCausalLM(config)), tokenizer=tokenizer)
    baked = MIXED.bake(lm, output_dir=tmp_path / "out")
    equal(MIXED, lm, baked)
    assert type(baked.unwrapped()) is transformers.SmolLM3ForCausalLM


def youtu():
    """A family that zeroes the row of its padding when it is read."""
    size = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    config = transformers.YoutuConfig(
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        **size,
    )
    return families.randomised(transformers.YoutuForCausalLM(config))


def test_what_a_fresh_process_would_read_otherwise_is_refused(tokenizer, tmp_path):
    model = youtu()
    lm = HookedLM.load(model, tokenizer=tokenizer)
    equal(SCALE, lm, SCALE.bake(lm))
    with pytest.raises(ValueError, match=r"read again, model.embed_tokens.weight \(row 1 of 300\) is not what was"):
        SCALE.bake(lm, output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = 0
    lm = HookedLM.load(model, tokenizer=tokenizer)
    equal(SCALE, lm, SCALE.bake(lm, output_dir=tmp_path / "out"))


def test_a_tuned_checkpoint_that_is_read_otherwise_is_told(tokenizer, tmp_path, caplog):
    pairs = Dataset.from_dict({"prompt": ["the cat"] * 2, "chosen": [" sat"] * 2, "rejected": [" ran"] * 2})
    recipe = dataclasses.replace(MINI, steps=1)
    lm = HookedLM.load(youtu(), tokenizer=tokenizer)
    tune_dpo(lm, pairs, output_dir=tmp_path / "youtu", recipe=recipe, progress=False)
    assert "transformers alters model.embed_tokens.weight (row 1 of 300) when it loads the tuned" in caplog.text
    caplog.clear()
    lm = HookedLM.load(families.build("llama"), tokenizer=tokenizer)
    tune_dpo(lm, pairs, output_dir=tmp_path / "llama", recipe=recipe, progress=False)
    assert "alters" not in caplog.text


def test_control_vectors_of_packed_weights_are_exact(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    size = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(num_attention_heads=4, max_position_embeddings=64, pad_token_id=1, **size)
    families.randomised(transformers.LlamaForCausalLM(config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = HookedLM.load(tmp_path, bits=4)
    assert lm.mlp_multipliers == (1.0, 1.0)
    edit, (ids, mask) = Offset(NeuronSet.of([(1, 0)]), -1.5), lm.encode(["la casa"])
    with edit.on(lm):
        wanted = lm.logits(ids, mask)
    with edit.control_vectors(lm).on(lm):
        torch.testing.assert_close(lm.logits(ids, mask), wanted)
    assert not torch.allclose(lm.logits(ids, mask), wanted, atol=1e-2)


def test_a_setting_that_a_configuration_does_not_hold_is_seen_in_the_logits(tokenizer, tmp_path):
    model = families.build("llama")
    model.model.rotary_emb.inv_freq *= 3
    lm = HookedLM.load(model, tokenizer=tokenizer)
    equal(SCALE, lm, SCALE.bake(lm))
    with pytest.raises(ValueError, match=r"what is read again differs .logits differ by"):
        SCALE.bake(lm, output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bake_that_is_killed_leaves_a_model_or_none(tokenizer, tmp_path):
    """Processes are killed at random moments, and just before the tokenizer, the record and the folder are there."""
    base = tmp_path / "base"
    families.build("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    code = f"""
        import os, pathlib, random, shutil, signal, threading, time, torch, tqdm, transformers
        # Processes share one lock of progress bars: one that is killed while it holds it would stop the others.
        tqdm.tqdm.set_lock(threading.RLock())
        transformers.utils.logging.disable_progress_bar()
        from xlingtox.edits import baking
        from xlingtox.edits.interventions import Scale
        from xlingtox.models.hooked import HookedLM
        from xlingtox.neurons.neuron_set import NeuronSet
        lm, target = HookedLM.load({str(base)!r}), pathlib.Path({str(tmp_path / "out" / "baked")!r})
        edit = Scale(NeuronSet.of([(1, 0)]), 3.0)
        ids = torch.tensor([[5, 6, 7, 8]])
        mask = torch.ones_like(ids, dtype=torch.bool)
        with edit.on(lm):
            wanted = lm.logits(ids, mask)
        started = time.monotonic()
        edit.bake(lm, output_dir=target)
        lasts = time.monotonic() - started
        shutil.rmtree(target)
        places = [(type(lm.tokenizer), "save_pretrained"), (baking.files, "write_json"), (pathlib.Path, "replace")]
        left = 0
        for kill in [*places, *random.Random(0).sample(range(100), 5)]:
            child = os.fork()
            if child == 0:
                if isinstance(kill, tuple):
                    setattr(*kill, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))
                edit.bake(lm, output_dir=target)
                os._exit(0)
            if not isinstance(kill, tuple):
                time.sleep(lasts * kill / 100)
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left += len([path for path in target.parent.iterdir() if path != target])
            if target.exists():
                read = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
                torch.testing.assert_close(read(input_ids=ids).logits, wanted)
                shutil.rmtree(target)
        baked = edit.bake(lm, output_dir=target)
        torch.testing.assert_close(baked.logits(ids, mask), wanted)
        print(left >= 3, [path.name for path in target.parent.iterdir()], flush=True)
        os._exit(0)  # threads of packages that were there when a child was forked may not end
    """
    # One thread: what is forked has no others.
    command, more = [sys.executable, "-c", textwrap.dedent(code)], {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | more, timeout=600)
    assert done.stdout.splitlines()[-1:] == ["True ['baked']"], done.stderr


def test_a_folder_that_holds_something_else_is_left_alone(lm, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(ValueError, match=r"is not empty .notes.txt.: give a new folder"):
        Scale(NeuronSet.of([(1, 0)]), 0.5).bake(lm, output_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("held", ["config.json", "adapter_config.json", "model-00001-of-00002.safetensors"])
def test_a_folder_that_holds_a_model_is_left_alone(lm, tmp_path, held):
    (tmp_path / held).write_text("{}", "utf-8")
    with pytest.raises(ValueError, match=f"holds a model already .{held}"):
        Scale(NeuronSet.of([(1, 0)]), 0.5).bake(lm, output_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [held]


def test_what_else_acts_on_the_model_is_not_baked(lm):
    edit = Scale(NeuronSet.of([(1, 0)]), 0.5)
    with edit.on(lm):
        lm.logits(*lm.encode(TEXTS))
        with pytest.raises(ValueError, match="hooks or another edit act on"):
            edit.bake(lm)
    edit.bake(lm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 0.5])
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_small_offset_is_no_more_a_constant_than_a_large_one(tokenizer, name, size, dtype):
    lm = HookedLM.load(families.build(name), tokenizer=tokenizer, dtype=dtype)
    with pytest.raises(ValueError, match="no constant fits"):
        Offset(NEURONS, size).control_vectors(lm)


def test_a_small_offset_that_is_a_constant(tokenizer):
    lm = HookedLM.load(families.build("llama"), tokenizer=tokenizer, dtype=torch.bfloat16)
    assert sorted(Offset(NEURONS, 1e-3).control_vectors(lm).vectors) == [0, 1, 2]


def test_vectors_of_another_model_and_of_nothing(lm):
    with pytest.raises(ValueError, match="cancel: no vector is left"):
        (Offset(NEURONS, 1.0) + Offset(NEURONS, -1.0)).control_vectors(HookedLM.load("mini"))
    with pytest.raises(ValueError, match=r"vector of \[7\]"), ControlVectors({0: torch.zeros(7)}).on(lm):
        pass
