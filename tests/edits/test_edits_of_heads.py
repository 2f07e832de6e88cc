"""Edits of attention heads, in every family: the laws of edits hold, against plain PyTorch hooks."""

import contextlib
import copy
import json
from typing import Any, NamedTuple

import families
import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox.edits import Together, generate_under
from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "a"]
PROMPTS = {"en": ["the cat sat", "a"], "es": ["la casa es grande y el gato"]}
WIDTH = 8
PAIRS = [(1, 3), (0, 0), (2, 1), (1, 0)]
HEADS = NeuronSet.of(PAIRS, site="heads")
OTHERS = NeuronSet.of([(1, 3), (2, 2)], site="heads")
NEURONS = NeuronSet.of([(1, 5), (0, 3), (2, 30), (1, 0)])
ROW = tuple(float(i % 5 - 2) for i in range(len(PAIRS) * WIDTH))


class Family(NamedTuple):
    """Two random models of a family: as they are, and under our hooks."""

    name: str
    model: Any
    lm: HookedLM
    source: Any
    source_lm: HookedLM


def load(name, tokenizer):
    model = families.build(name)
    source = families.randomised(copy.deepcopy(model), seed=1)
    lms = [HookedLM.load(one, tokenizer=tokenizer) for one in (model, source)]
    return Family(name, model, lms[0], source, lms[1])


@pytest.fixture(scope="module", params=list(families.LAYOUTS))
def family(request, tokenizer):
    return load(request.param, tokenizer)


def reader(model, name, site, layer):
    """The projection that reads a site of a layer."""
    return (families.out if site == "heads" else families.down)(model, name, layer)


def columns_of(site, index):
    return list(range(index * WIDTH, (index + 1) * WIDTH)) if site == "heads" else [index]


@contextlib.contextmanager
def by_hand(model, name, changes):
    """Plain hooks, in the order of the changes: a site, pairs, and a change of what is there at a pair."""
    handles = []
    for site, pairs, change in changes:
        for number, (layer, index) in enumerate(pairs):

            def before(_, args, columns=columns_of(site, index), change=change, number=number, pair=(layer, index)):
                value = args[0].clone()
                value[..., columns] = change(value[..., columns], number, pair)
                return (value,)

            handles.append(reader(model, name, site, layer).register_forward_pre_hook(before))
    with raw.hooked(handles):
        yield


def seen_by_hand(model, name, ids, site="heads"):
    """Layer to what its projection reads, of one row."""
    seen = {}
    handles = [
        reader(model, name, site, layer).register_forward_pre_hook(
            lambda _, args, layer=layer: seen.update({layer: args[0].detach().reshape(1, -1, args[0].shape[-1])})
        )
        for layer in range(families.N_LAYERS)
    ]
    with raw.hooked(handles):
        raw.forward(model, ids)
    return seen


VALUES = (-2.0, 0.5, 3.0, 1.25)
EDITS = {
    "offset": (Offset(HEADS, -3.0), [("heads", PAIRS, lambda x, i, pair: x - 3)]),
    "offset, weighted": (
        Offset(HEADS.weighted(VALUES), 2.0),
        [("heads", PAIRS, lambda x, i, pair: x + 2 * VALUES[i])],
    ),
    "scale, one for each": (Scale(HEADS, VALUES), [("heads", PAIRS, lambda x, i, pair: x * VALUES[i])]),
    "ablate": (Scale(HEADS, 0.0), [("heads", PAIRS, lambda x, i, pair: 0 * x)]),
    "set": (Set(HEADS, 1.5), [("heads", PAIRS, lambda x, i, pair: torch.full_like(x, 1.5))]),
    "set, one for each number": (
        Set(HEADS, ROW),
        [("heads", PAIRS, lambda x, i, pair: 0 * x + torch.tensor(ROW[i * WIDTH : (i + 1) * WIDTH]))],
    ),
    "both sites": (
        Scale(HEADS, 2.0) + Offset(NEURONS, 1.0) + Offset(OTHERS, 0.5),
        [
            ("heads", PAIRS, lambda x, i, pair: 2 * x),
            ("neurons", NEURONS, lambda x, i, pair: x + 1),
            ("heads", OTHERS, lambda x, i, pair: x + 0.5),
        ],
    ),
}


def logits(lm, texts=TEXTS, edit=None, **options):
    ids, mask = lm.encode(texts)
    with contextlib.nullcontext() if edit is None else edit.on(lm):
        return lm.logits(ids, mask, **options)[mask]


