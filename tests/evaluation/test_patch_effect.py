"""Patching groups of neurons: shares of the change, against PyTorch hooks and plain loops."""

import contextlib
import copy
import dataclasses
import json
import math
import re

import numpy as np
import pytest
import raw
import torch
from conftest import tiny
from families import randomised
from studies import HOSTILE

from xlingtox import figures
from xlingtox.edits import under
from xlingtox.edits.patch import Patch
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.patching import patch_effect
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring import ProbeScorer, WordlistScorer

PROMPTS = {"en": ["the cat sat", "the dog"], "es": ["la casa es grande y", "el gato", "en la cama"]}
TEXTS = [text for texts in PROMPTS.values() for text in texts]
GROUP = NeuronSet.of([(0, 3), (0, 40), (1, 5), (1, 0)])
TOKENS = [40, 7, 7]


@pytest.fixture(scope="module")
def pair(tokenizer):
    models = [tiny("gpt2"), randomised(tiny("gpt2"), seed=1)]
    return models, [HookedLM.load(model, tokenizer=tokenizer) for model in models]


@pytest.fixture(scope="module")
def probe():
    return Probe(torch.linspace(-1, 1, 32), 0.5, 1.0, 1.0, 0.5, 1, 1)


def test_values_equal_pytorch_hooks(pair, probe, tokenizer):
    (base, tuned), lms = pair
    found = patch_effect(*lms, PROMPTS, {"some": GROUP}, probe=probe, toxic_tokens=TOKENS, n_random=0, progress=False)
    assert found.languages == ("en", "en", "es", "es", "es")
    assert list(found.runs) == ["base", "tuned", "some"]
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with raw.watching(tuned, range(2)) as seen:
            raw.forward(tuned, ids)
        for run, model in (("base", base), ("tuned", tuned), ("some", base)):
            with contextlib.ExitStack() as stack:
                for layer, index in GROUP if run == "some" else ():
                    held = seen[layer][..., [index]]
                    stack.enter_context(raw.editing(model, [(layer, index)], lambda x, held=held: held))
                state = raw.states(model, ids)[-1][0, -1].double()
                chance = raw.forward(model, ids).logits[0, -1].double().softmax(-1)
            logit = float(state @ probe.direction.double()) + 0.5
            assert found.runs[run]["probe"][i] == pytest.approx(logit, abs=1e-4)
            assert found.runs[run]["toxic_mass"][i] == pytest.approx(float(chance[[40, 7]].sum()), abs=1e-6)


