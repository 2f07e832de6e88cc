"""The text of checkpoints that also see pictures: read from memory and from a folder, baked and tuned."""

import dataclasses

import families
import pytest
import torch
import transformers
from datasets import Dataset
from test_families import OLD
from torch.testing import assert_close

from xlingtox.edits.interventions import Scale
from xlingtox.models.generation import decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import MINI, Lora, tune_dpo

pytestmark = pytest.mark.skipif(OLD, reason="TransformerLens 3.9 knows none of them")
TEXTS = ["the cat sat on the mat", "la casa es grande"]
EDIT = Scale(NeuronSet.of([(1, 0), (2, 7)]), 3.0)
_IDS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    **_IDS,
}
_EYES = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
_FLAT = _EYES | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
_SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}


def mistral3():
    config = transformers.Mistral3Config(
        text_config={"model_type": "ministral3", **_TEXT}, vision_config={"model_type": "pixtral", **_FLAT}
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def gemma3():
    config = transformers.Gemma3Config(
        text_config=_TEXT | _SLIDING,
        vision_config=_FLAT,
        mm_tokens_per_image=4,
        image_token_index=299,
        boi_token_index=298,
        eoi_token_index=297,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def gemma4(**text):
    sizes = {"global_head_dim": 8, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
    eyes = {"num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4}
    config = transformers.Gemma4Config(
        text_config=_TEXT | _SLIDING | sizes | {"vocab_size_per_layer_input": 300} | text,
        vision_config=_EYES
        | eyes
        | {"model_type": "gemma4_vision", "position_embedding_size": 16, "pooling_kernel_size": 2},
        audio_config=None,
        image_token_id=299,
        boi_token_id=298,
        eoi_token_id=297,
        audio_token_id=296,
        boa_token_id=295,
        eoa_token_id=294,
        video_token_id=293,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


def qwen3_5(**text):
    eyes = {"hidden_size": 16, "intermediate_size": 20, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(
        text_config=_TEXT | {"layer_types": ["full_attention"] * 3} | text,
        vision_config=eyes | {"patch_size": 14, "num_position_embeddings": 16, "deepstack_visual_indexes": []},
        image_token_id=299,
        video_token_id=298,
        vision_start_token_id=297,
        vision_end_token_id=296,
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


MADE = {"mistral3": mistral3, "gemma3": gemma3, "gemma4": gemma4, "qwen3.5": qwen3_5}


@pytest.fixture(scope="module", params=list(MADE))
def model(request):
    return families.randomised(MADE[request.param]())


def plainly(model, lm, ids, mask):
    """Logits, post-activations and greedy tokens of plain Hugging Face, each text alone."""
    expected, seen = [], {}
    layers = model.model.language_model.layers
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, n=n: seen.__setitem__(n, args[0]))
        for n, layer in enumerate(layers)
    ]
    for row, kept in zip(ids, mask, strict=True):
        alone = row[kept][None]
        with torch.no_grad():
            logits = model(input_ids=alone).logits[0]
        neurons = torch.stack([seen[n][0] for n in range(3)])
        expected.append((logits, neurons, model.generate(input_ids=alone, do_sample=False, max_new_tokens=6)))
    for handle in handles:
        handle.remove()
    return expected


def test_its_text_is_read_as_plain_transformers_reads_it(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for lm in (HookedLM.load(model, tokenizer=tokenizer), HookedLM.load(tmp_path)):
        ids, mask = lm.encode(TEXTS)
        seen = {}
        with lm.hooks(post={n: lambda value, n=n, kept=seen: kept.__setitem__(n, value.clone()) for n in range(3)}):
            tokens, counts = decode(lm, ids, mask, 6, pick=pick_greedily)
            logits = lm.logits(ids, mask)
        for i, (theirs, neurons, written) in enumerate(plainly(model, lm, ids, mask)):
            assert_close(logits[i][mask[i]], theirs, atol=1e-5, rtol=1e-5)
            ours = torch.stack([seen[n][i][mask[i]] for n in range(3)])
            assert_close(ours, neurons, atol=1e-5, rtol=1e-5)
            assert tokens[i][counts[i]].tolist() == written[0, int(mask[i].sum()) :].tolist()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_it_is_baked_and_read_again_by_the_class_that_it_names(model, tokenizer, tmp_path):
    lm = HookedLM.load(model, tokenizer=tokenizer)
    baked = EDIT.bake(lm, output_dir=tmp_path / "out")
    ids, mask = lm.encode(TEXTS[:1])
    with EDIT.on(lm):
        hooked = lm.logits(ids, mask)
    assert_close(baked.logits(ids, mask), hooked, atol=1e-5, rtol=1e-5)
    (named,) = transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures
    plain = getattr(transformers, named).from_pretrained(tmp_path / "out", use_safetensors=True).eval()
    with torch.no_grad():
        assert_close(plain(input_ids=ids).logits, hooked, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lm.logits(ids, mask), hooked, atol=1e-3)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, bits=None)], ids=["whole", "adapter"])
def test_it_is_tuned(model, tokenizer, tmp_path, lora):
    pairs = Dataset.from_dict({"prompt": ["the cat"] * 4, "chosen": [" sat"] * 4, "rejected": [" ran"] * 4})
    recipe = dataclasses.replace(MINI, steps=4, learning_rate=1e-2, lora=lora)
    lm = HookedLM.load(model, tokenizer=tokenizer)
    tuned = tune_dpo(lm, pairs, output_dir=tmp_path / "out", recipe=recipe, progress=False)

    def preferred(of):
        start = len(tokenizer("the cat")["input_ids"])
        chances = []
        for side in (" sat", " ran"):
            ids, mask = of.encode(["the cat" + side])
            logits = of.logits(ids, mask)[0, start - 1 : -1].log_softmax(-1)
            chances.append(float(logits.gather(-1, ids[0, start:, None]).sum()))
        return chances[0] - chances[1]

    assert preferred(tuned) > preferred(lm)
    assert type(tuned.unwrapped()) is type(lm.unwrapped())


def test_a_hybrid_is_refused_in_memory_and_from_a_folder(tokenizer, tmp_path):
    linear = {f"linear_{what}": 2 for what in ("num_key_heads", "num_value_heads")}
    linear |= {f"linear_{what}": 8 for what in ("key_head_dim", "value_head_dim")}
    model = qwen3_5(layer_types=["linear_attention", "full_attention", "linear_attention"], **linear)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for source, options in ((model, {"tokenizer": tokenizer}), (tmp_path, {})):
        with pytest.raises(ValueError, match=r"state-space or linear ones .LinearAttentionLayer.") as refused:
            HookedLM.load(source, **options)
        assert len(str(refused.value).splitlines()) == 1


def test_what_transformers_knows_no_text_of_is_refused_in_a_line(tokenizer, tmp_path):
    transformers.ViTForImageClassification(transformers.ViTConfig(**_FLAT)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTForImageClassification is not a causal language model") as refused:
        HookedLM.load(tmp_path)
    assert len(str(refused.value)) < 300
    config = transformers.ViTConfig(**_FLAT, architectures=["SomeForCausalLM"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="transformers has no causal language model for vit") as refused:
        HookedLM.load(tmp_path)
    assert len(str(refused.value)) < 300
