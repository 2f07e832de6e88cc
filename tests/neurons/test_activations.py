import dataclasses
import math

import families
import numpy as np
import pytest
import raw
import torch
from conftest import tiny
from torch.testing import assert_close

from xlingtox.edits.interventions import Offset
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.reading import Reader
from xlingtox.verdicts import Verdict

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
    squares = torch.tensor(np.stack([values[rows][mask[rows]].astype(np.float64).var(0) for rows in by_language]))
    model = Identity("made up", None, "float32", "0" * 12)
    rest = (torch.tensor(mask), ("sv", "en", "en", "sv"), torch.tensor(values), model)
    return values, mask, Activations(NEURONS, sums, steps, *rest, squares * steps[:, None], writer=model)


@pytest.mark.parametrize(("language", "rows"), [(None, [0, 1, 2, 3]), ("en", [1, 2]), ("sv", [0, 3])])
def test_mean_equals_numpy(language, rows):
    values, mask, acts = made_up()
    theirs = values[rows][mask[rows]].mean(0)
    np.testing.assert_allclose(acts.mean(language=language).numpy(), theirs, atol=1e-6)
    np.testing.assert_allclose(acts.std(language=language).numpy(), values[rows][mask[rows]].std(0), rtol=1e-5)


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
    assert again != dataclasses.replace(acts, squares=None)
    assert again != dataclasses.replace(acts, writer=None)
    assert again != "activations"
    broken = dataclasses.replace(acts, sums=acts.sums * math.nan)
    broken.save(tmp_path / "acts")
    assert Activations.load(tmp_path / "acts") == broken, "NaN is NaN"


def test_mean_of_a_language_that_is_not_there():
    for statistic in (made_up()[2].mean, made_up()[2].std):
        with pytest.raises(ValueError, match="no prompts in 'de': there are en, sv"):
            statistic(language="de")


def test_a_file_without_squares_has_no_standard_deviation(tmp_path):
    dataclasses.replace(made_up()[2], squares=None).save(tmp_path / "acts")
    old = Activations.load(tmp_path / "acts")
    assert old.mean().shape == (3,)
    with pytest.raises(ValueError, match="collect them again with collect_activations"):
        old.std()


def test_weights_and_evidence_of_neurons_are_saved(tmp_path):
    neurons = dataclasses.replace(NEURONS.weighted([0.5, -2, 1]), evidence=(Verdict("a", "weak", "b"),))
    dataclasses.replace(made_up()[2], neurons=neurons).save(tmp_path / "acts")
    assert Activations.load(tmp_path / "acts").neurons == neurons


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_standard_deviations_equal_numpy(lm, model, tokenizer, batch_size, monkeypatch):
    from xlingtox.neurons import activations

    values, mask = by_hand(model, tokenizer, tokenizer.eos_token_id)
    monkeypatch.setattr(activations, "_MOST_BYTES", 0)
    acts = collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=STEPS, batch_size=batch_size, progress=False)
    assert acts.kept is None
    for language, rows in ((None, [0, 1, 2, 3]), ("ru", [0]), ("en", [1, 2, 3])):
        theirs = values[rows].double().numpy()[mask[rows].numpy()].std(0)
        np.testing.assert_allclose(acts.std(language=language).numpy(), theirs, rtol=1e-4)