def test_edits_equal_plain_hooks(family):
    ids, mask = family.lm.encode(TEXTS)
    for name, (edit, changes) in EDITS.items():
        with by_hand(family.model, family.name, changes):
            theirs = raw.forward(family.model, ids, mask).logits[mask]
        ours = logits(family.lm, edit=edit)
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.allclose(ours, logits(family.lm), atol=1e-3), name


def test_a_patch_equals_plain_hooks(family):
    """From a model that runs alongside, and from what was kept of its pass; of both sites at once."""
    ids, mask = family.lm.encode(TEXTS[1:2])
    heads, neurons = (seen_by_hand(family.source, family.name, ids, site) for site in ("heads", "neurons"))
    changes = [
        (
            site,
            pairs,
            lambda x, i, pair, site=site, seen=seen: seen[pair[0]][..., columns_of(site, pair[1])].view(x.shape),
        )
        for site, pairs, seen in (("heads", PAIRS, heads), ("neurons", NEURONS, neurons))
    ]
    with by_hand(family.model, family.name, changes[:1]):
        theirs = raw.forward(family.model, ids).logits[mask]
    for source in (family.source_lm, heads):
        assert_close(logits(family.lm, TEXTS[1:2], Patch(HEADS, source)), theirs, atol=1e-5, rtol=1e-5)
    with by_hand(family.model, family.name, changes):
        theirs = raw.forward(family.model, ids).logits[mask]
    both = Patch(HEADS, family.source_lm) + Patch(NEURONS, family.source_lm)
    assert_close(logits(family.lm, TEXTS[1:2], both), theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, logits(family.lm, TEXTS[1:2]), atol=1e-2)