def test_log_probability_equals_pytorch_hooks(pair, tokenizer):
    """Summed over the tokens of a continuation, and averaged over the continuations of a prompt that count."""
    (base, tuned), lms = pair
    written = generate(lms[0], PROMPTS, n_samples=2, max_new_tokens=5, progress=False)
    blank = (*written.texts[:1], " ", *written.texts[2:])
    written = dataclasses.replace(written, texts=blank)
    counted = [True] * 9 + [False]
    found = patch_effect(
        *lms, PROMPTS, {"some": GROUP}, continuations=written, counted=counted, n_random=0, progress=False
    )
    for run, model in (("base", base), ("tuned", tuned), ("some", base)):
        by_hand = []
        for i, text in enumerate(TEXTS):
            sums = []
            for new in [text for j, text in enumerate(written.texts) if j // 2 == i and text.strip() and counted[j]]:
                begin, ids = len(tokenizer(text)["input_ids"]), torch.tensor([tokenizer(text + new)["input_ids"]])
                assert ids[0, :begin].tolist() == tokenizer(text)["input_ids"], "no token is of both"
                with raw.watching(tuned, range(2)) as seen:
                    raw.forward(tuned, ids)
                with contextlib.ExitStack() as stack:
                    for layer, index in GROUP if run == "some" else ():
                        held = seen[layer][..., [index]]
                        stack.enter_context(raw.editing(model, [(layer, index)], lambda x, held=held: held))
                    chances = raw.forward(model, ids).logits[0].double().log_softmax(-1)
                sums.append(sum(float(chances[place - 1, ids[0, place]]) for place in range(begin, ids.shape[1])))
            by_hand.append(np.mean(sums))
        np.testing.assert_allclose(found.runs[run]["log_probability"], by_hand, rtol=1e-5)


def test_heads_and_mixed_groups_equal_pytorch_hooks(pair, probe, tokenizer):
    """A head is a slice of the input of attention's output projection; in a sequence, heads and neurons are patched."""
    (base, tuned), lms = pair
    heads, width = NeuronSet.of([(0, 1), (1, 0)], site="heads"), lms[0].head_width(0)
    groups = {"heads": heads, "both": [heads, GROUP]}
    found = patch_effect(*lms, PROMPTS, groups, probe=probe, n_random=0, progress=False)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        outs, seen_heads = [model.transformer.h for model in (base, tuned)], {}

        def keep(layer, seen=seen_heads):
            return lambda _, args: seen.__setitem__(layer, args[0].clone())

        handles = [outs[1][layer].attn.c_proj.register_forward_pre_hook(keep(layer)) for layer in range(2)]
        with raw.hooked(handles), raw.watching(tuned, range(2)) as seen:
            raw.forward(tuned, ids)

        def replace(layer, head, seen=seen_heads):
            def hook(_, args):
                value, place = args[0].clone(), slice(head * width, (head + 1) * width)
                value[..., place] = seen[layer][..., place]
                return (value,)

            return hook

        for name in groups:
            with contextlib.ExitStack() as stack:
                handles = [
                    outs[0][layer].attn.c_proj.register_forward_pre_hook(replace(layer, head)) for layer, head in heads
                ]
                stack.enter_context(raw.hooked(handles))
                for layer, index in GROUP if name == "both" else ():
                    held = seen[layer][..., [index]]
                    stack.enter_context(raw.editing(base, [(layer, index)], lambda x, held=held: held))
                state = raw.states(base, ids)[-1][0, -1].double()
            logit = float(state @ probe.direction.double()) + 0.5
            assert found.runs[name]["probe"][i] == pytest.approx(logit, abs=1e-4)


def test_the_control_of_heads_is_heads_of_the_same_layers(pair, probe):
    lm = pair[1][0]
    some, every = NeuronSet.of([(1, 0)], site="heads"), NeuronSet.all(lm, site="heads")
    options = {"probe": probe, "n_random": 2, "progress": False}
    effect = patch_effect(*pair[1], PROMPTS, {"some": some, "all": every, "both": [every, GROUP]}, **options)
    assert effect.groups == {"some": "some (random)", "all": None, "both": None}
    assert effect.match == "heads"
    assert effect.control == "Random heads of the same layers"
    sets = random_sets(some, lm, n=2, seed=0, match="layers")
    assert all(control.site == "heads" and {layer for layer, _ in control} == {1} for control in sets)
    alone = patch_effect(*pair[1], PROMPTS, dict(zip("ab", sets, strict=True)), probe=probe, n_random=0, progress=False)
    np.testing.assert_allclose(
        effect.runs["some (random)"]["probe"], np.mean([alone.runs[run]["probe"] for run in "ab"], 0), rtol=1e-6
    )
    mixed = patch_effect(*pair[1], PROMPTS, {"mixed": [some, GROUP]}, **options)
    assert mixed.groups == {"mixed": "mixed (random)"}
    assert mixed.match == "activity"


def test_a_prompt_without_a_continuation_that_counts_is_in_no_mean(pair):
    written = generate(pair[1][0], PROMPTS, n_samples=1, max_new_tokens=5, progress=False)
    counted = [True, True, True, False, True]
    options = {"continuations": written, "n_random": 1, "match": "layers", "progress": False}
    effect = patch_effect(*pair[1], PROMPTS, {"some": GROUP}, counted=counted, **options)
    assert np.isnan(effect.runs["some"]["log_probability"]).tolist() == [not one for one in counted]
    every = patch_effect(*pair[1], PROMPTS, {"some": GROUP}, **options)
    for run, values in every.runs.items():
        np.testing.assert_allclose(
            effect.runs[run]["log_probability"][counted], values["log_probability"][counted], rtol=1e-6
        )
    table = effect.to_frame().set_index(["group", "language"])
    assert table.loc[("some", "es")].patched == pytest.approx(every.runs["some"]["log_probability"][[2, 4]].mean())
    assert table.notna().all().all()


def test_toxicity_is_that_of_continuations_under_the_patch(pair):
    _, lms = pair
    scorer = WordlistScorer({code: ["a", "e", "the"] for code in PROMPTS}, name="letters")
    found = patch_effect(
        *lms,
        PROMPTS,
        {"some": GROUP},
        scorer=scorer,
        match="layers",
        n_random=2,
        n_samples=3,
        max_new_tokens=6,
        progress=False,
    )
    sets = {"some": [GROUP], "some (random)": [GROUP.random_like(lms[0], seed=seed) for seed in range(2)]}
    for run, groups in sets.items():
        by_hand = []
        for group in groups:
            with Patch(group, lms[1]).on(lms[0]):
                written = generate(lms[0], PROMPTS, n_samples=3, max_new_tokens=6, progress=False)
            by_hand.append(scorer.score(written.texts, written.row_languages).reshape(-1, 3).mean(1))
        np.testing.assert_allclose(found.runs[run]["toxicity"], np.mean(by_hand, 0))


def test_patches_that_run_together_are_those_of_one_by_one(pair, probe, monkeypatch):
    _, lms = pair
    groups = {"some": GROUP, "other": NeuronSet.of([(1, 7), (0, 9)])}
    scorer = WordlistScorer({code: ["a", "e", "the"] for code in PROMPTS}, name="letters")
    passes, real = [], HookedLM.extend

    def extend(lm, ids, *arguments, **more):
        passes.append(len(ids))
        return real(lm, ids, *arguments, **more)

    def effect():
        sizes = {"n_random": 3, "n_samples": 2, "max_new_tokens": 6, "progress": False}
        return patch_effect(*lms, PROMPTS, groups, probe=probe, toxic_tokens=TOKENS, scorer=scorer, **sizes)

    monkeypatch.setattr(HookedLM, "extend", extend)
    together, n_together = effect(), len(passes)
    passes.clear()
    monkeypatch.setattr(under, "rows_that_pay", lambda lm: 1)
    alone = effect()
    assert n_together < len(passes) / 2
    assert list(together.runs) == list(alone.runs)
    for run, measures in alone.runs.items():
        for measure, values in measures.items():
            tolerance = 0 if measure == "toxicity" else 1e-5
            np.testing.assert_allclose(together.runs[run][measure], values, rtol=tolerance, atol=tolerance)


def test_a_probe_of_either_model_may_judge(pair, probe):
    """Outside of the patch, which would change the judge, or be run by it."""
    _, lms = pair
    for judge in lms:
        scorer = ProbeScorer(judge, probe, languages=["en", "es"], progress=False)
        found = patch_effect(
            *lms, PROMPTS, {"some": GROUP}, scorer=scorer, n_random=0, n_samples=2, max_new_tokens=4, progress=False
        )
        with Patch(GROUP, lms[1]).on(lms[0]):
            written = generate(lms[0], PROMPTS, n_samples=2, max_new_tokens=4, progress=False)
        by_hand = scorer.score(written.texts, written.row_languages).reshape(-1, 2).mean(1)
        np.testing.assert_allclose(found.runs["some"]["toxicity"], by_hand)


def test_one_prompt_a_language_has_no_interval():
    runs = {"base": [3.0, 2.0, 5.0], "tuned": [1.0, 1.0, 3.0], "some": [2.0, 1.5, 4.0]}
    whole = {run: {"probe": np.array(values)} for run, values in runs.items()}
    table = PatchEffect(("en", "de", "de"), whole).to_frame().set_index("language")
    assert table.share.tolist() == [0.5, 0.5, 0.5]
    assert math.isnan(table.loc["en"].low)
    assert table.loc[["de", "all"]].low.notna().all()
    alone = {run: {"probe": np.array(values[:2])} for run, values in runs.items()}
    assert PatchEffect(("en", "de"), alone).to_frame()[["low", "high"]].isna().all().all()


def test_all_neurons_carry_all_and_the_control_of_a_large_group_is_drawn_from_all(pair, probe, tokenizer):
    _, (lm, _) = pair
    changed = tiny("gpt2")
    with torch.no_grad():
        changed.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    other = HookedLM.load(changed, tokenizer=tokenizer)
    groups = {"all": NeuronSet.all(lm), "upper": NeuronSet.of((1, i) for i in range(48))}
    found = patch_effect(lm, other, PROMPTS, groups, probe=probe, n_random=1, progress=False).to_frame()
    assert found.share.to_numpy() == pytest.approx(1.0, abs=1e-4)
    back = patch_effect(other, lm, PROMPTS, groups, probe=probe, n_random=0, progress=False).to_frame()
    assert back.share.to_numpy() == pytest.approx(1.0, abs=1e-4)
    none = {"lower": NeuronSet.of([(0, 1)])}
    still = patch_effect(lm, other, PROMPTS, none, probe=probe, n_random=0, progress=False).to_frame()
    assert still.share.to_numpy() == pytest.approx(0.0, abs=1e-4)


def test_shares_and_their_intervals_by_hand():
    rng = np.random.default_rng(0)
    base = rng.normal(5, 1, 60)
    tuned, patched = base - rng.normal(2, 0.2, 60), base - rng.normal(1, 0.2, 60)
    codes = ("en",) * 20 + ("de",) * 40
    runs = {name: {"probe": each} for name, each in (("base", base), ("tuned", tuned), ("some", patched))}
    table = PatchEffect(codes, runs).to_frame().set_index("language")
    means = {}
    for code, rows in (("en", slice(0, 20)), ("de", slice(20, 60))):
        means[code] = [each[rows].mean() for each in (base, tuned, patched)]
        own = table.loc[code]
        assert [own.base, own.tuned, own.patched] == pytest.approx(means[code])
        assert own.share == pytest.approx((means[code][2] - means[code][0]) / (means[code][1] - means[code][0]))
        assert 0.4 < own.low < own.share < own.high < 0.6
    every = np.mean(list(means.values()), 0)
    assert table.loc["all"].share == pytest.approx((every[2] - every[0]) / (every[1] - every[0]))
    for turned in (base, base[::-1].copy()):
        # In another order a mean differs by rounding, which is no change.
        runs |= {"tuned": {"probe": turned}}
        same = PatchEffect(("en",) * 60, runs).to_frame()
        assert same[["share", "low", "high"]].isna().all().all()
    little = {"base": {"probe": base}, "tuned": {"probe": base + rng.normal(0.01, 1, 60)}, "some": {"probe": patched}}
    told = PatchEffect(codes, little).to_frame()
    assert told.share.notna().all()
    assert told[["low", "high"]].isna().all().all()


def test_the_control_of_a_group_is_as_active_unless_asked(pair, probe):
    """By hand: the random sets are patched as groups of their own."""
    _, lms = pair
    activations = collect_activations(lms[0], PROMPTS, NeuronSet.all(lms[0]), max_new_tokens=3, progress=False)
    options = {"probe": probe, "n_random": 2, "seed": 5, "max_new_tokens": 3, "progress": False}
    for match in ("activity", "layers"):
        effect = patch_effect(*lms, PROMPTS, {"some": GROUP}, match=match, **options)
        assert effect.match == match
        if match == "activity":
            assert effect == patch_effect(*lms, PROMPTS, {"some": GROUP}, **options), "the default"
        sets = random_sets(GROUP, lms[0], n=2, seed=5, match=match, activations=activations)
        assert not any(set(control) & set(GROUP) for control in sets)
        alone = patch_effect(*lms, PROMPTS, dict(zip("ab", sets, strict=True)), probe=probe, n_random=0, progress=False)
        assert alone.match is None
        mean = np.mean([alone.runs[run]["probe"] for run in "ab"], 0)
        np.testing.assert_allclose(effect.runs["some (random)"]["probe"], mean, rtol=1e-9)


def test_the_same_model_twice_has_no_change_to_carry(pair):
    lm = pair[1][0]
    with pytest.raises(ValueError, match="given as both models"):
        patch_effect(lm, lm, PROMPTS, {"some": GROUP}, toxic_tokens=[1])


def by_hand(name="some"):
    """Half of the change in one measure, all of it in the other; random neurons carry a tenth of the first."""
    base = {"probe": np.array([4.0, 6.0, 5.0]), "toxicity": np.array([0.9, 0.7, 0.8])}
    tuned = {"probe": base["probe"] - 2.0, "toxicity": base["toxicity"] - 0.5}
    half = {"probe": base["probe"] - np.array([1.1, 0.9, 1.0]), "toxicity": tuned["toxicity"]}
    tenth = {"probe": base["probe"] - 0.2, "toxicity": base["toxicity"]}
    runs = {"base": base, "tuned": tuned, name: half, f"{name} (random)": tenth, "all": tuned}
    return PatchEffect(("en", "en", "de"), runs)


def test_it_is_drawn_a_panel_a_measure_beside_its_control():
    effect = by_hand()
    kept = copy.deepcopy(effect.runs)
    figure = figures.patch_effect(effect)
    own, beside, toxicity, beside_toxicity = figure.data
    assert own.x == beside.x == ("some", "all")
    assert own.y == pytest.approx([0.5, 1.0])
    assert beside.y == (pytest.approx(0.1), None), "all neurons have no control"
    assert toxicity.y == pytest.approx([1.0, 1.0])
    assert beside_toxicity.y[0] == pytest.approx(0.0)
    row = effect.to_frame().query("language == 'all' and measure == 'probe' and group == 'some'").iloc[0]
    assert own.error_y.array[0] == pytest.approx(row.high - row.share)
    assert own.error_y.arrayminus[0] == pytest.approx(row.share - row.low)
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]
    assert [trace.yaxis for trace in figure.data] == ["y", "y", "y2", "y2"]
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1], "below each other, so that names have room"
    assert figure.layout.yaxis.matches == "y2", "on one scale"
    assert [note.text for note in figure.layout.annotations][1] == "Toxicity of continuations"
    assert figure.layout.title.subtitle.text == "mean over 2 languages"
    assert figures.patch_effect(effect, language="de").layout.title.subtitle.text == "German"
    assert figures.patch_effect(effect, language="de").data[0].y[0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="unknown language 'fr': expected one of en, de, all"):
        figures.patch_effect(effect, language="fr")
    for run, values in kept.items():
        assert all((effect.runs[run][name] == each).all() for name, each in values.items())


