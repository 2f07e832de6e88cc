"""Every family by one mechanism: hooked equals raw, and neurons are where the paper has them."""

import copy
from importlib.metadata import version

import families
import pytest
import torch
import transformers
from families import LAYOUTS, N_LAYERS
from torch.testing import assert_close

from xlingtox.edits.interventions import Offset
from xlingtox.edits.patch import Patch
from xlingtox.models.generation import decode, generate, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import localize
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe

OLD = version("transformer-lens").startswith("3.")
TEXTS = ["the cat sat on the mat", "la casa es grande", "кот"]


@pytest.fixture(scope="module", params=list(LAYOUTS))
def family(request, tokenizer):
    model = families.build(request.param)
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer)


def plainly(model, name, ids, mask):
    """Hugging Face's logits of rows, each alone and unpadded, so that no mask or position can be wrong."""
    rows = []
    with torch.no_grad():
        for row, kept in zip(ids, mask, strict=True):
            rows.append(model(input_ids=row[kept][None]).logits[0])
    return rows


def test_logits_equal_hugging_face(family):
    name, model, lm = family
    ids, mask = lm.encode(TEXTS)
    ours = lm.logits(ids, mask)
    for row, kept, theirs in zip(ours, mask, plainly(model, name, ids, mask), strict=True):
        assert_close(row[kept], theirs, atol=1e-5, rtol=1e-5)


def test_greedy_continuations_equal_hugging_face(family, tokenizer):
    _name, model, lm = family
    ids, mask = lm.encode(TEXTS)
    tokens, counts = decode(lm, ids, mask, 12, pick=pick_greedily)
    for row, kept, new, count in zip(ids, mask, tokens, counts, strict=True):
        theirs = model.generate(input_ids=row[kept][None], do_sample=False, max_new_tokens=12)[0, int(kept.sum()) :]
        assert new[count].tolist() == theirs.tolist()
    alone = [generate(lm, [text], max_new_tokens=12, greedy=True, progress=False).texts[0] for text in TEXTS]
    assert list(generate(lm, TEXTS, max_new_tokens=12, greedy=True, progress=False).texts) == alone


