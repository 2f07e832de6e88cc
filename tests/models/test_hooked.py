import copy

import pytest
import raw
import torch
import transformers
from conftest import D_MODEL, N_LAYERS, N_POSITIONS, tiny
from torch.testing import assert_close
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from xlingtox.models.hooked import HookedLM

TEXTS = ["the cat", "la casa es grande y el gato duerme", "a"]


def test_shape_of_the_model(family):
    lm = family.lm
    d_mlp = {"gpt2": 48, "bloom": 4 * D_MODEL, "llama": 56}[family.name]
    assert (lm.n_layers, lm.d_model, lm.d_mlp, lm.n_neurons) == (N_LAYERS, D_MODEL, d_mlp, N_LAYERS * d_mlp)
    assert (lm.device, lm.dtype) == (torch.device("cpu"), torch.float32)
    if family.name != "bloom":
        assert lm.n_positions == N_POSITIONS


def test_vectors_are_views_of_the_weights(family):
    lm = family.lm
    pointers = {weight.data_ptr() for weight in lm.tl.original_model.parameters()}
    for layer in range(lm.n_layers):
        for ours, theirs in [
            (lm.value_vectors(layer), raw.values(family.model, layer)),
            (lm.key_vectors(layer), raw.keys(family.model, layer)),
        ]:
            assert ours.shape == (lm.d_mlp, lm.d_model)
            assert torch.equal(ours, theirs)
            assert not ours.requires_grad
            assert ours.data_ptr() in pointers
    assert torch.equal(lm.unembedding(), family.model.lm_head.weight.detach())


def test_no_such_layer(lm):
    for layer in (-1, lm.n_layers):
        with pytest.raises(ValueError, match=f"no layer {layer}.*layers 0 to 1"):
            lm.value_vectors(layer)


