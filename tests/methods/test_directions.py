"""Methods that act along directions: their fits and their effects against numpy, scikit-learn and plain hooks."""

from typing import Any, NamedTuple

import families
import numpy as np
import pytest
import raw
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xlingtox as xt
from xlingtox.methods import (
    HeadShift,
    MeanDifference,
    MeanProjected,
    Principal,
    PrincipalProjected,
    RandomDirection,
)
from xlingtox.methods.examples import Examples
from xlingtox.methods.layers import best_layer, spaced_blocks
from xlingtox.methods.states import States
from xlingtox.models.loading import mini_checkpoint

IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])


class Case(NamedTuple):
    """A model as Hugging Face has it and under our hooks, with labelled sentences and pairs."""

    plain: Any
    tokenizer: Any
    lm: xt.HookedLM
    labelled: list[dict[str, Any]]
    pairs: list[dict[str, Any]]

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer(text)["input_ids"]])

    def states(self, texts: list[str], layer: int, tokens: str = "last") -> np.ndarray:
        """The residual stream behind a block, one sentence at a time."""
        rows = [raw.states(self.plain, self.ids(text))[layer + 1][0] for text in texts]
        return np.stack([(row[-1] if tokens == "last" else row.mean(0)).numpy() for row in rows]).astype(np.float64)

    def heads(self, texts: list[str], layer: int) -> np.ndarray:
        """The input of attention's output projection at the last token, `[text, head, d_head]`."""
        seen = []
        out = families.out(self.plain, self.plain.config.model_type, layer)
        with raw.hooked([out.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1].numpy()))]):
            for text in texts:
                raw.forward(self.plain, self.ids(text))
        return np.stack(seen).reshape(len(texts), 4, -1).astype(np.float64)

    def of_label(self, label: int) -> list[str]:
        return [row["text"] for row in self.labelled if row["label"] == label]

    def side(self, side: str) -> list[str]:
        return [row["prompt"] + row[side] for row in self.pairs]

    def steered(self, layer: int, change) -> torch.Tensor:
        """Logits where a plain hook changes the output of a block."""

        def after(_, args, out):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        with raw.hooked([raw.block(self.plain, layer).register_forward_hook(after)]):
            return raw.forward(self.plain, IDS).logits


@pytest.fixture(scope="module", params=["mini", "llama"])
def case(request, tokenizer) -> Case:
    """The miniature, or a random model of another family with sentences of its own."""
    if request.param == "mini":
        plain = transformers.AutoModelForCausalLM.from_pretrained(mini_checkpoint()).eval()
        own = transformers.AutoTokenizer.from_pretrained(mini_checkpoint())
        labelled, pairs = xt.mini.labelled("en", n=30), xt.mini.pairs("en", n=12)
        return Case(plain, own, xt.HookedLM.load("mini"), list(labelled), list(pairs))
    animals = ["cat", "gato", "katze", "кот"]
    labelled = [
        {"text": f"the {animals[i % 4]} {i} la {'casa' if i % 2 else 'hund'}", "label": i % 2} for i in range(31)
    ]
    pairs = [
        {"prompt": f"the {animals[i % 4]}", "chosen": f" {i} im haus", "rejected": f" {i * i} ran away"}
        for i in range(12)
    ]
    plain = families.build("llama")
    return Case(plain, tokenizer, xt.HookedLM.load(plain, tokenizer=tokenizer), labelled, pairs)


def same(fitted, strength: float, expected: torch.Tensor, lm: xt.HookedLM) -> None:
    mask = torch.ones_like(IDS, dtype=torch.bool)
    plain = lm.logits(IDS, mask)
    with fitted.at(strength).on(lm):
        ours = lm.logits(IDS, mask)
    assert float((ours - plain).abs().max()) > 0.01
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-3)
    with fitted.at(0.0).on(lm):
        assert torch.equal(lm.logits(IDS, mask), plain)


@pytest.mark.parametrize("tokens", ["last", "mean"])
def test_the_difference_of_means_is_added_or_taken_out(case, tokens):
    toxic, clean = (case.states(case.of_label(label), 1, tokens).mean(0) for label in (1, 0))
    direction = torch.tensor(clean - toxic, dtype=torch.float32)
    unit = direction / direction.norm()
    added = MeanDifference(1, tokens=tokens).fit(case.lm, case.labelled, progress=False)
    np.testing.assert_allclose(added.at(1.0).direction, clean - toxic, rtol=1e-3, atol=1e-4)
    same(added, 2.5, case.steered(1, lambda state: state + 2.5 * direction), case.lm)
    out = MeanProjected(1, tokens=tokens).fit(case.lm, case.labelled, progress=False)
    same(out, 0.7, case.steered(1, lambda state: state - 0.7 * (state @ unit)[..., None] * unit), case.lm)
    # Nothing is left of the component.
    with out.at(1.0).on(case.lm), case.lm.hooks(residual={2: lambda state: seen.append(state @ unit)}):
        seen: list[torch.Tensor] = []
        case.lm.logits(IDS, torch.ones_like(IDS, dtype=torch.bool))
    assert float(seen[0].abs().max()) < 1e-3