def test_the_transformer_lens_side_gives_the_same(family):
    name, _model, lm = family
    if name.startswith("cohere") and OLD:
        # Its bridge of Cohere is wrong, which is seen at loading, and a hook by hand is refused.
        point = lm.tl.blocks[0].mlp.hook_post
        point.add_hook(lambda value, hook: None)
        with pytest.raises(RuntimeError, match="other logits than Hugging"):
            lm.logits(*lm.encode(TEXTS))
        point.remove_hooks()
        return
    ids, mask = lm.encode(TEXTS)
    bridged = HookedLM.load(lm.tl, tokenizer=lm.tokenizer)
    assert_close(bridged.logits(ids, mask)[mask], lm.logits(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    ours = [decode(model, ids, mask, 8, pick=pick_greedily)[0] for model in (lm, bridged)]
    assert torch.equal(*ours)
    neurons = NeuronSet.of([(0, 3), (2, 39), (1, 7)])
    read = [collect_activations(model, TEXTS, neurons, max_new_tokens=5, progress=False) for model in (lm, bridged)]
    assert_close(read[0].values, read[1].values, atol=1e-5, rtol=1e-5)


def test_the_post_activation_is_the_input_of_the_down_projection(family):
    name, model, lm = family
    ids, mask = lm.encode(TEXTS)
    seen = {}
    with lm.hooks(post={n: lambda value, n=n: seen.__setitem__(n, value.clone()) for n in range(N_LAYERS)}):
        lm.logits(ids, mask)
    raw = {}
    plain = copy.deepcopy(model)
    for n in range(N_LAYERS):
        families.down(plain, name, n).register_forward_pre_hook(lambda _, args, n=n: raw.__setitem__(n, args[0]))
    for i, (row, kept) in enumerate(zip(ids, mask, strict=True)):
        with torch.no_grad():
            plain(input_ids=row[kept][None])
        for n in range(N_LAYERS):
            theirs = raw[n].reshape(-1, families.d_mlp(name))
            assert_close(seen[n][i][kept], theirs, atol=1e-5, rtol=1e-5)


def test_an_offset_is_a_sum_of_value_vectors_at_the_mlps_output(family):
    name, model, lm = family
    ids, mask = lm.encode(TEXTS[:1])
    neurons = NeuronSet.of([(1, 0), (1, 39), (2, 5)])
    with Offset(neurons, -1.5).on(lm):
        ours = lm.logits(ids, mask)
    plain = copy.deepcopy(model)
    for layer, indices in ((1, [0, 39]), (2, [5])):
        push = -1.5 * families.values(model, name, layer)[indices].sum(0)
        families.down(plain, name, layer).register_forward_hook(lambda _, args, out, push=push: out + push)
    with torch.no_grad():
        theirs = plain(input_ids=ids).logits
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, lm.logits(ids, mask), atol=1e-3)


def test_the_plain_model_runs_until_a_hook_is_set_by_hand(family):
    _name, _model, lm = family
    assert not lm.hooked
    assert lm._backend() is lm._hf_backend
    point = lm.tl.blocks[0].mlp.hook_post
    point.add_hook(lambda value, hook: None)
    assert lm.hooked
    point.remove_hooks()
    assert lm._backend() is lm._hf_backend
    with lm.hooks(post={0: lambda value: None}):
        assert lm.hooked
        lm.logits(*lm.encode(TEXTS))
    assert not lm.hooked


def test_sizes(family):
    name, _, lm = family
    assert (lm.n_layers, lm.d_model, lm.d_mlp) == (N_LAYERS, families.D_MODEL, families.d_mlp(name))
    assert lm.n_neurons == N_LAYERS * families.d_mlp(name)
    assert name == "bloom" or lm.n_positions == families.POSITIONS


def test_vectors_are_views_of_the_weights(family):
    name, model, lm = family
    stored = {weight.untyped_storage().data_ptr() for weight in lm.unwrapped().parameters()}
    storages = {weight.untyped_storage().data_ptr() for weight in lm._hf_backend.model.parameters()}
    assert storages.isdisjoint(stored)
    for layer in range(N_LAYERS):
        pairs = [
            (lm.value_vectors(layer), families.values(model, name, layer)),
            (lm.key_vectors(layer), families.keys(model, name, layer)),
        ]
        up = families.ups(model, name, layer)
        if up is None:
            with pytest.raises(ValueError, match="no gated MLP"):
                lm.up_vectors(layer)
        else:
            pairs.append((lm.up_vectors(layer), up))
            assert not torch.equal(lm.up_vectors(layer), lm.key_vectors(layer))
        for ours, theirs in pairs:
            assert torch.equal(ours, theirs)
            assert ours.untyped_storage().data_ptr() in storages
    assert torch.equal(lm.unembedding(), model.get_output_embeddings().weight.detach())


def test_write_vectors_are_what_reaches_the_residual_stream(family):
    """Turning one neuron up moves the stream along its write vector, up to the scale of the token."""
    name, model, lm = family
    layer, index = 1, 4
    ids = lm.encode(TEXTS[:1])[0]

    def stream(extra):
        plain = copy.deepcopy(model)
        seen = []
        families.down(plain, name, layer).register_forward_pre_hook(
            lambda _, args: (args[0] + extra * torch.nn.functional.one_hot(torch.tensor(index), families.d_mlp(name)),)
        )
        path = LAYOUTS[name].after
        if path is None:
            families.down(plain, name, layer).register_forward_hook(lambda _, args, out: seen.append(out))
        else:
            norm = families.block(plain, name, layer).get_submodule(path)
            # Its scale is the token's own: held, as a direction must not depend on it.
            norm.register_forward_hook(lambda _, args, out: seen.append(out * args[0].pow(2).mean(-1, True).sqrt()))
        with torch.no_grad():
            plain(input_ids=ids)
        return seen[0].reshape(-1, families.D_MODEL)

    moved = stream(1.0) - stream(0.0)
    expected = lm.write_vectors(layer)[index].expand_as(moved)
    assert_close(moved, expected, atol=1e-4, rtol=1e-3)
    if LAYOUTS[name].after is None:
        assert torch.equal(lm.write_vectors(layer), lm.value_vectors(layer))
    else:
        assert not torch.allclose(lm.write_vectors(layer), lm.value_vectors(layer), atol=1e-2)


def test_write_vectors_go_through_a_norm_of_the_sum(tokenizer):
    """OPT of 350 million parameters has its norms behind the sum with the residual stream."""
    config = families.build("opt").config
    config.do_layer_norm_before = False
    model, layer, index = families.randomised(transformers.OPTForCausalLM(config)), 1, 4
    lm = HookedLM.load(model, tokenizer=tokenizer)
    ids = lm.encode(TEXTS[:1])[0]

    def stream(extra):
        plain, seen = copy.deepcopy(model), []
        block = families.block(plain, "opt", layer)
        block.fc2.register_forward_pre_hook(
            lambda _, args: (args[0] + extra * torch.nn.functional.one_hot(torch.tensor(index), 40),)
        )
        norm = block.final_layer_norm
        # Its scale is the token's own: held, as a direction must not depend on it.
        norm.register_forward_hook(
            lambda _, args, out: seen.append((out - norm.bias) * args[0].std(-1, correction=0, keepdim=True))
        )
        with torch.no_grad():
            plain(input_ids=ids)
        return seen[0].reshape(-1, families.D_MODEL)

    moved = stream(1.0) - stream(0.0)
    assert_close(moved, lm.write_vectors(layer)[index].expand_as(moved), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(lm.write_vectors(layer), lm.value_vectors(layer), atol=1e-2)


def test_positions_that_turn_otherwise_from_a_length_on_are_not_reached(tokenizer):
    """Phi-3 of 128k does so: the longest row of a batch decides which frequencies rotate all of it."""
    config = families.build("phi3").config
    config.original_max_position_embeddings = 16
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 16,
    }
    model = families.randomised(transformers.Phi3ForCausalLM(config))
    lm = HookedLM.load(model, tokenizer=tokenizer)
    assert lm.n_positions == 16
    texts = ["кот", "a" * 11]
    ids, mask = lm.encode(texts)
    for row, kept, theirs in zip(lm.logits(ids, mask), mask, plainly(model, "phi3", ids, mask), strict=True):
        assert_close(row[kept], theirs, atol=1e-5, rtol=1e-5)
    alone = [generate(lm, [text], max_new_tokens=5, greedy=True, progress=False).texts[0] for text in texts]
    assert list(generate(lm, texts, max_new_tokens=5, greedy=True, progress=False).texts) == alone
    with pytest.raises(ValueError, match="room for 10"):
        generate(lm, texts, max_new_tokens=6, greedy=True, progress=False)


def test_ranking_goes_by_what_is_written(family):
    _name, _model, lm = family
    direction = torch.linspace(-1, 1, families.D_MODEL)
    probe = Probe(direction, bias=0.0, accuracy=1.0, auc=1.0, baseline=0.5, n_train=2, n_held_out=2)
    nearest = localize.by_cosine(lm, probe, k=5)
    rows = torch.stack([lm.write_vectors(layer) for layer in range(N_LAYERS)])
    cosines = (rows @ direction) / rows.norm(dim=-1) / direction.norm()
    best = cosines.flatten().topk(5)
    assert list(nearest) == [divmod(int(place), lm.d_mlp) for place in best.indices]
    assert_close(torch.tensor(nearest.scores), best.values, atol=1e-6, rtol=1e-5)


def test_a_patch_holds_neurons_at_what_they_are_in_another_model(family, tokenizer):
    name, model, lm = family
    source = families.randomised(copy.deepcopy(model), seed=1)
    reloaded, neurons = HookedLM.load(source, tokenizer=tokenizer), [(0, 3), (0, 17), (2, 39)]
    ids, mask = lm.encode(TEXTS)
    with Patch(NeuronSet.of(neurons), reloaded).on(lm):
        ours = lm.logits(ids, mask)
    seen = {}
    for row, kept, activations in zip(ids, mask, ours, strict=True):
        handles = []
        for layer in {layer for layer, _ in neurons}:
            columns = [index for place, index in neurons if place == layer]

            def keep(_, args, layer=layer):
                seen[layer] = args[0]

            def hold(_, args, layer=layer, columns=columns):
                held = args[0].clone()
                held[..., columns] = seen[layer][..., columns]
                return (held,)

            handles.append(families.down(source, name, layer).register_forward_pre_hook(keep))
            handles.append(families.down(model, name, layer).register_forward_pre_hook(hold))
        plainly(source, name, row[None], kept[None])
        theirs = plainly(model, name, row[None], kept[None])[0]
        for handle in handles:
            handle.remove()
        assert_close(activations[kept], theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[mask], lm.logits(ids, mask)[mask], atol=1e-3)


def test_bfloat16_is_as_exact_as_bfloat16(family, tokenizer, tmp_path):
    name, model, lm = family
    half = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.bfloat16)
    ids, mask = half.encode(TEXTS)
    at_once = lm.logits(ids, mask)[mask]
    # As transformers reads weights: `model.bfloat16()` would round the rotary frequencies too.
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    theirs = torch.cat(plainly(plain, name, ids, mask)).float()
    ours = half.logits(ids, mask)[mask].float()
    # Padding may round otherwise; it may not be further from the truth than Hugging Face's own rounding is.
    assert (ours - at_once).abs().mean() < 1.5 * (theirs - at_once).abs().mean() + 1e-3
    assert half.logits(ids[:1, mask[0]], mask[:1, mask[0]]).equal(plain(input_ids=ids[:1, mask[0]]).logits)