def test_residual_hooks_see_the_hidden_states(family):
    lm = family.lm
    ids, mask = lm.encode(TEXTS)
    seen = {}
    with lm.hooks(residual={n: lambda state, n=n: seen.__setitem__(n, state.clone()) for n in range(N_LAYERS + 1)}):
        lm.logits(ids, mask)
    for n, theirs in enumerate(raw.states(family.model, ids, mask)):
        assert_close(seen[n][mask], theirs[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last", [1, 3])
def test_logits_of_the_last_positions_alone(family, last):
    ids, mask = family.lm.encode(TEXTS)
    assert_close(family.lm.logits(ids, mask, last=last), family.lm.logits(ids, mask)[:, -last:])


def test_a_residual_hook_replaces_the_state(family):
    lm = family.lm
    ids, mask = lm.encode(TEXTS[:1])
    push = torch.linspace(-1, 1, D_MODEL)
    with lm.hooks(residual={1: lambda state: state + push}):
        ours = lm.logits(ids, mask)

    def hook(_, args, out):
        return (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push

    with raw.hooked([raw.block(family.model, 0).register_forward_hook(hook)]):
        theirs = raw.forward(family.model, ids).logits
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_cached_logits_equal_uncached(family):
    lm = family.lm
    ids, mask = lm.encode(TEXTS)
    split = ids.shape[1] - 2
    first, cache = lm.extend(ids[:, :split], mask[:, :split])
    assert first.shape == (len(TEXTS), 300)
    twice, (ids, mask) = lm.repeated(cache, 2), (ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0))
    second, twice = lm.extend(ids[:, split : split + 1], mask[:, : split + 1], cache=twice)
    kept = torch.tensor([5, 0, 2])
    third, _ = lm.extend(ids[kept, split + 1 :], mask[kept], cache=lm.selected(twice, kept))
    at_once = raw.forward(family.model, ids, mask).logits
    seen = mask[::2, split - 1]
    assert_close(first[seen], at_once[::2, split - 1][seen], atol=1e-5, rtol=1e-5)
    assert_close(second[mask[:, split]], at_once[:, split][mask[:, split]], atol=1e-5, rtol=1e-5)
    assert_close(third, at_once[kept, -1], atol=1e-5, rtol=1e-5)


def test_encode_pads_on_the_left(lm, tokenizer):
    ids, mask = lm.encode(TEXTS)
    for row, kept, text in zip(ids, mask, TEXTS, strict=True):
        alone = tokenizer(text)["input_ids"]
        assert row[kept].tolist() == alone
        assert row.tolist() == [tokenizer.pad_token_id] * (ids.shape[1] - len(alone)) + alone
    assert lm.decode(ids.tolist()) == TEXTS


def test_from_a_folder_with_its_tokenizer(family, tokenizer, tmp_path):
    family.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = HookedLM.load(str(tmp_path))
    ids, mask = lm.encode(TEXTS)
    assert_close(lm.logits(ids, mask)[mask], family.lm.logits(ids, mask)[mask], atol=1e-6, rtol=0)
    assert HookedLM.load(tmp_path).fingerprint() == family.lm.fingerprint()
    assert HookedLM.load(lm) is lm


def test_from_a_transformer_lens_model(model, lm, tokenizer):
    training_model = copy.deepcopy(model).train()
    bridge = build_bridge_from_module(training_model, "GPT2LMHeadModel", hf_config=training_model.config)
    with pytest.raises(ValueError, match="no tokenizer"):
        HookedLM.load(bridge)
    bridged = HookedLM.load(bridge, tokenizer=tokenizer)
    assert bridged.tl is bridge
    ids, mask = lm.encode(TEXTS)
    assert_close(bridged.logits(ids, mask)[mask], lm.logits(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot be unwrapped"):
        bridged.unwrapped()


@pytest.mark.parametrize("starts", [False, True])
def test_a_transformer_lens_model_has_its_folders_tokens(model, tokenizer, tmp_path, starts):
    """TransformerLens's own tokenizer puts a beginning of sequence before each text, whatever the folder's does."""
    end_padded = copy.deepcopy(tokenizer)
    end_padded.bos_token = "<eos>"
    model.save_pretrained(tmp_path)
    end_padded.save_pretrained(tmp_path)
    if starts:
        transformers.AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True).save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    assert bridge.tokenizer("the cat")["input_ids"][0] == end_padded.bos_token_id
    plain, bridged = HookedLM.load(tmp_path), HookedLM.load(bridge)
    ids, mask = plain.encode(TEXTS)
    assert (int(ids[mask][0]) == end_padded.bos_token_id) == starts
    assert all(torch.equal(*both) for both in zip((ids, mask), bridged.encode(TEXTS), strict=True))
    assert_close(bridged.logits(ids, mask)[mask], plain.logits(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    added = copy.deepcopy(bridge.tokenizer)
    added.add_tokens(["zebra"])
    for name, held in (("", bridge.tokenizer), (str(tmp_path / "gone"), bridge.tokenizer), (str(tmp_path), added)):
        held.name_or_path = name
        bridge.tokenizer = held
        with pytest.raises(ValueError, match=r"before each text.*tokenizer=\.\.\."):
            HookedLM.load(bridge)
    assert HookedLM.load(bridge, tokenizer=end_padded).tokenizer is end_padded


def test_cast_to_bfloat16(model, tokenizer):
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.bfloat16)
    assert lm.dtype == lm.value_vectors(0).dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert torch.equal(lm.value_vectors(0), raw.values(model, 0).bfloat16())


def test_fingerprints_differ_with_a_value_vector(model, lm, tokenizer):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        raw.values(changed, 1)[3, 4] += 0.5
    assert HookedLM.load(model, tokenizer=tokenizer).fingerprint() == lm.fingerprint()
    assert HookedLM.load(changed, tokenizer=tokenizer).fingerprint() != lm.fingerprint()


# --- unwrapped: a plain model again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unwrapped_is_the_plain_model(model, tokenizer, dtype):
    plain = HookedLM.load(model, tokenizer=tokenizer, dtype=dtype).unwrapped()
    assert plain is not model
    assert type(plain) is type(model)
    theirs = copy.deepcopy(model).to(dtype).state_dict()
    ours = plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_unwrapped_knows_nothing_of_its_source_or_of_hooks(tokenizer):
    source = tiny("gpt2")
    before = copy.deepcopy(source.state_dict())
    lm = HookedLM.load(source, tokenizer=tokenizer)
    with torch.no_grad():
        source.get_parameter("transformer.h.1.mlp.c_proj.weight").add_(1.0)
    ids, mask = lm.encode(TEXTS)
    with lm.hooks(post={0: lambda value: value * 0}):
        plain = lm.unwrapped()
        lm.logits(ids, mask)
    assert all(torch.equal(weight, before[name]) for name, weight in plain.state_dict().items())
    assert_close(raw.forward(plain, ids, mask).logits[mask], lm.logits(ids, mask)[mask], atol=1e-5, rtol=1e-5)


def test_a_hook_set_on_the_transformer_lens_model_acts_here_too(family):
    lm = family.lm
    ids, mask = lm.encode(TEXTS)
    point = lm.tl.blocks[1].mlp.hook_post
    point.add_hook(lambda value, hook: value * 0)
    try:
        ours = lm.logits(ids, mask)
    finally:
        point.remove_hooks()
    with raw.editing(family.model, [(1, i) for i in range(lm.d_mlp)], torch.zeros_like):
        theirs = raw.forward(family.model, ids, mask).logits
    assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


# --- what is refused


def no_decoder(name):
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    if name == "t5":
        config = transformers.T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
        return transformers.T5ForConditionalGeneration(config).eval()
    if name == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(num_attention_heads=2, **small)).eval()
    if name == "mixtral":
        config = transformers.MixtralConfig(
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, pad_token_id=1, **small
        )
        return transformers.MixtralForCausalLM(config).eval()
    return transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=300)).eval()


@pytest.mark.parametrize("way", ["memory", "folder"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t5", "encoder-decoder"),
        ("bert", "not a decoder|not a causal|as a decoder"),
        ("mixtral", "mixture-of-experts"),
        ("headless", "GPT2Model"),
    ],
)
def test_what_is_no_dense_decoder_is_refused(name, words, way, tokenizer, tmp_path):
    source = no_decoder(name)
    if way == "folder":
        source.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        source = tmp_path
    with pytest.raises(ValueError, match=words):
        HookedLM.load(source, tokenizer=tokenizer if way == "memory" else None)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint.*config\.json"):
        HookedLM.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        HookedLM.load(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer(family, tmp_path):
    family.model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match="tokenizer"):
        HookedLM.load(tmp_path)


def test_a_model_in_memory_needs_its_tokenizer(model):
    with pytest.raises(ValueError, match="in memory needs its tokenizer"):
        HookedLM.load(model)


def test_a_tokenizer_needs_an_end(model, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        HookedLM.load(model, tokenizer=endless)


def test_a_tokenizer_without_padding_pads_with_its_end_and_is_left_alone(model, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    lm = HookedLM.load(model, tokenizer=bare)
    assert bare.pad_token is None
    ids, mask = lm.encode(TEXTS)
    assert ids[~mask].unique().tolist() == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (torch.nn.Linear(2, 2), "source is a Linear, exp"),
        (None, "source is None, exp"),
        (3, r"source is 3 \(an"),
    ],
)
def test_other_sources_are_refused(source, words):
    with pytest.raises(TypeError, match=words):
        HookedLM.load(source)


def test_a_revision_is_for_hub_names(model, tokenizer):
    with pytest.raises(ValueError, match="revision is for a hub name"):
        HookedLM.load(model, tokenizer=tokenizer, revision="main")


def test_tokens_that_are_known_are_not_looked_up_again_but_in_the_block(lm):
    texts = ["the cat", "the dog", "the cat"]
    plain = lm.token_ids(texts)
    with lm.knowing({"the cat": [1, 2]}), lm.knowing({"a dog": [3]}):
        assert lm.token_ids(texts) == [[1, 2], plain[1], [1, 2]]
        assert lm.encode(["the cat"])[0].tolist() == [[1, 2]]
        lm.token_ids(["the cat"])[0].append(4)
        assert lm.token_ids(["a dog", "the cat"]) == [[3], [1, 2]]
    assert lm.token_ids(texts) == plain


def test_samples_of_one_prompt_are_decoded_after_it(lm):
    prompts, rows = [[5, 6], [7], [5, 6]], [[8], [8, 9], [10]]
    assert lm.decode_after(prompts, rows) == [
        lm.decode_after([prompt], [row])[0] for prompt, row in zip(prompts, rows, strict=True)
    ]