def test_large_means_do_not_hide_the_spread(lm):
    """Sums of plain squares, in 32 bits, of numbers around 1000 would lose a standard deviation of 1."""
    rng = np.random.default_rng(0)
    values = (1000 + rng.normal(size=(50, 40, 48))).astype(np.float32)
    whole = NeuronSet.of((1, i) for i in range(48))
    reader = Reader(lm, whole, torch.ones(1, 50), n_kept_steps=0)
    hook = reader.newest()[1]
    for step in range(40):
        reader.begin_step(step, torch.arange(50), torch.ones(50, dtype=torch.bool))
        hook(torch.tensor(values[:, step : step + 1]))
    moments = reader.moments()
    deviation = (moments.squares[0] / moments.counts[0]).sqrt().numpy()
    np.testing.assert_allclose(deviation, values.astype(np.float64).std((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(moments.sums[0] / 2000, values.mean((0, 1), dtype=np.float64), rtol=1e-9)
    moments.add(reader.moments())
    np.testing.assert_allclose((moments.squares[0] / 4000).sqrt().numpy(), deviation, rtol=1e-9)


# --- text that another model writes


def both(name, tokenizer):
    models = [tiny(name), families.randomised(tiny(name), seed=1)]
    return models, [HookedLM.load(model, tokenizer=tokenizer) for model in models]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_model_reads_what_another_wrote(name, batch_size, tokenizer, monkeypatch):
    (reading, writing), (lm, writer) = both(name, tokenizer)
    ids = tokenizer(PROMPTS["en"][0])["input_ids"]
    end = raw.greedy(writing, ids, STEPS)[0][2]
    monkeypatch.setattr(HookedLM, "ends", (end,))
    acts = collect_activations(
        lm, PROMPTS, NEURONS, max_new_tokens=STEPS, batch_size=batch_size, progress=False, writer=writer
    )
    texts = [text for texts in PROMPTS.values() for text in texts]
    values, mask = torch.zeros(len(texts), STEPS, len(NEURONS)), torch.zeros(len(texts), STEPS, dtype=torch.bool)
    differs = False
    for row, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        new, _ = raw.greedy(writing, ids, STEPS, end)
        differs |= new != raw.greedy(reading, ids, STEPS, end)[0]
        with raw.watching(reading, range(lm.n_layers)) as seen:
            raw.forward(reading, torch.tensor([[*ids, *new[:-1]]]))
        mask[row, : len(new)] = True
        values[row, : len(new)] = torch.stack([seen[layer][0, len(ids) - 1 :, index] for layer, index in NEURONS], -1)
    assert differs, "the two models write the same"
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(acts.mask, mask)
    assert_close(acts.values, values, atol=1e-5, rtol=1e-5)
    assert_close(acts.mean(language="en"), values[1:][mask[1:]].mean(0), atol=1e-5, rtol=1e-5)
    assert_close(acts.std(), values[mask].std(0, correction=0), atol=1e-5, rtol=1e-4)
    assert acts.model == lm.identity()
    assert acts.writer == writer.identity()


def test_the_own_text_read_at_once_is_as_read_step_by_step(family):
    alone, given = (
        collect_activations(family.lm, PROMPTS, NEURONS, max_new_tokens=STEPS, progress=False, writer=writer)
        for writer in (None, family.lm)
    )
    assert alone.writer is None
    assert torch.equal(alone.mask, given.mask)
    assert_close(given.values, alone.values, atol=1e-5, rtol=1e-5)
    assert_close(given.sums, alone.sums, atol=1e-4, rtol=1e-5)
    assert_close(given.std(), alone.std(), atol=1e-5, rtol=1e-4)


def test_an_edit_acts_on_the_reader_and_not_on_the_writer(tokenizer):
    (reading, writing), (lm, writer) = both("gpt2", tokenizer)
    edit = [(0, 3), (1, 7)]
    with Offset(NeuronSet.of(edit), 2.0).on(lm):
        acts = collect_activations(lm, ["the cat"], NEURONS, max_new_tokens=STEPS, progress=False, writer=writer)
    ids = tokenizer("the cat")["input_ids"]
    new, _ = raw.greedy(writing, ids, STEPS, tokenizer.eos_token_id)
    with raw.editing(reading, edit, lambda x: x + 2.0), raw.watching(reading, range(2)) as seen:
        raw.forward(reading, torch.tensor([[*ids, *new[:-1]]]))
    theirs = torch.stack([seen[layer][0, len(ids) - 1 :, index] for layer, index in NEURONS], -1)
    assert_close(acts.values[0, : len(new)], theirs, atol=1e-5, rtol=1e-5)


def test_a_writer_must_be_alike(lm, tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="differ in shape"):
        collect_activations(
            lm, PROMPTS, NEURONS, progress=False, writer=HookedLM.load(tiny("llama"), tokenizer=tokenizer)
        )
    _, (_, writer) = both("gpt2", tokenizer)
    monkeypatch.setattr(writer, "token_ids", lambda texts: [[0, *ids] for ids in lm.token_ids(texts)])
    with pytest.raises(ValueError, match=r"read 'кот сидит' .* as different tokens: expected the same tokenizer"):
        collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=STEPS, progress=False, writer=writer)


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