# --- other families, by the same mechanism: nothing here or in the package lists what they are called

_SIZE = {
    "vocab_size": families.VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": families.POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_WIDE = _SIZE | {"intermediate_size": 40}
_HEADED = _WIDE | {"num_key_value_heads": 2, "head_dim": 8}

_SCALED = {"residual_multiplier": 0.22, "embedding_multiplier": 3.0, "logits_scaling": 4.0}


def _gemma4(layers=3, **settings):
    fixed = {"num_hidden_layers": layers, "global_head_dim": 8, "sliding_window": 6, "num_kv_shared_layers": 0}
    fixed |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": families.VOCABULARY}
    kinds = ["full_attention", "sliding_attention"] * 2
    return transformers.Gemma4TextConfig(**_HEADED | fixed | {"layer_types": kinds[-layers:]} | settings)


OTHERS = {
    "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_WIDE)),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**_WIDE)),
    "stablelm": lambda: transformers.StableLmForCausalLM(transformers.StableLmConfig(**_WIDE, num_key_value_heads=2)),
    "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**_WIDE, **_SCALED)),
    "starcoder2": lambda: transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(**_WIDE)),
    "smollm3": lambda: transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**_WIDE, num_key_value_heads=2)),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**_WIDE)),
    "nemotron": lambda: transformers.NemotronForCausalLM(transformers.NemotronConfig(**_HEADED)),
    "glm4": lambda: transformers.Glm4ForCausalLM(transformers.Glm4Config(**_HEADED)),
    "ministral3": lambda: transformers.Ministral3ForCausalLM(transformers.Ministral3Config(**_HEADED)),
    "qwen3.5, attention alone": lambda: transformers.Qwen3_5ForCausalLM(
        transformers.Qwen3_5TextConfig(**_HEADED, layer_types=["full_attention"] * 3)
    ),
    "exaone4": lambda: transformers.Exaone4ForCausalLM(
        transformers.Exaone4Config(**_WIDE, num_key_value_heads=2, sliding_window=6)
    ),
    "apertus": lambda: transformers.ApertusForCausalLM(transformers.ApertusConfig(**_WIDE, num_key_value_heads=2)),
    "seed-oss": lambda: transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**_HEADED)),
    "falcon": lambda: transformers.FalconForCausalLM(transformers.FalconConfig(**_SIZE, ffn_hidden_size=40)),
    "gemma4": lambda: transformers.Gemma4ForCausalLM(_gemma4()),
    "gemma4 with embeddings by layer": lambda: transformers.Gemma4ForCausalLM(_gemma4(hidden_size_per_layer_input=8)),
}