def test_the_principal_direction_of_pairs_is_added_or_taken_out(case):
    toxic, clean = (case.states(case.side(side), 0) for side in ("rejected", "chosen"))
    # Another way to the same axis: the matrix of second moments.
    axis = np.linalg.eigh((clean - toxic).T @ (clean - toxic))[1][:, -1]
    direction = (clean.mean(0) - toxic.mean(0)) @ axis * axis
    added = Principal(0).fit(case.lm, case.pairs, progress=False)
    np.testing.assert_allclose(added.at(1.0).direction, direction, rtol=1e-3, atol=1e-3 * np.abs(direction).max())
    shift, unit = torch.tensor(direction).float(), torch.tensor(axis).float()
    same(added, 3.0, case.steered(0, lambda state: state + 3.0 * shift), case.lm)
    out = PrincipalProjected(0).fit(case.lm, case.pairs, progress=False)
    same(out, 2.0, case.steered(0, lambda state: state - 2.0 * (state @ unit)[..., None] * unit), case.lm)


def test_sentences_that_are_no_pairs_are_paired_by_the_seed(case):
    fits = [Principal(1).fit(case.lm, case.labelled, seed=seed, progress=False).at(1.0) for seed in (0, 0, 1)]
    assert fits[0] == fits[1] != fits[2]
    toxic, clean = (case.states(case.of_label(label), 1).mean(0) for label in (1, 0))
    for fit in fits:
        # However they are paired, the direction is as long as the difference of the means along it.
        axis = np.array(fit.direction) / np.linalg.norm(fit.direction)
        assert np.linalg.norm(fit.direction) == pytest.approx((clean - toxic) @ axis, rel=1e-3)


def test_heads_that_tell_toxic_text_best_are_moved(case):
    k, layers = 3, range(case.lm.n_layers)
    toxic, clean = ([case.heads(case.of_label(label), layer) for layer in layers] for label in (1, 0))
    random = np.random.default_rng(5)
    held_out = []
    for side in (toxic, clean):
        rows = random.permutation(len(side[0]))
        held_out.append(rows[: round(len(rows) / 5)])
    train = [np.setdiff1d(np.arange(len(side[0])), part) for side, part in zip((toxic, clean), held_out, strict=True)]
    accuracies = {}
    for layer in layers:
        for head in range(4):
            parts = {}
            for name, rows in (("train", train), ("held out", held_out)):
                sides = toxic[layer][rows[0], head], clean[layer][rows[1], head]
                parts[name] = np.concatenate(sides), np.repeat([1, 0], list(map(len, sides)))
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(*parts["train"])
            accuracies[layer, head] = probe.score(*parts["held out"])
    best = sorted(accuracies, key=lambda pair: (-accuracies[pair], pair))[:k]
    shifts = {}
    for layer, head in best:
        mean = clean[layer][:, head].mean(0) - toxic[layer][:, head].mean(0)
        unit = mean / np.linalg.norm(mean)
        spread = np.concatenate([toxic[layer][:, head] @ unit, clean[layer][:, head] @ unit]).std()
        shifts[layer, head] = torch.tensor(15 * spread * unit).float()

    fitted = HeadShift(k).fit(case.lm, case.labelled, seed=5, progress=False)
    edit = fitted.at(1.0)
    assert [*edit.neurons.neurons] == best
    assert edit.neurons.scores == pytest.approx([accuracies[pair] for pair in best])
    np.testing.assert_allclose(edit.value, torch.cat([*shifts.values()]), rtol=1e-3, atol=1e-3)

    def moving(layer):
        def before(_, args):
            heads = args[0].clone().unflatten(-1, (4, -1))
            for (at, head), shift in shifts.items():
                if at == layer:
                    heads[:, :, head] += 0.4 * shift
            return (heads.flatten(-2),)

        return before

    outs = [families.out(case.plain, case.plain.config.model_type, layer) for layer in layers]
    with raw.hooked([out.register_forward_pre_hook(moving(layer)) for layer, out in enumerate(outs)]):
        expected = raw.forward(case.plain, IDS).logits
    same(fitted, 0.4, expected, case.lm)


def test_the_published_share_of_heads_is_moved(case):
    edit = HeadShift(alpha=2.0).fit(case.lm, case.labelled, progress=False).at(1.0)
    assert len(edit.neurons) == 1
    half = HeadShift(alpha=1.0).fit(case.lm, case.labelled, progress=False).at(1.0)
    np.testing.assert_allclose(edit.value, 2 * np.array(half.value))


def test_a_random_direction_is_as_long_as_the_difference_of_means(case):
    means = np.array(MeanDifference(1).fit(case.lm, case.labelled, progress=False).at(1.0).direction)
    control = RandomDirection(1)
    assert control.control
    fits = [control.fit(case.lm, case.labelled, seed=seed, progress=False).at(2.0) for seed in (0, 0, 1)]
    assert fits[0] == fits[1] != fits[2]
    assert fits[0].strength == 2
    for fit in fits:
        direction = np.array(fit.direction)
        assert np.linalg.norm(direction) == pytest.approx(np.linalg.norm(means), rel=1e-4)
        assert abs(direction @ means) < 0.7 * np.linalg.norm(means) ** 2


