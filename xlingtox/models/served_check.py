"""The check that a server runs the weights and the tokenizer of a local model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from xlingtox.data import Prompt
from xlingtox.models.completions import Completion, Connection, Request, ServedModel, ServerError
from xlingtox.models.hooked import HookedLM
from xlingtox.remote import Problem
from xlingtox.text import in_line

_SENTENCES = (
    Prompt("en", "Yesterday morning the old man went to the market because"),
    Prompt("es", "La casa de mi hermana está cerca del"),
    Prompt("de", "Der Zug nach Berlin fährt heute"),
    Prompt("ru", "В начале зимы дети всегда"),
    Prompt("zh", "今天的天气很好，我们"),
)
"""What is continued where no prompts are given."""

_N = 5

_NEARLY = {True: 0.02, False: 0.3}
"""Two tokens may change places if their log-likelihoods differ by less than this, by whether the model is exact."""

_MOST_DIFFERENT = {True: 1, False: 2}
"""The most texts that may differ for this reason."""

_LIKELIHOOD = {True: 0.1, False: 0.25}
"""The most by which the log-likelihoods of the tokens may differ on average."""


@dataclass(frozen=True)
class Difference:
    """A greedy text that a server and a local model write differently.

    Attributes:
        prompt: the prompt.
        served: the server's text.
        local: the local model's text, up to the first token that differs.
        gap: how much likelier its own token is to the local model, in nats.
    """

    prompt: Prompt
    served: str
    local: str
    gap: float


def check_agreement(
    connection: Connection, model: ServedModel, lm: HookedLM, prompts: Sequence[Prompt] | None, *, max_new_tokens: int
) -> tuple[Difference, ...]:
    """Check a server against a local model; see `Served.check`."""
    some = _SENTENCES if prompts is None else _one_a_language(prompts)
    ids = lm.token_ids([prompt.text for prompt in some])
    for prompt, row in zip(some, ids, strict=True):
        plain = lm.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        served = connection.tokens_of(model, prompt.text)
        if served is not None and served != plain:
            raise ServerError(
                f"the server at {connection.url} cuts {prompt.text!r} into the tokens {served[:5]}, and {lm.name} into "
                f"{plain[:5]}: serve the same checkpoint, with its tokenizer"
            )
        if not row:
            raise ValueError(f"a prompt has no tokens: {prompt.text!r}")
    problems: list[Problem] = []
    answers = dict(
        connection.complete(
            model,
            [Request(tuple(row)) for row in ids],
            problems,
            max_new_tokens=max_new_tokens,
            sampling={},
            ends=lm.ends,
            likelihoods=True,
        )
    )
    if problems:
        raise ServerError(f"the server at {connection.url} does not answer: {problems[0]}")
    differences, off = [], []
    for i, prompt in enumerate(some):
        difference, errors = _compared(lm, prompt, ids[i], answers[i][0])
        differences += [] if difference is None else [difference]
        off += errors
    exact = lm.exact
    far = [difference for difference in differences if not difference.gap < _NEARLY[exact]]
    if far or len(differences) > _MOST_DIFFERENT[exact]:
        worst = (far or differences)[0]
        raise ServerError(
            f"the server at {connection.url} runs other weights than {lm.name}: {len(differences)} of {len(some)} "
            f"greedy texts differ. After {in_line(worst.prompt.text)!r} it writes {in_line(worst.served)!r}, and "
            f"{lm.name} begins {in_line(worst.local)!r}"
        )
    if off and not (mean := sum(off) / len(off)) < _LIKELIHOOD[exact]:
        raise ServerError(
            f"the server at {connection.url} runs other weights than {lm.name}: the greedy texts agree, but the "
            f"log-likelihoods of their tokens differ by {mean:.2f} on average, where {_LIKELIHOOD[exact]} is allowed"
        )
    return tuple(differences)


def _one_a_language(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return five prompts, of as many languages as there are."""
    places: dict[str, int] = {}
    ranked = []
    for i, prompt in enumerate(prompts):
        ranked.append((places.get(prompt.language, 0), i))
        places[prompt.language] = places.get(prompt.language, 0) + 1
    return [prompts[i] for _, i in sorted(ranked)[:_N]]


@torch.no_grad()
def _compared(
    lm: HookedLM, prompt: Prompt, ids: Sequence[int], served: Completion
) -> tuple[Difference | None, list[float]]:
    """Let the local model read what the server wrote.

    Returns:
        the first token that the local model would not have written, if there is one, and how much the log-likelihoods
        of the tokens before it differ.
    """
    tokens = served.tokens
    if tokens is None:
        # The text may have been written with other tokens than its tokenizer cuts it into; this is rare.
        tokens = tuple(lm.tokenizer(served.text, add_special_tokens=False)["input_ids"])
    read, mask = lm.pad([[*ids, *tokens]])
    logits = lm.only_tokens(lm.logits(read, mask))[0, len(ids) - 1 :].float()
    likelihoods = logits.log_softmax(-1)
    likeliest = likelihoods.argmax(-1).tolist()
    errors = []
    for step, token in enumerate(tokens):
        if likeliest[step] != token:
            row = likelihoods[step]
            local = lm.decode_after([ids], [[*tokens[:step], likeliest[step]]])[0]
            return Difference(prompt, served.text, local, float(row[likeliest[step]] - row[token])), errors
        if served.log_likelihoods is not None and step < len(served.log_likelihoods):
            errors.append(abs(float(likelihoods[step, token]) - served.log_likelihoods[step]))
    if served.ended and likeliest[len(tokens)] not in lm.ends:
        row = likelihoods[len(tokens)]
        local = lm.decode_after([ids], [[*tokens, likeliest[len(tokens)]]])[0]
        gap = float(row[likeliest[len(tokens)]] - max(row[end] for end in lm.ends))
        return Difference(prompt, served.text, local, gap), errors
    return None, errors