@pytest.mark.skipif(OLD, reason="TransformerLens 3.9 has fewer of them")
@pytest.mark.parametrize("name", list(OTHERS))
def test_a_family_that_nobody_listed(name, tokenizer):
    model = families.randomised(OTHERS[name]())
    lm = HookedLM.load(model, tokenizer=tokenizer)
    ids, mask = lm.encode(TEXTS)
    ours, seen, raw = lm.logits(ids, mask), {}, {}
    with lm.hooks(post={n: lambda value, n=n: seen.__setitem__(n, value.clone()) for n in range(3)}):
        tokens, counts = decode(lm, ids, mask, 6, pick=pick_greedily)
        lm.logits(ids, mask)
    for layer, path in enumerate(lm.down_projections()):
        down = model.get_submodule(path)
        down.register_forward_pre_hook(lambda _, args, layer=layer: raw.__setitem__(layer, args[0]))
        assert torch.equal(lm.value_vectors(layer), down.weight.T)
    for i, (row, kept) in enumerate(zip(ids, mask, strict=True)):
        alone = row[kept][None]
        with torch.no_grad():
            theirs = model(input_ids=alone).logits[0]
        assert_close(ours[i][kept], theirs, atol=1e-5, rtol=1e-5)
        for layer in range(3):
            theirs = raw[layer].reshape(-1, lm.d_mlp)
            # Of activations above 10 the rounding of float32 is more (in float64 both agree to 4e-15).
            assert_close(seen[layer][i][kept], theirs, atol=max(1e-5, 1e-6 * float(theirs.abs().max())), rtol=1e-5)
        written = model.generate(input_ids=alone, do_sample=False, max_new_tokens=6)[0, alone.shape[1] :]
        assert tokens[i][counts[i]].tolist() == written.tolist()


