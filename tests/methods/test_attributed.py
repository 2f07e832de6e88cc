"""The offset of attributed neurons: plain autograd finds the same neurons, and plain hooks the same effect."""

import copy

import families
import numpy as np
import pytest
import raw
import torch

from xlingtox.methods import AttributedOffset
from xlingtox.models.hooked import HookedLM

TOXIC = ["the cat sat on the mat", "la casa es grande", "der hund und die katze", "a", "dog ran away from the house"]
LABELLED = [{"text": text, "label": 1} for text in TOXIC] + [{"text": "and so on", "label": 0}]
K = 8


@pytest.fixture(scope="module", params=["gpt2", "llama", "mini"])
def models(request, tokenizer):
    """A plain model and a tuned one, and the same under our hooks."""
    if request.param == "mini":
        hooked = HookedLM.load("mini")
        plain, tokens = hooked.unwrapped(), hooked.tokenizer
    else:
        plain, tokens = families.build(request.param), tokenizer
    tuned = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return plain, tuned, *(HookedLM.load(model, tokenizer=tokens) for model in (plain, tuned))


def attributed_by_hand(plain, tuned, lm):
    """`[layer, neuron]`: gradient times change, summed over a sentence's tokens, and the mean over sentences."""
    layers, total, n_sentences = range(lm.n_layers), 0, 0
    for text in TOXIC:
        ids = torch.tensor(lm.token_ids([text]))
        if ids.shape[1] < 2:
            continue
        with raw.watching(tuned, layers) as after:
            raw.forward(tuned, ids)
        before = {}

        def keep(layer, before=before):
            def hook(_, args):
                before[layer] = args[0]
                before[layer].retain_grad()

            return hook

        with raw.hooked([raw.down(plain, layer).register_forward_pre_hook(keep(layer)) for layer in layers]):
            logits = plain(ids, use_cache=False).logits[0].double().log_softmax(-1)
        logits[:-1].gather(-1, ids[0, 1:, None]).sum().backward()
        total = total + torch.stack(
            [
                (before[layer].grad[0] * (after[layer][0] - before[layer].detach()[0])).sum(0).double()
                for layer in layers
            ]
        )
        n_sentences += 1
    return (total / n_sentences).numpy()


def test_the_neurons_and_their_effect(models):
    plain, tuned, lm, tuned_lm = models
    by_hand = attributed_by_hand(plain, tuned, lm)
    order = np.argsort(by_hand.ravel(), kind="stable")[:K]
    fitted = AttributedOffset(tuned_lm, k=K).fit(lm, LABELLED, progress=False)
    edit = fitted.at(1.0)
    assert list(edit.neurons) == [divmod(int(i), lm.d_mlp) for i in order]
    np.testing.assert_allclose(edit.neurons.scores, by_hand.ravel()[order], rtol=1e-3)
    means = []
    for model in (plain, tuned):
        read = []
        for text in TOXIC:
            with raw.watching(model, range(lm.n_layers)) as seen:
                raw.forward(model, torch.tensor(lm.token_ids([text])))
            read.append(np.stack([seen[layer][0, :, index].double().numpy() for layer, index in edit.neurons], 1))
        means.append(np.concatenate(read).mean(0))
    np.testing.assert_allclose(edit.amounts(), means[1] - means[0], rtol=1e-3, atol=1e-6)
    ids, mask = lm.encode([TOXIC[0]])
    for strength in (0.5, 0.0):
        handles = []
        for layer, (indices, columns) in edit.neurons.by_layer().items():
            amounts = torch.tensor((means[1] - means[0])[columns] * strength, dtype=torch.float32)

            def add(_, args, indices=indices, amounts=amounts):
                value = args[0].clone()
                value[..., indices] += amounts
                return (value,)

            handles.append(raw.down(plain, layer).register_forward_pre_hook(add))
        with raw.hooked(handles):
            expected = raw.forward(plain, ids).logits
        with fitted.at(strength).on(lm):
            torch.testing.assert_close(lm.logits(ids, mask), expected, atol=1e-4, rtol=1e-4)


def test_a_fit_that_cannot_be(lm, pair):
    tuned = pair[1][1]
    with pytest.raises(ValueError, match=r"no neuron's change .* lowers the log-probability"):
        AttributedOffset(pair[0][1]).fit(lm, LABELLED, progress=False)
    with pytest.raises(ValueError, match="none of the 1 toxic sentences has two tokens"):
        AttributedOffset(tuned).fit(lm, [{"text": "a", "label": 1}, {"text": "b", "label": 0}], progress=False)
    with pytest.raises(ValueError, match="k is 0"):
        AttributedOffset(tuned, k=0).fit(lm, LABELLED, progress=False)
    # No more neurons than those that lower it.
    every = AttributedOffset(tuned, k=10**6).fit(lm, LABELLED, progress=False).at(1.0)
    assert 0 < len(every.neurons) < lm.n_neurons
    assert max(every.neurons.scores) < 0