def test_a_notebook_shows_it():
    assert repr(by_hand()) == "PatchEffect(3 prompts: probe, toxicity with some, all patched)"
    shown = by_hand()._repr_html_()
    text = re.sub("<[^>]*>", "|", shown).replace("\u00a0", " ")
    assert re.search(r"some\|+probe\|+50 % \(4\d % to 5\d %\)\|+10 %", text)
    assert re.search(r"all\|+toxicity\|+100 % \(100 % to 100 %\)\|+–", text)
    for match, words in (
        ("layers", "Random neurons of the same layers<"),
        ("activity", "Random neurons of the same layers, equally active<"),
        (None, "Random neurons<"),
    ):
        effect = dataclasses.replace(by_hand(), match=match)
        assert words in effect._repr_html_()
        assert figures.patch_effect(effect).data[1].name == words[:-1].lower()
    assert "<img" not in by_hand(HOSTILE)._repr_html_()
    assert "<img" not in figures.patch_effect(by_hand(HOSTILE)).to_json().replace("\\u003c", "<")


def test_saved_and_loaded_is_equal(pair, probe, tmp_path):
    _, lms = pair
    found = patch_effect(*lms, PROMPTS, {"some": GROUP}, probe=probe, n_random=1, progress=False)
    found.save(tmp_path / "effect.json")
    again = PatchEffect.load(tmp_path / "effect.json")
    assert again == found
    assert again.models == tuple(lm.identity() for lm in lms)
    assert again.match == "activity"
    assert again != dataclasses.replace(found, match="layers")
    assert again.to_frame().equals(found.to_frame())