@pytest.mark.skipif(OLD, reason="TransformerLens 3.9 has fewer of them")
@pytest.mark.parametrize("name", list(OTHERS))
def test_far_moved_neurons_push_the_stream_along_their_write_vectors(name, tokenizer):
    """Moved far enough, a neuron decides the direction of what any norm behind the MLP passes on."""
    if name == "gemma4 with embeddings by layer":
        pytest.skip("behind its MLP another branch reads the stream, and writes to it too")
    model = families.randomised(OTHERS[name]())
    lm = HookedLM.load(model, tokenizer=tokenizer)
    ids, ends = lm.encode(TEXTS[:1])[0], []
    down = model.get_submodule(lm.down_projections()[1])
    block = next(module for name, module in model.named_modules() if name == _block_of(lm.down_projections()[1]))
    for far in (1e4, -1e4):
        move = far * torch.nn.functional.one_hot(torch.tensor(4), lm.d_mlp)
        handles = [down.register_forward_pre_hook(lambda _, args, move=move: (args[0] + move,))]
        handles += [block.register_forward_hook(lambda _, args, out: ends.append(out))]
        with torch.no_grad():
            model(input_ids=ids)
        for handle in handles:
            handle.remove()
    first, second = (end[0] if isinstance(end, tuple) else end for end in ends)
    written = lm.write_vectors(1)[4]
    moved = (first - second)[0]
    assert torch.cosine_similarity(moved, written.expand_as(moved), dim=-1).min() > 0.9999
    if lm.mlp_multipliers[1] is not None:
        assert_close(moved / 2e4, written.expand_as(moved), atol=1e-4, rtol=1e-3)