@pytest.mark.parametrize("method", [MeanDifference(), MeanProjected()])
def test_the_block_sets_held_out_sentences_apart_most_at_equal_cost(case, method):
    seed, projects = 3, isinstance(method, MeanProjected)
    random, texts, held_out = np.random.default_rng(seed), {}, {}
    for label in (1, 0):
        rows = random.permutation(len(case.of_label(label)))
        cut = round(len(rows) / 5)
        held_out[label] = [case.of_label(label)[row] for row in rows[:cut]]
        texts[label] = [case.of_label(label)[row] for row in rows[cut:]]

    def loss(label: int) -> float:
        sums, counts = 0.0, 0
        for text in held_out[label]:
            ids = case.ids(text)
            chances = raw.forward(case.plain, ids).logits[0, :-1].double().log_softmax(-1)
            sums -= float(chances.gather(-1, ids[0, 1:, None]).sum())
            counts += ids.shape[1] - 1
        return sums / counts

    before, gains = {label: loss(label) for label in (1, 0)}, []
    for layer in range(case.lm.n_layers):
        toxic, clean = (case.states(texts[label], layer).mean(0) for label in (1, 0))
        direction = torch.tensor(clean - toxic).float()
        unit, best = direction / direction.norm(), 0.0
        for strength in (0.25, 0.5, 1.0, 2.0, 4.0):

            def after(_, args, out, strength=strength, direction=direction, unit=unit):
                state = out[0] if isinstance(out, tuple) else out
                change = -(state @ unit)[..., None] * unit if projects else direction
                return (state + strength * change, *out[1:]) if isinstance(out, tuple) else state + strength * change

            with raw.hooked([raw.block(case.plain, layer).register_forward_hook(after)]):
                toxic_change, clean_change = (loss(label) - before[label] for label in (1, 0))
            if np.exp(clean_change) <= 1.1:
                best = max(best, toxic_change - clean_change)
        gains.append(best)
    assert method.fit(case.lm, case.labelled, seed=seed, progress=False).at(1.0).layer == int(np.argmax(gains))
    assert max(gains) > 0


def test_of_equally_good_blocks_the_middle_one_is_taken(case):
    """Directions that change nothing are all as good."""
    nowhere = (0.0,) * case.lm.d_model
    held_out = Examples(tuple(case.of_label(1)[:2]), tuple(case.of_label(0)[:2]), paired=False)
    for blocks, middle in (([0, 1, 2], 1), ([1, 2], 2), ([1], 1)):
        directions = dict.fromkeys(blocks, nowhere)
        assert best_layer(case.lm, directions, xt.Steer, held_out, progress=False) == middle


def test_deep_models_are_tried_at_blocks_evenly_apart():
    assert spaced_blocks(3) == [0, 1, 2]
    assert spaced_blocks(6) == [*range(6)]
    assert spaced_blocks(32) == [0, 6, 12, 19, 25, 31]


def test_a_fifth_is_held_out_and_pairs_stay_together():
    rows = np.arange(20.0)[:, None]
    for part in States(rows, rows, paired=True).split(seed=1):
        np.testing.assert_array_equal(part.toxic, part.clean)
    train, held_out = States(rows, rows[:7], paired=False).split(seed=1)
    assert sorted([*train.toxic[:, 0], *held_out.toxic[:, 0]]) == list(range(20))
    assert sorted([*train.clean[:, 0], *held_out.clean[:, 0]]) == list(range(7))
    assert (len(held_out.toxic), len(held_out.clean)) == (4, 1)


def test_names_differ_and_only_the_random_one_is_a_control():
    methods = [MeanDifference(), MeanProjected(), Principal(), PrincipalProjected(), HeadShift(), RandomDirection()]
    assert len({method.name for method in methods}) == len(methods)
    assert [method.control for method in methods] == [False] * 5 + [True]
    assert {method.dial for method in methods} == {"continuous"}
    assert all(method.citation for method in methods)


def test_what_cannot_be_fitted_is_refused(case):
    lm, labelled = case.lm, case.labelled
    two = [next(row for row in labelled if row["label"] == label) for label in (1, 0)]
    with pytest.raises(ValueError, match=r"layer is 9: .* has blocks 0 to"):
        MeanDifference(9).fit(lm, labelled, progress=False)
    with pytest.raises(ValueError, match=r"k is 0: .* heads"):
        HeadShift(0).fit(lm, labelled, progress=False)
    with pytest.raises(ValueError, match="there is 1 sentence of a kind: expected 2 or more"):
        Principal().fit(lm, two, progress=False)
    with pytest.raises(ValueError, match="is not fitted"):
        Principal().at(1.0)
    with pytest.raises(ValueError, match="no held-out sentence has two tokens, such as 'e'"):
        MeanDifference().fit(lm, [{"text": "e", "label": i % 2} for i in range(4)], progress=False)
    # With a layer given, nothing is held out.
    assert MeanDifference(1).fit(lm, two, progress=False).at(1.0).layer == 1
