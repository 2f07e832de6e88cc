"""The likeliest next tokens after prompts, as a server tells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from xlingtox.models.completions import VLLM, Request, ServedModel, ServerError
from xlingtox.models.served import Served
from xlingtox.remote import Problem, commonest

MOST = {VLLM: 20}
"""Of how many tokens a kind of server tells the log-likelihoods, where its defaults were not changed."""

_MOST_ELSEWHERE = 5


def listed_with_tokenizer(server: Served) -> tuple[ServedModel, PreTrainedTokenizerBase]:
    """Return the model as its server lists it, and its tokenizer.

    Raises:
        ServerError: the server cannot be reached, or lists other models.
        ValueError: there is no tokenizer for it.
    """
    with server._connected() as connection:
        model = connection.listed(server.model)
    return model, server._read_tokenizer(model)


def next_tokens(
    server: Served, model: ServedModel, rows: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield the number of each row, and the log-likelihoods of the likeliest tokens after it, as the answers arrive.

    Tokens are named as the server names them: `token_id:17` where it can, else by their text.

    Raises:
        ServerError: some rows have no answer, after all others have arrived, or the server tells no log-likelihoods.
    """
    problems: list[Problem] = []
    n_arrived = 0
    with server._connected() as connection:
        answers = connection.complete(
            model,
            [Request(tuple(row)) for row in rows],
            problems,
            max_new_tokens=1,
            sampling={},
            ends=(),
            likelihoods=MOST.get(model.kind, _MOST_ELSEWHERE),
        )
        for i, completions in answers:
            likeliest = completions[0].likeliest
            if likeliest is None:
                raise ServerError(
                    f"the server at {server.url} tells no log-likelihoods: serve the guard where the completions API "
                    "has logprobs, such as vLLM"
                )
            n_arrived += 1
            yield i, likeliest
    if problems:
        n_missing = len(rows) - n_arrived
        raise ServerError(
            f"the server at {server.url} did not judge {n_missing} of {len(rows)} texts: {commonest(problems)}",
            n_missing,
        )


def names_of(tokenizer: PreTrainedTokenizerBase, token: int) -> tuple[str, ...]:
    """Return the names that servers give a token: by its number, its text, or its entry in the vocabulary."""
    return f"token_id:{token}", str(tokenizer.decode([token])), str(tokenizer.convert_ids_to_tokens(token))