def _block_of(path):
    """`model.layers.1` of `model.layers.1.mlp.down_proj`"""
    parts = path.split(".")
    return ".".join(parts[: parts.index("1") + 1])


# --- what has no neurons to read


def _refused():
    grouped = _SIZE | {"num_key_value_heads": 2}
    mixture = {"num_experts": 4, "moe_intermediate_size": 16}
    return {
        "mixture of experts": lambda: transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(**grouped, **mixture)
        ),
        "a mixture's family with dense layers alone": lambda: transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(**grouped, **mixture, intermediate_size=40, mlp_only_layers=[0, 1, 2])
        ),
        "state space": lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, pad_token_id=1)
        ),
        "state space beside attention": lambda: transformers.FalconH1ForCausalLM(
            transformers.FalconH1Config(
                **_HEADED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
            )
        ),
        "convolutions": lambda: transformers.Lfm2ForCausalLM(
            transformers.Lfm2Config(
                **grouped, intermediate_size=40, layer_types=["conv", "full_attention", "conv"], conv_L_cache=3
            )
        ),
        "linear attention in some layers": lambda: transformers.Qwen3_5ForCausalLM(
            transformers.Qwen3_5TextConfig(
                **_HEADED,
                layer_types=["linear_attention", "full_attention", "linear_attention"],
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
            )
        ),
        "experts beside a dense MLP": lambda: transformers.Gemma4ForCausalLM(
            _gemma4(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=16)
        ),
        "shared keys and values": lambda: transformers.Gemma4ForCausalLM(_gemma4(layers=4, num_kv_shared_layers=2)),
        "unknown to TransformerLens": lambda: transformers.HeliumForCausalLM(transformers.HeliumConfig(**_HEADED)),
        "gate and up in one matrix, not told apart": lambda: transformers.ModernBertDecoderForCausalLM(
            transformers.ModernBertDecoderConfig(**_WIDE)
        ),
        "encoder-decoder": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=300, d_model=32, d_ff=40, num_layers=2, num_heads=4, d_kv=8)
        ),
    }


_REASONS = {
    "mixture of experts": "no dense MLP",
    "a mixture's family with dense layers alone": "no dense MLP",
    "state space": "attention in every layer|no dense MLP|cannot hook",
    "state space beside attention": "attention in every layer|no dense MLP|cannot hook",
    "convolutions": "attention in every layer|no dense MLP|cannot hook",
    "encoder-decoder": "encoder-decoder",
    "linear attention in some layers": "state-space or linear ones .LinearAttentionLayer",
    "experts beside a dense MLP": "layer 0 has experts next to its dense MLP .experts.",
    "shared keys and values": "2 of its layers share keys and values of earlier ones",
    "unknown to TransformerLens": "Unsupported architecture: HeliumForCausalLM",
    "gate and up in one matrix, not told apart": "does not distinguish gate from up",
}


@pytest.mark.skipif(OLD, reason="TransformerLens 3.9 knows fewer of them")
@pytest.mark.parametrize("name", list(_REASONS))
def test_what_cannot_be_read_is_refused_with_the_reason(name, tokenizer):
    with pytest.raises(ValueError, match=_REASONS[name]) as refused:
        HookedLM.load(_refused()[name]().eval(), tokenizer=tokenizer)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 300
