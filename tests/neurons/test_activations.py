import dataclasses
import math

import numpy as np
import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox.edits.interventions import Offset
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {"ru": ["кот сидит"], "en": ["the cat", "a", "the dog ran away from the"]}
NEURONS = NeuronSet.of([(1, 40), (0, 3), (1, 7)], scores=[3, 2, 1])
STEPS = 6


def by_hand(model, tokenizer, end):
    """An uncached loop on plain Hugging Face: values and mask, zero where a row has ended."""
    texts = [text for texts in PROMPTS.values() for text in texts]
    values, mask = torch.zeros(len(texts), STEPS, len(NEURONS)), torch.zeros(len(texts), STEPS, dtype=torch.bool)
    for row, text in enumerate(texts):
        _, passes = raw.greedy(model, tokenizer(text)["input_ids"], STEPS, end)
        for step, seen in enumerate(passes):
            mask[row, step] = True
            values[row, step] = torch.stack([seen[layer][index] for layer, index in NEURONS])
    return values, mask


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_values_equal_an_uncached_loop(family, tokenizer, batch_size):
    acts = collect_activations(family.lm, PROMPTS, NEURONS, max_new_tokens=STEPS, batch_size=batch_size, progress=False)
    values, mask = by_hand(family.model, tokenizer, tokenizer.eos_token_id)
    assert acts.neurons == NEURONS
    assert acts.languages == ("ru", "en", "en", "en")
    assert torch.equal(acts.mask, mask)
    assert_close(acts.values, values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_rows_that_ended_are_masked(ending, model, tokenizer, batch_size):
    end = raw.greedy(model, tokenizer("the cat")["input_ids"], STEPS)[0][2]
    values, mask = by_hand(model, tokenizer, end)
    assert 0 < mask.sum() < mask.numel()
    acts = collect_activations(
        ending(end), PROMPTS, NEURONS, max_new_tokens=STEPS, batch_size=batch_size, progress=False
    )
    assert torch.equal(acts.mask, mask)
    assert_close(acts.values, values, atol=1e-5, rtol=1e-5)
    assert_close(acts.mean(), values[mask].mean(0), atol=1e-5, rtol=1e-5)


def test_under_an_edit_the_edited_values_are_read(lm, model, tokenizer):
    edit = [(0, 3), (1, 7)]
    with Offset(NeuronSet.of(edit), 2.0).on(lm):
        acts = collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=STEPS, progress=False)
    with raw.editing(model, edit, lambda x: x + 2.0):
        values, _ = by_hand(model, tokenizer, tokenizer.eos_token_id)
    assert_close(acts.values, values, atol=1e-5, rtol=1e-5)


def made_up():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(4, STEPS, 3)).astype(np.float32), rng.random((4, STEPS)) < 0.7
    values[~mask] = 0
    by_language = [[1, 2], [0, 3]]  # en, sv: the house's order
    sums = torch.tensor(np.stack([values[rows].sum((0, 1), dtype=np.float64) for rows in by_language]))
    steps = torch.tensor([int(mask[rows].sum()) for rows in by_language])
    model = Identity("made up", None, "float32", "0" * 12)
    rest = (torch.tensor(mask), ("sv", "en", "en", "sv"), torch.tensor(values), model)
    return values, mask, Activations(NEURONS, sums, steps, *rest)


@pytest.mark.parametrize(("language", "rows"), [(None, [0, 1, 2, 3]), ("en", [1, 2]), ("sv", [0, 3])])
def test_mean_equals_numpy(language, rows):
    values, mask, acts = made_up()
    theirs = values[rows][mask[rows]].mean(0)
    np.testing.assert_allclose(acts.mean(language=language).numpy(), theirs, atol=1e-6)


def test_frame_is_a_row_a_language_and_neuron():
    values, mask, acts = made_up()
    table = acts.to_frame()
    assert list(table.columns) == ["language", "layer", "index", "mean"]
    assert table["language"].tolist() == ["en"] * 3 + ["sv"] * 3
    assert list(zip(table["layer"], table["index"], strict=True)) == [*NEURONS, *NEURONS]
    theirs = [values[rows][mask[rows]].mean(0) for rows in ([1, 2], [0, 3])]
    np.testing.assert_allclose(table["mean"], np.concatenate(theirs), atol=1e-6)


@pytest.mark.parametrize("kept", [True, False])
def test_saved_and_loaded_is_equal(tmp_path, kept):
    acts = made_up()[2] if kept else dataclasses.replace(made_up()[2], kept=None)
    acts.save(tmp_path / "acts")
    again = Activations.load(tmp_path / "acts")
    assert again == acts
    assert again != dataclasses.replace(acts, sums=acts.sums + 1)
    assert again != dataclasses.replace(acts, kept=None if kept else made_up()[2].kept)
    assert again != "activations"
    broken = dataclasses.replace(acts, sums=acts.sums * math.nan)
    broken.save(tmp_path / "acts")
    assert Activations.load(tmp_path / "acts") == broken, "NaN is NaN"