def test_together_equals_alone(family):
    edits = [*(edit for edit, _ in EDITS.values()), Patch(HEADS, family.source_lm), Patch(NEURONS, family.source_lm)]
    edits.append(Patch(OTHERS, family.source_lm) + Scale(HEADS, 0.5))
    texts = TEXTS[:2] * len(edits)
    together = Together(tuple(edits))
    ids, mask = family.lm.encode(texts)
    with together.on(family.lm):
        ours = family.lm.logits(ids, mask, edits=[i // 2 for i in range(len(texts))])
    for i, edit in enumerate(edits):
        rows = slice(2 * i, 2 * i + 2)
        assert_close(ours[rows][mask[rows]], logits(family.lm, TEXTS[:2], edit), atol=1e-5, rtol=1e-5)


# --- baking

SCALE = EDITS["scale, one for each"][0]
OFFSET = SCALE + EDITS["offset, weighted"][0] + Set(OTHERS, ROW[: 2 * WIDTH])
OFFSET += Offset(NeuronSet.of([(2, 3)], site="heads"), -1.0)
BOTH = OFFSET + Scale(NEURONS, 2.0) + Offset(NEURONS, 1.0)
IN_BOTH_BIASES = {"llama": "attention_bias, mlp_bias", "qwen2": "LlamaForCausalLM"}
IN_BOTH_BIASES |= dict.fromkeys(["cohere", "cohere2"], "attention_bias")
IN_BOTH_BIASES |= dict.fromkeys(["gpt2", "bloom", "llama tied, biased", "xglm", "opt"], "as it was")
IN_ATTENTION_BIAS = ["qwen3", "gemma2", "gemma3"]
REFUSED = {"mistral": "a sliding window, which no Llama has", "phi3": "phi3 has no place for one"}


def test_baked_equals_hooked(family):
    if family.name in IN_BOTH_BIASES:
        edit, written_as = BOTH, IN_BOTH_BIASES[family.name]
    elif family.name in IN_ATTENTION_BIAS:
        edit, written_as = OFFSET, "attention_bias"
    else:
        edit, written_as = SCALE, "as it was"
    baked = edit.bake(family.lm)
    assert_close(logits(baked), logits(family.lm, edit=edit), atol=1e-5, rtol=1e-5)
    assert f"baked ({written_as})" in baked.name


def test_what_has_no_place_in_weights_is_refused(family):
    instead = r"Run it with edit.on\(lm\), or scale only"
    if family.name in REFUSED:
        words = f"the output projection has no bias, .*{REFUSED[family.name]}. {instead}"
        with pytest.raises(ValueError, match=words):
            OFFSET.bake(family.lm)
    if family.name in IN_ATTENTION_BIAS:
        with pytest.raises(ValueError, match=f"the down-projection has no bias, .* has no place for one. {instead}"):
            BOTH.bake(family.lm)
    with pytest.raises(ValueError, match=r"only offsets of neurons, .* are constant vectors.*heads act inside it"):
        Offset(HEADS, 1.0).control_vectors(family.lm)


def test_a_setting_that_gives_biases_elsewhere_gives_none(tokenizer):
    model = families.build("phi3")
    model.config.attention_bias = False
    with pytest.raises(ValueError, match="the output projection has no bias, and phi3 has no place for one"):
        OFFSET.bake(HookedLM.load(model, tokenizer=tokenizer))


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_checkpoint_with_edited_heads_is_read_again(tokenizer, tmp_path, name):
    lm = HookedLM.load(families.build(name), tokenizer=tokenizer)
    OFFSET.bake(lm, output_dir=tmp_path / "baked")
    again = HookedLM.load(tmp_path / "baked")
    assert_close(logits(again), logits(lm, edit=OFFSET), atol=1e-5, rtol=1e-5)
    record = json.loads((tmp_path / "baked" / "bake.json").read_text("utf-8"))
    assert record["written_as"] == {"qwen3": "attention_bias"}.get(name, "as it was")
    assert [step["site"] for step in record["steps"]] == ["heads"] * 4


# --- what a model does while it writes


@pytest.fixture(scope="module")
def grouped(tokenizer):
    """Llamas in which two heads share their keys and values."""
    return load("llama", tokenizer)


def test_text_is_written_under_the_edit(grouped, tokenizer):
    edit, changes = EDITS["both sites"]
    with edit.on(grouped.lm):
        texts = generate(grouped.lm, TEXTS, max_new_tokens=8, greedy=True, progress=False).texts
    with by_hand(grouped.model, "llama", changes):
        new = [raw.greedy(grouped.model, tokenizer(text)["input_ids"], 8, 0)[0] for text in TEXTS]
    assert list(texts) == tokenizer.batch_decode(new, skip_special_tokens=True)


def test_many_edits_write_what_each_writes_alone(grouped):
    edits = [edit for edit, _ in EDITS.values()]
    edits += [Patch(HEADS, grouped.source_lm), Offset(OTHERS, 2.0, positions="new") + Patch(NEURONS, grouped.source_lm)]
    options = {"n_samples": 2, "max_new_tokens": 6, "progress": False}
    written = generate_under(grouped.lm, edits, PROMPTS, **options)
    for edit, texts in zip(edits, written, strict=True):
        with edit.on(grouped.lm):
            assert generate(grouped.lm, PROMPTS, **options) == texts
    assert len({texts.texts for texts in written}) == len(edits)


@pytest.mark.parametrize("positions", ["prompt", "new"])
def test_positions(grouped, positions):
    lm, model = grouped.lm, grouped.model
    ids, mask = lm.encode(TEXTS[:1])
    with Offset(HEADS, 4.0, positions).on(lm):
        first, cache = lm.extend(ids, mask)
        second, _ = lm.extend(ids[:, :1], torch.ones_like(ids[:, :1]).expand(1, mask.shape[1] + 1), cache=cache)
    where = torch.tensor([positions == "prompt"] * ids.shape[1] + [positions == "new"]).float()[:, None]
    with by_hand(model, "llama", [("heads", PAIRS, lambda x, i, pair: x + 4 * where[: x.shape[1]])]):
        theirs = raw.forward(model, torch.cat([ids, ids[:, :1]], 1)).logits
    assert_close(first, theirs[:, -2], atol=1e-5, rtol=1e-5)
    assert_close(second, theirs[:, -1], atol=1e-5, rtol=1e-5)


def test_transformer_lens_runs_under_the_edit(grouped):
    ids, _ = grouped.lm.encode(TEXTS[:1])
    with EDITS["both sites"][0].on(grouped.lm):
        assert_close(grouped.lm.tl(ids), grouped.lm.logits(ids, torch.ones_like(ids)), atol=1e-4, rtol=1e-4)


# --- edits of heads as values


def test_the_site_is_the_sets_or_is_given(grouped):
    pairs = NeuronSet.of(PAIRS)
    assert Scale(pairs, 0.0, site="heads") == Scale(HEADS, 0.0) != Scale(pairs, 0.0)
    assert Patch(pairs, grouped.source_lm, site="heads").neurons == HEADS
    assert repr(Scale(pairs, 0.0, site="heads")) == "Scale(NeuronSet(4 heads: 1.3, 0.0, 2.1, 1.0), 0)"
    with pytest.raises(ValueError, match=r"site is 'layers' .*expected one of 'neurons', 'heads'"):
        Scale(pairs, 0.0, site="layers")
    with pytest.raises(ValueError, match=r"site is 'layers' .*expected one of 'neurons', 'heads'"):
        Patch(pairs, grouped.source_lm, site="layers")


@pytest.mark.parametrize("name", EDITS)
def test_saved_and_loaded_is_equal(grouped, tmp_path, name):
    edit, _ = EDITS[name]
    edit.save(tmp_path / "edit", grouped.lm)
    again = Intervention.load(tmp_path / "edit", grouped.lm)
    assert again == edit
    assert [step.neurons.site for step in again.steps()] == [step.neurons.site for step in edit.steps()]


def test_digests_tell_sites_apart_and_stay_as_they_were(grouped):
    pairs = NeuronSet.of(PAIRS)
    assert Scale(pairs, 0.5).content() == "Scale ((1, 3), (0, 0), (2, 1), (1, 0)) all [0.5, 0.5, 0.5, 0.5]"
    edits = [Scale(pairs, 0.5), Scale(HEADS, 0.5), Set(HEADS, 0.5), Set(HEADS, [0.5] * len(ROW))]
    edits += [Patch(pairs, grouped.source_lm), Patch(HEADS, grouped.source_lm)]
    assert len({edit.content() for edit in edits}) == len(edits)


def test_an_edit_of_heads_that_never_acts_is_an_error(grouped):
    with pytest.raises(HookNeverFired, match="heads 1, heads 0, heads 2"), Offset(HEADS, 1.0).on(grouped.lm):
        pass
    with pytest.raises(HookNeverFired, match="never acted"), Offset(HEADS, 1.0, positions="new").on(grouped.lm):
        logits(grouped.lm)
    assert not grouped.lm.hooked


# --- what is refused


def refused(edit, lm, words):
    with pytest.raises(ValueError, match=words), edit.on(lm):
        raise AssertionError("the block must not start")


def test_heads_that_are_not_there(grouped, tokenizer, monkeypatch):
    refused(Scale(NEURONS, 0.0, site="heads"), grouped.lm, r"head \(1, 5\) is outside the model: .* with heads 0 to 3")
    refused(Scale(NeuronSet.of([(3, 0)], site="heads"), 0.0), grouped.lm, r"head \(3, 0\) is outside the model")
    refused(Set(HEADS, ROW[:8]), grouped.lm, "has 2 for each of 4 heads: expected one, or 8")
    with pytest.raises(ValueError, match="9 values for 4 heads: expected one, or one for each"):
        Set(HEADS, ROW[:9])
    with pytest.raises(ValueError, match="8 values for 4 neurons: expected one, or one for each"):
        Set(NEURONS, ROW[:8])
    without = HookedLM.load(families.build("gpt2"), tokenizer=tokenizer)
    monkeypatch.setattr(without.tl.cfg, "n_heads", 5)
    refused(Scale(HEADS, 0.0), without, r"layer 0 has no attention heads of one width \(5 are configured\)")
    assert not without.hooked


def test_patches_of_heads_that_cannot_be(grouped, tokenizer):
    means = collect_activations(grouped.source_lm, PROMPTS, NEURONS, max_new_tokens=2, progress=False)
    refused(
        Patch(NeuronSet.of([(1, 0)], site="heads"), means), grouped.lm, "Activations are of neurons, and this patch"
    )
    cached = {layer: torch.zeros(1, 2, 24) for layer in range(3)}
    refused(Patch(HEADS, cached), grouped.lm, r"layer 0 are \[1, 2, 24\]: expected \[batch, pos, 32\]")
    refused(Patch(HEADS, {0: torch.zeros(1, 2, 32)}), grouped.lm, r"no activations of head \(1, 3\)")
    config = copy.deepcopy(grouped.model.config)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 2, 4
    other = HookedLM.load(families.randomised(type(grouped.model)(config)), tokenizer=tokenizer)
    refused(Patch(HEADS, other), grouped.lm, "has 8 heads in each layer, and .* has 4")
