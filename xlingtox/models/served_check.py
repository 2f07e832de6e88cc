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

_NEARLY = {True: 0.02, False: 0.5}
"""Two tokens may change places if their log-likelihoods differ by less than this, by whether both sides are exact."""

_MOST_DIFFERENT = {True: 1, False: _N}
"""The most texts that may differ for this reason. In 16 bits, four of five of SmolLM2's did."""

_LIKELIHOOD = {True: 0.005, False: 0.08}
"""The most by which the log-likelihoods of the tokens may differ on average. In 16 bits, SmolLM2's differed by 0.04."""

_ADVICE = "Serve the same checkpoint, in the same type (vLLM: --dtype)"


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
        if not 0 < len(row) < lm.n_positions:
            raise ValueError(
                f"a prompt has {len(row)} tokens, and {lm.name} has {lm.n_positions} positions: give others"
            )
    max_new_tokens = min(max_new_tokens, lm.n_positions - max(map(len, ids)))
    problems: list[Problem] = []
    answers = dict(
        connection.complete(
            model,
            [Request(tuple(row)) for row in ids],
            problems,
            max_new_tokens=max_new_tokens,
            sampling={},
            ends=lm.ends,
            likelihoods=1,
        )
    )
    if problems:
        raise ServerError(f"the server at {connection.url} does not answer: {problems[0]}")
    differences, off = [], []
    for i, prompt in enumerate(some):
        completion = answers[i][0]
        tokens = completion.tokens
        read = _tokens_of(lm, completion, ids[i], max_new_tokens) if tokens is None else tokens
        difference, errors = _compared(lm, prompt, ids[i], completion, read)
        differences += [] if difference is None else [difference]
        off += errors
    # A server keeps a checkpoint of 16 bits in these, where the local model may be unpacked.
    exact = lm.exact and lm.stored_dtype.itemsize >= 4
    far = [difference for difference in differences if not difference.gap < _NEARLY[exact]]
    if far or len(differences) > _MOST_DIFFERENT[exact]:
        worst = (far or differences)[0]
        raise ServerError(
            f"the server at {connection.url} runs other weights than {lm.name}: {len(differences)} of {len(some)} "
            f"greedy texts differ. After {in_line(worst.prompt.text)!r} it writes {in_line(worst.served)!r}, and "
            f"{lm.name} begins {in_line(worst.local)!r}. {_ADVICE}"
        )
    if off and not (mean := sum(off) / len(off)) < _LIKELIHOOD[exact]:
        raise ServerError(
            f"the server at {connection.url} runs other weights than {lm.name}: the greedy texts agree, but the "
            f"log-likelihoods of their tokens differ by {mean:.3f} on average, where {_LIKELIHOOD[exact]} is allowed. "
            f"{_ADVICE}"
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
def _tokens_of(lm: HookedLM, served: Completion, ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """Return the tokens of a text of which the server tells no tokens: those that the local model writes it with.

    If it writes another text, they are those that the tokenizer cuts the server's text into.
    """
    tokens: list[int] = []
    read, mask = lm.pad([ids])
    logits, cache = lm.extend(read, mask)
    while len(tokens) < max_new_tokens and (token := int(lm.only_tokens(logits)[0].argmax())) not in lm.ends:
        tokens.append(token)
        if len(tokens) < max_new_tokens:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            logits, cache = lm.extend(torch.tensor([[token]], device=lm.device), mask, cache=cache)
    if lm.decode_after([ids], [tokens])[0] == served.text:
        return tokens
    return list(lm.tokenizer(served.text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def _compared(
    lm: HookedLM, prompt: Prompt, ids: Sequence[int], served: Completion, tokens: Sequence[int]
) -> tuple[Difference | None, list[float]]:
    """Let the local model read what the server wrote.

    Returns:
        the first token that the local model would not have written, if there is one, and how much the log-likelihoods
        of the tokens differ.
    """
    read, mask = lm.pad([[*ids, *tokens]])
    logits = lm.only_tokens(lm.logits(read, mask))[0, len(ids) - 1 :].float()
    likelihoods = logits.log_softmax(-1)
    told = (served.log_likelihoods or ())[: len(tokens)]
    errors = [abs(float(likelihoods[step, tokens[step]]) - value) for step, value in enumerate(told)]
    likeliest = likelihoods.argmax(-1).tolist()
    for step in range(len(tokens) + served.ended):
        accepted = [tokens[step]] if step < len(tokens) else list(lm.ends)
        if likeliest[step] not in accepted:
            row = likelihoods[step]
            local = lm.decode_after([ids], [[*tokens[:step], likeliest[step]]])[0]
            gap = float(row[likeliest[step]] - row[accepted].max())
            return Difference(prompt, served.text, local, gap), errors
    return None, errors