def test_a_file_of_an_earlier_version_has_random_neurons_of_the_same_layers(tmp_path):
    by_hand().save(tmp_path / "effect.json")
    content = json.loads((tmp_path / "effect.json").read_text())
    assert content.pop("match") is None
    (tmp_path / "effect.json").write_text(json.dumps(content))
    old = PatchEffect.load(tmp_path / "effect.json")
    assert old.match == "layers"
    assert dataclasses.replace(old, match=None) == by_hand()
    for run in [run for run in content["runs"] if run.endswith("(random)")]:
        del content["runs"][run]
    (tmp_path / "effect.json").write_text(json.dumps(content))
    assert PatchEffect.load(tmp_path / "effect.json").match is None


def test_a_missing_value_equals_itself_and_no_number(tmp_path):
    effect = by_hand()
    effect.runs["base"]["probe"][1] = np.nan
    effect.save(tmp_path / "effect.json")
    assert PatchEffect.load(tmp_path / "effect.json") == effect != by_hand()
    assert effect != "effect"


@pytest.mark.parametrize(
    ("languages", "options", "words"),
    [
        (
            {"en": PROMPTS["en"]},
            {},
            "the continuations are of 2 other prompts: expected continuations of the 5 prompts",
        ),
        (PROMPTS, {"counted": [True]}, "1 values for 5 continuations"),
        (PROMPTS, {"counted": [False] * 5}, "none of the 5 continuations"),
    ],
)
def test_bad_continuations(pair, languages, options, words):
    written = generate(pair[1][0], languages, n_samples=1, max_new_tokens=2, progress=False)
    with pytest.raises(ValueError, match=words):
        patch_effect(*pair[1], PROMPTS, {"some": GROUP}, continuations=written, **options, progress=False)


