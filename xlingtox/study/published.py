"""Steps of the study as the paper's authors coded them, where the library differs: use them to compare with the paper.

Two more are elsewhere: their measure of fluency is `evaluation.copying_score`, and their distinct n-grams are
`metrics.distinct_n_per_unigram`.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from xlingtox.checking import checked
from xlingtox.data import Labelled, Prompts, labelled_texts
from xlingtox.data.translations import Parallel, sentence_pairs
from xlingtox.models.hooked import HookedLM
from xlingtox.models.states import mean_states
from xlingtox.models.tokenizer import added_start
from xlingtox.neurons import activations
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe, split
from xlingtox.progress import bar

_LONGEST = 256
"""The most characters of a sentence; pairs with a longer sentence are left out."""


@checked
def fit_probe(
    lm: HookedLM,
    labelled: Labelled,
    *,
    learning_rate: float = 1e-4,
    epochs: int = 20,
    batch_size: int = 10,
    held_out_share: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> Probe:
    """Fit the authors' probe: a direction without a bias, on mean states after the final norm.

    It is trained with Adam on the binary cross-entropy, and the epoch with the lowest loss on the held-out sentences is
    kept. Accuracy and AUC are measured on the same sentences, so they are too high. A `ProbeScorer`, which reads states
    before the final norm, refuses this probe.

    Args:
        labelled: columns `text, label` (1 is toxic).
        learning_rate: the learning rate of Adam: 1e-4 in the paper, 1e-6 in the authors' code.

    Raises:
        ValueError: labels of one class only, too few of one to split, or a missing column; less than one epoch or
            sentence a batch, or a learning rate that is no positive number.

    Example:
        >>> xt.study.published.fit_probe(lm, xt.mini.labelled("en", n=100), epochs=2, progress=False).bias
        0.0
    """
    for name, count in (("epochs", epochs), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} is {count}: expected at least 1")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate is {learning_rate}: expected a finite number above 0")
    texts, classes = labelled_texts(labelled)
    train, test = split(classes, held_out_share=held_out_share, seed=seed)
    states = mean_states(lm, texts, [lm.n_layers + 1], progress=progress)[0]
    labels = torch.tensor(classes, dtype=torch.float32)
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(lm.d_model, 1, bias=False)
    adam, best = torch.optim.Adam(layer.parameters(), lr=learning_rate), (float("inf"), layer)
    rows = torch.tensor(train)
    with bar("fitting", total=epochs, unit="epoch", progress=progress) as shown:
        for _ in range(epochs):
            for batch in torch.split(rows[torch.randperm(len(rows), generator=rng)], batch_size):
                adam.zero_grad()
                torch.autograd.backward(binary_cross_entropy_with_logits(layer(states[batch])[:, 0], labels[batch]))
                adam.step()
            with torch.no_grad():
                loss = float(binary_cross_entropy_with_logits(layer(states[test])[:, 0], labels[test]))
            if loss < best[0]:
                best = loss, copy.deepcopy(layer)
            shown.update()
    direction = best[1].weight.detach()[0].clone()
    logits, right = (states[test] @ direction).numpy(), labels[test].numpy()
    return Probe(
        direction=direction,
        bias=0.0,
        accuracy=float(((logits > 0) == right).mean()),
        auc=float(roc_auc_score(right, logits)),
        baseline=float(max(right.mean(), 1 - right.mean())),
        n_train=len(train),
        n_held_out=len(test),
        model=lm.identity(),
        after_final_norm=True,
    )


@checked
def collect_activations(
    lm: HookedLM,
    prompts: Prompts,
    neurons: NeuronSet,
    *,
    max_new_tokens: int = 20,
    batch_size: int | None = None,
    progress: bool = True,
) -> Activations:
    """Read neurons as the authors' code does: a beginning-of-text token before each prompt, and always all 20 steps.

    Steps after an end-of-text token count too. Means are taken over all steps and prompts, as in
    `activations.collect_activations`.

    Raises:
        ValueError: the tokenizer has no beginning-of-text token, or as for `activations.collect_activations`.

    Example:
        >>> as_published = xt.study.published.collect_activations(lm, prompts, sources, progress=False)
        >>> as_published.language_codes
        ('en', 'es')
    """
    return activations.collect_activations(
        lm,
        with_start(lm, prompts),
        neurons,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        stop_at_end=False,
    )


@checked
def with_start(lm: HookedLM, prompts: Prompts) -> Dataset:
    """Return the prompts with a beginning-of-text token before each, unless the tokenizer adds it by itself.

    Returns:
        Columns `language, prompt`.

    Raises:
        ValueError: the tokenizer has no beginning-of-text token, or bad prompts.

    Example:
        >>> xt.study.published.with_start(lm, ["He is"])["prompt"]
        Column(['<|endoftext|>He is'])
    """
    tokenizer = lm.tokenizer
    start, start_id = tokenizer.bos_token, tokenizer.bos_token_id
    if start is None or lm.token_ids([start + "a"])[0][:1] != [start_id]:
        raise ValueError(f"the tokenizer of {lm.name} has no beginning of text: set tokenizer.bos_token")
    added = added_start(tokenizer)[:1] == [start_id]
    rows = [
        {"language": language, "prompt": text if added or text.startswith(start) else start + text}
        for language, text in lm.as_prompts(prompts)
    ]
    return Dataset.from_list(rows)


@checked
def aligned_cosines(
    lm: HookedLM, parallel: Parallel, *, pivot: str = "en", batch_size: int = 64, progress: bool = True
) -> dict[str, float]:
    """Return what the authors' code prints as retrieval accuracy in each language: in fact a mean cosine.

    It is the cosine between the states of a sentence and of its translation; no nearest neighbour is sought. The mean
    is over sentences and layers: the embedding's output, all blocks, and the state after the final norm. Pairs with a
    sentence of over 256 characters are left out.

    Args:
        parallel: parallel sentences in either form that `retrieval.sentence_pairs` takes.

    Raises:
        ValueError: what `sentence_pairs` refuses, a language of which no pair is left, or an edit that stands on the
            model.

    Example:
        >>> list(xt.study.published.aligned_cosines(lm, xt.mini.parallel(n=3, languages=["en", "es"]), progress=False))
        ['es']
    """
    lm.check_unedited("these figures do not show")
    layers = range(lm.n_layers + 2)
    cosines: dict[str, float] = {}
    last_texts: list[str] = []
    read = partial(mean_states, lm, layers=layers, batch_size=batch_size, progress=progress)
    for code, (pivot_texts, texts) in sentence_pairs(parallel, pivot=pivot).items():
        rows = [row for row, pair in enumerate(zip(pivot_texts, texts, strict=True)) if max(map(len, pair)) <= _LONGEST]
        if not rows:
            raise ValueError(f"every pair in {code} has a sentence of over {_LONGEST} characters")
        if pivot_texts != last_texts:  # one column may be the pivot of every language, and is read once
            short = [row for row, text in enumerate(pivot_texts) if len(text) <= _LONGEST]
            place = {row: i for i, row in enumerate(short)}
            pivot_states = read([pivot_texts[row] for row in short])
            last_texts = pivot_texts
        first = pivot_states[:, [place[row] for row in rows]]
        second = read([texts[row] for row in rows])
        cosines[code] = float(np.mean(cosine_similarity(first.double(), second.double(), dim=-1).numpy()))
    return cosines