def test_mean_of_a_language_that_is_not_there():
    with pytest.raises(ValueError, match="no prompts in 'de': there are en, sv"):
        made_up()[2].mean(language="de")


@pytest.mark.parametrize(
    ("prompts", "neurons", "steps", "words"),
    [
        ([], NEURONS, 3, "no prompts"),
        ([" "], NEURONS, 3, "prompt 0 is blank"),
        (["a" * 62], NEURONS, 3, "room for 61"),
        (["cat"], NEURONS, 0, "at least 1"),
        (["cat"], NeuronSet.of([(5, 0)]), 3, r"neuron \(5, 0\) is outside the model"),
        (["cat"], NeuronSet.of([]), 3, "empty"),
    ],
)
def test_bad_input(lm, *, prompts, neurons, steps, words):
    with pytest.raises(ValueError, match=words):
        collect_activations(lm, prompts, neurons, max_new_tokens=steps, progress=False)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_have_at_least_one_row(lm, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}: expected at least 1"):
        collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=STEPS, batch_size=batch_size, progress=False)


def test_only_the_asked_layers_are_hooked(lm, monkeypatch):
    """Hooks copy what they see: on layers that nobody asked for they would only cost."""
    asked, hooked = NeuronSet.of([(1, 40), (1, 7)]), []
    hooks = lm.hooks

    def watched(post=None, residual=None, edit="hooks"):
        hooked.append((sorted(post or {}), residual))
        return hooks(post, residual, edit)

    monkeypatch.setattr(lm, "hooks", watched)
    collect_activations(lm, PROMPTS, asked, max_new_tokens=STEPS, batch_size=2, progress=False)
    assert hooked == [([1], None)] * 2


def test_prompts_of_like_length_are_read_together(lm, monkeypatch):
    prompts, encode, seen = ["a", "the dog ran away from the", "b", "la casa es grande y el"], lm.encode, []
    monkeypatch.setattr(lm, "encode", lambda texts: (seen.append(list(texts)), encode(texts))[1])
    acts = collect_activations(lm, prompts, NEURONS, max_new_tokens=STEPS, batch_size=2, progress=False)
    assert sorted(map(sorted, seen)) == [["a", "b"], sorted(prompts[1::2])]
    monkeypatch.undo()
    alone = [
        collect_activations(lm, [prompt], NEURONS, max_new_tokens=STEPS, progress=False).values[0] for prompt in prompts
    ]
    assert_close(acts.values, torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shown", [True, False])
def test_long_work_shows_how_far_it_is(lm, capsys, shown):
    collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=2, progress=shown)
    printed = capsys.readouterr().err
    assert ("/4" in printed) == shown
    assert shown or printed == ""


# --- all neurons


def test_all_neurons_are_averaged_without_their_steps(family, tokenizer, monkeypatch):
    from xlingtox.neurons import activations

    lm, every = family.lm, NeuronSet.all(family.lm)
    with_steps = collect_activations(lm, PROMPTS, every, max_new_tokens=STEPS, progress=False)
    monkeypatch.setattr(activations, "_MOST_BYTES", 0)
    flat = collect_activations(lm, PROMPTS, every, max_new_tokens=STEPS, batch_size=2, progress=False)
    assert flat.kept is None
    with pytest.raises(ValueError, match="only the means"):
        _ = flat.values
    prompts = [(code, prompt) for code, texts in PROMPTS.items() for prompt in texts]
    for language in (*PROMPTS, None):
        rows = []
        for code, prompt in prompts:
            if language in (code, None):
                _, passes = raw.greedy(family.model, tokenizer(prompt)["input_ids"], STEPS, tokenizer.eos_token_id)
                rows += [torch.cat([seen[layer] for layer in range(lm.n_layers)]) for seen in passes]
        theirs = torch.stack(rows).double().mean(0).float()
        assert_close(flat.mean(language=language), theirs, atol=1e-5, rtol=1e-4)
        assert_close(with_steps.mean(language=language), theirs, atol=1e-5, rtol=1e-4)


def test_means_without_steps_are_saved(lm, tmp_path, monkeypatch):
    from xlingtox.neurons import activations

    monkeypatch.setattr(activations, "_MOST_BYTES", 0)
    acts = collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=STEPS, progress=False)
    acts.save(tmp_path / "acts")
    again = Activations.load(tmp_path / "acts")
    assert again.kept is None
    assert torch.equal(again.mean(), acts.mean())
    assert again.model == lm.identity()