@pytest.mark.parametrize(
    ("groups", "options", "words"),
    [
        ({"some": GROUP}, {}, "nothing to measure by"),
        ({}, {"toxic_tokens": [1]}, "expected at least one"),
        ({"some": []}, {"toxic_tokens": [1]}, "group 'some' is empty"),
        ({"some": GROUP}, {"toxic_tokens": [1], "counted": [True]}, "give the continuations too"),
        ({"base": GROUP}, {"toxic_tokens": [1]}, "none called base"),
        ({"some": NeuronSet.of([(5, 0)])}, {"toxic_tokens": [1]}, "outside the model"),
        ({"some": GROUP}, {"toxic_tokens": [-1]}, "vocabulary"),
        ({"some": GROUP}, {"toxic_tokens": [300]}, "vocabulary"),
        ({"some": GROUP}, {"toxic_tokens": []}, "expected at least one token"),
        ({"some": GROUP}, {"toxic_tokens": [1], "n_random": -1}, "0 or more"),
        ({"some": GROUP}, {"scorer": WordlistScorer({"en": ["cat"]})}, "does not cover es"),
    ],
)
def test_bad_input(pair, groups, options, words):
    with pytest.raises(ValueError, match=words):
        patch_effect(*pair[1], PROMPTS, groups, **options, progress=False)
