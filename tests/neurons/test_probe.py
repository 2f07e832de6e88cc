import dataclasses

import numpy as np
import pytest
import raw
import torch
from conftest import N_LAYERS, N_POSITIONS
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from xlingtox.neurons import localize
from xlingtox.neurons.probe import Probe, mean_states, split

TEXTS = ["the cat", "la casa es grande y el gato duerme en la cama", "a", "кот сидит"]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_mean_states_equal_hidden_states_by_hand(family, tokenizer, batch_size):
    layers = [2, 0, 1]
    ours = mean_states(family.lm, TEXTS, layers, batch_size=batch_size, progress=False)
    assert ours.shape == (3, len(TEXTS), family.lm.d_model)
    assert ours.dtype == torch.float32
    for row, text in enumerate(TEXTS):
        states = raw.states(family.model, torch.tensor([tokenizer(text)["input_ids"]]))
        for place, layer in enumerate(layers):
            assert_close(ours[place, row], states[layer][0].mean(0), atol=1e-5, rtol=1e-5)


def test_a_long_text_is_cut_to_the_context(lm, model, tokenizer):
    long = "the cat sat on the mat " * 40
    ids = torch.tensor([tokenizer(long)["input_ids"]])
    assert ids.shape[1] > N_POSITIONS
    ours = mean_states(lm, ["a", long], [N_LAYERS], progress=False)[0, 1]
    ends = [raw.states(model, part)[-1][0].mean(0) for part in (ids[:, :N_POSITIONS], ids[:, -N_POSITIONS:])]
    assert any(torch.allclose(ours, end, atol=1e-5) for end in ends)


def test_a_text_without_tokens(lm):
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        mean_states(lm, ["cat", ""], [0], progress=False)


@pytest.fixture(scope="module")
def sentences() -> Dataset:
    """30 about cats, 10 about dogs (the positive class): told apart by one word."""
    places = ["mat", "house", "bed", "tree", "sea", "hill", "car", "sun", "road", "box"]
    cats = [f"the cat sat {how} the {place}" for how in ("on", "in", "at") for place in places]
    dogs = [f"a dog und hund ran away from the {place}" for place in places]
    return Dataset.from_dict({"text": cats + dogs, "label": [0] * 30 + [1] * 10})


@pytest.fixture(scope="module")
def probe(lm, sentences) -> Probe:
    return Probe.fit(lm, sentences, held_out_share=0.5, seed=3, progress=False)


def test_fit_reports_its_held_out_figures(probe):
    assert (probe.n_train, probe.n_held_out, probe.baseline) == (20, 20, 0.75)
    assert 0 <= probe.accuracy <= 1
    assert 0.9 < probe.auc <= 1
    assert round(probe.accuracy * 20) == pytest.approx(probe.accuracy * 20)
    assert f"AUC {probe.auc:.3f}" in repr(probe)


def test_more_along_the_direction_is_more_of_the_positive_class(probe, model, tokenizer, sentences):
    means = torch.stack(
        [raw.states(model, torch.tensor([tokenizer(text)["input_ids"]]))[-1][0].mean(0) for text in sentences["text"]]
    )
    judged_toxic = (means @ probe.direction + probe.bias > 0).numpy()
    assert (judged_toxic == np.array(sentences["label"])).mean() > 0.9


def test_labels_that_say_nothing_give_no_better_than_the_baseline(lm, sentences):
    rng = np.random.default_rng(0)
    shuffled = Dataset.from_dict({"text": sentences["text"], "label": rng.permutation(sentences["label"])})
    aucs = [Probe.fit(lm, shuffled, held_out_share=0.5, seed=seed, progress=False).auc for seed in range(5)]
    assert all(0 <= auc <= 1 for auc in aucs)
    assert 0.2 < np.mean(aucs) < 0.8


def test_the_same_seed_gives_the_same_direction(lm, sentences, probe):
    again = Probe.fit(lm, sentences, held_out_share=0.5, seed=3, progress=False)
    assert torch.equal(again.direction, probe.direction)
    assert (again.bias, again.accuracy, again.auc) == (probe.bias, probe.accuracy, probe.auc)
    assert not torch.equal(
        Probe.fit(lm, sentences, held_out_share=0.5, seed=4, progress=False).direction, probe.direction
    )


def test_labels_of_one_class(lm):
    with pytest.raises(ValueError, match="both classes"):
        Probe.fit(lm, Dataset.from_dict({"text": ["a", "b"], "label": [1, 1]}), progress=False)


def test_a_direction_found_elsewhere_says_what_is_not_known(lm, tmp_path):
    direction = torch.linspace(-1, 1, lm.d_model)
    probe = Probe.from_direction(direction.tolist(), bias=0.5, model=lm)
    assert (probe.bias, probe.model) == (0.5, lm.identity())
    assert_close(probe.direction, direction)
    assert (probe.accuracy, probe.auc, probe.baseline, probe.n_train, probe.n_held_out) == (None,) * 5
    assert (
        repr(probe) == f"Probe(d_model {lm.d_model}: held-out accuracy unknown, AUC unknown, majority baseline unknown)"
    )
    probe.save(tmp_path / "probe.safetensors")
    again = Probe.load(tmp_path / "probe.safetensors")
    assert repr(again) == repr(probe)
    assert torch.equal(again.direction, probe.direction)
    assert len(localize.by_cosine(lm, probe, k=5)) == 5


def test_saved_and_loaded_is_equal(probe, tmp_path):
    elsewhere = Probe.from_direction([1.0, -2.0])
    for saved in (probe, elsewhere, dataclasses.replace(probe, after_final_norm=True)):
        saved.save(tmp_path / "probe")
        again = Probe.load(tmp_path / "probe")
        assert again == saved
        assert again != dataclasses.replace(saved, bias=saved.bias + 1)
        assert again != dataclasses.replace(saved, direction=-saved.direction)
    assert probe != elsewhere


def test_frame_is_one_row_of_figures(probe):
    (row,) = probe.to_frame().to_dict("records")
    assert list(row) == [
        *("model", "d_model", "bias", "accuracy", "auc", "baseline", "n_train", "n_held_out", "after_final_norm")
    ]
    assert (row["model"], row["d_model"], row["n_train"]) == (str(probe.model), len(probe.direction), 20)
    assert (row["bias"], row["accuracy"], row["auc"]) == (probe.bias, probe.accuracy, probe.auc)
    (row,) = Probe.from_direction([1.0, -2.0]).to_frame().to_dict("records")
    assert row["model"] is None
    assert all(np.isnan(row[name]) for name in ("accuracy", "auc", "baseline", "n_train", "n_held_out"))


@pytest.mark.parametrize(
    ("vector", "bias", "words"),
    [
        ([1.0, float("nan")], 0.0, "expected a row of finite numbers"),
        ([], 0.0, "expected a row of finite numbers"),
        ([1.0], float("inf"), "finite bias"),
        ([0.0, 0.0], 0.0, "the direction is zero"),
        ([1.0, 2.0], 0.0, "d_model 32"),
    ],
)
def test_what_is_no_direction(lm, vector, bias, words):
    with pytest.raises(TypeError, match=r"vector is a tensor of float32 with shape \[2, 32\], expected a tensor"):
        Probe.from_direction(torch.ones(2, 32), bias=bias, model=lm)
    with pytest.raises(ValueError, match=words):
        Probe.from_direction(vector, bias=bias, model=lm)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_numbers_of_a_torch_file(tmp_path, bias, whole):
    layer = torch.nn.Linear(8, 1, bias=bias)
    torch.save(layer if whole else layer.state_dict(), tmp_path / "probe.pt")
    probe = Probe.from_torch_file(tmp_path / "probe.pt")
    assert torch.equal(probe.direction, layer.weight.detach()[0])
    assert probe.bias == (float(layer.bias.detach()) if bias else 0.0)


class Hostile:
    """Makes a file when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_torch_file_runs_no_code(tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "probe.pt"
    hidden = torch.nn.Linear(8, 1)
    hidden.extra = Hostile(trace)
    for held in (Hostile(trace), {"weight": Hostile(trace)}, hidden):
        torch.save(held, file)
        with pytest.raises(ValueError, match=r"probe\.pt holds something else"):
            Probe.from_torch_file(file)
        assert not trace.exists()


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (torch.nn.Linear(8, 2), "no linear layer with one output"),
        (torch.nn.Sequential(torch.nn.Linear(8, 1)), "holds something else"),
        ({"weights": torch.ones(8)}, "no linear layer"),
        ({"weight": torch.ones(8), "bias": torch.ones(2)}, "2 biases"),
        ([torch.ones(8)], "no linear layer"),
    ],
)
def test_other_torch_files(tmp_path, held, words):
    torch.save(held, tmp_path / "probe.pt")
    with pytest.raises(ValueError, match=words):
        Probe.from_torch_file(tmp_path / "probe.pt")
    (tmp_path / "probe.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds something else"):
        Probe.from_torch_file(tmp_path / "probe.pt")
    with pytest.raises(FileNotFoundError):
        Probe.from_torch_file(tmp_path / "none.pt")


def test_a_probe_that_was_never_saved(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Probe.load(tmp_path / "nowhere.safetensors")


def test_other_probes_of_the_same_states(lm, model, tokenizer, sentences):
    """Another penalty is scikit-learn's C, and the simplest probe is a difference of means."""
    states = torch.stack(
        [raw.states(model, torch.tensor([tokenizer(text)["input_ids"]]))[-1][0].mean(0) for text in sentences["text"]]
    ).numpy()
    labels = np.array(sentences["label"])
    train, held_out = split(labels.tolist(), held_out_share=0.5, seed=3)
    x, y = states[train], labels[train]
    options = {"held_out_share": 0.5, "seed": 3, "progress": False}
    scale = x.std(0) + 1e-6
    by_hand = LogisticRegression(C=1 / 7, max_iter=2000).fit((x - x.mean(0)) / scale, y).coef_[0] / scale
    assert_close(
        Probe.fit(lm, sentences, penalty=7.0, **options).direction, torch.tensor(by_hand).float(), atol=1e-3, rtol=1e-2
    )
    means = Probe.difference_of_means(lm, sentences, **options)
    toxic, neutral = x[y == 1].mean(0), x[y == 0].mean(0)
    assert_close(means.direction, torch.tensor(toxic - neutral), atol=1e-5, rtol=1e-4)
    assert means.bias == pytest.approx(-float((toxic + neutral) @ (toxic - neutral)) / 2, abs=1e-4)
    judged = states[held_out] @ (toxic - neutral)
    assert means.auc == pytest.approx(roc_auc_score(labels[held_out], judged))
    with pytest.raises(ValueError, match="penalty is 0"):
        Probe.fit(lm, sentences, penalty=0.0)


@pytest.mark.parametrize("after_final_norm", [False, True])
def test_area_on_other_sentences(lm, probe, sentences, after_final_norm):
    elsewhere = sentences.select(range(5, 40))
    probe = dataclasses.replace(probe, after_final_norm=after_final_norm)
    states = mean_states(lm, elsewhere["text"], [N_LAYERS + after_final_norm], progress=False)[0]
    area = probe.auc_on(lm, elsewhere, progress=False)
    assert area.value == pytest.approx(roc_auc_score(elsewhere["label"], states @ probe.direction))
    assert (area.n_toxic, area.n_neutral) == (10, 25)
    assert area.low < area.value <= area.high
