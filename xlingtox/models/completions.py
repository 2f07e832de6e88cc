"""OpenAI's completions API, as a client sees it: what a server lists, what is asked of it, and what its answers say."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2

from xlingtox.remote import Key, Problem, Stopped, Temporary, Unconnected, arriving, patiently, response_of
from xlingtox.text import in_line

_ATTEMPTS = 10
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
"""How often a request is made, the seconds before the second attempt, and the most before a later one."""

_UNUSABLE_ATTEMPTS = 5
"""How often a request is made whose answers can be read, but not used."""

_SILENCE = 600.0
"""Seconds that a server may take for one answer. It may have many requests in its queue."""

_CONNECT = 20.0
_LONGEST_MESSAGE = 300
"""The most characters of a server's error message that we repeat."""

VLLM = "vllm"
_EXTENSIONS: Mapping[str, Mapping[str, Any]] = {
    VLLM: dict(
        # A server takes these from the checkpoint's generation_config.json where a request does not name them.
        **dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty"), 0.0),
        top_k=-1,
        repetition_penalty=1.0,
        add_special_tokens=False,
        return_token_ids=True,
    )
}
"""What a kind of server takes besides OpenAI's arguments, so that nothing but temperature and top-p shapes its text."""


class ServerError(OSError):
    """A server cannot be reached, serves another model than it should, or did not write all that it was asked for.

    Attributes:
        n_missing: the number of texts that it did not write, where it serves the right model.

    Example:
        >>> try:
        ...     xt.generate(xt.Served("http://127.0.0.1:9/v1", model="quiet", tokenizer="mini"), ["the cat"])
        ... except xt.models.ServerError as error:
        ...     print(error)
        the server at http://127.0.0.1:9/v1 cannot be reached (connection failed: ConnectError): is it running?
    """

    def __init__(self, message: str, n_missing: int = 0) -> None:
        super().__init__(message)
        self.n_missing = n_missing


@dataclass(frozen=True)
class ServedModel:
    """A model as its server lists it.

    Attributes:
        name: the name by which it is asked for.
        kind: the kind of the server, such as "vllm"; empty where it does not say.
        n_positions: the most tokens of a prompt with its continuation; None where the server does not say.
        root: the folder or hub name of its checkpoint; None where the server does not say.
    """

    name: str
    kind: str = ""
    n_positions: int | None = None
    root: str | None = None

    @property
    def writes_many(self) -> bool:
        """Whether one request may ask for several samples, of which sample i has the seed of the first plus i."""
        return self.kind == VLLM


@dataclass(frozen=True)
class Request:
    """Samples of one prompt that a server is asked for together.

    Attributes:
        prompt: the prompt's tokens.
        seed: the seed of the first sample; None for greedy text.
        n: the number of samples.
    """

    prompt: tuple[int, ...]
    seed: int | None = None
    n: int = 1


@dataclass(frozen=True)
class Completion:
    """One text that a server wrote.

    Attributes:
        text: the text as the server gives it.
        tokens: its tokens, without those that end it; None where the server does not say.
        ended: whether the model ended the text.
        log_likelihoods: the log-likelihood of each token, where this was asked for and the server says it.
        likeliest: the log-likelihoods of the likeliest first tokens, by the token as the server names it, where more
            than one was asked for and the server says them.
    """

    text: str
    tokens: tuple[int, ...] | None
    ended: bool
    log_likelihoods: tuple[float, ...] | None = None
    likeliest: Mapping[str, float] | None = None


class _Refused(Problem):
    """The server refuses a request."""

    shows_failure = True


class Connection:
    """A connection to a server, for the time of one call.

    Requests are repeated at growing intervals after HTTP 408, 409, 425, 429 and 5xx, time-outs, broken connections, and
    answers that cannot be used. The key is in no message and no log.
    """

    def __init__(self, url: str, key: Key | None, in_flight: int) -> None:
        self.url, self._key, self._in_flight = url, key, in_flight

    def __enter__(self) -> Connection:
        with contextlib.ExitStack() as stack:
            if self._key is not None:
                stack.enter_context(self._key.out_of_logs())
            limits = httpx2.Limits(max_connections=self._in_flight, max_keepalive_connections=self._in_flight)
            timeout = httpx2.Timeout(_SILENCE, connect=_CONNECT)
            client = httpx2.Client(auth=self._key, timeout=timeout, limits=limits)
            self._client = stack.enter_context(client)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.close()

    def listed(self, wanted: str | None) -> ServedModel:
        """Return the model of this name as the server lists it; without a name, the only one that it lists.

        Raises:
            ServerError: the server cannot be reached, or lists other models.
        """
        try:
            # Few attempts: a server that does not run is said to be so at once.
            answer = self._soon(lambda: self._asked("GET", f"{self.url}/models"))
            rows = {str(row["id"]): row for row in answer["data"]}
        except _NotThere:
            rows = {}
            if wanted is not None:
                return ServedModel(wanted)
        except (KeyError, TypeError, AttributeError):
            raise ServerError(f"the server at {self.url} does not list its models as OpenAI's API does") from None
        if wanted is None:
            if len(rows) != 1:
                listed = f"several models: {_names(rows)}" if rows else "no model"
                raise ServerError(f"the server at {self.url} lists {listed}: name one with model=")
            wanted = next(iter(rows))
        if wanted not in rows:
            raise ServerError(f"the server at {self.url} serves {_names(rows) or 'nothing'}, and not {in_line(wanted)}")
        row = rows[wanted]
        n_positions, root = row.get("max_model_len"), row.get("root")
        return ServedModel(
            wanted,
            str(row.get("owned_by") or "").lower(),
            n_positions if isinstance(n_positions, int) else None,
            root if isinstance(root, str) else None,
        )

    def tokens_of(self, model: ServedModel, text: str) -> list[int] | None:
        """Return the tokens of a text as the server's own tokenizer cuts it; None if it does not say."""
        if model.kind != VLLM:
            return None
        body = {"model": model.name, "prompt": text, "add_special_tokens": False}
        try:
            answer = self._soon(lambda: self._asked("POST", f"{self.url.removesuffix('/v1')}/tokenize", body))
        except _NotThere:
            return None
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        return tokens if isinstance(tokens, list) else None

    def complete(
        self,
        model: ServedModel,
        requests: Sequence[Request],
        problems: list[Problem],
        *,
        max_new_tokens: int,
        sampling: Mapping[str, Any],
        ends: Sequence[int],
        likelihoods: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield the number of each request and what the server wrote, as the answers arrive.

        Args:
            problems: a list to which failed requests are added.
            sampling: `temperature` and `top_p`; empty for greedy text.
            ends: the tokens that end a text.
            likelihoods: of how many tokens at each place to ask for the log-likelihoods. With 1 it is the token that
                was written.
        """
        shared: dict[str, Any] = {"model": model.name, "max_tokens": max_new_tokens, "stream": False}
        shared |= {"temperature": 0.0, "top_p": 1.0} if not sampling else {**sampling}
        shared |= _EXTENSIONS.get(model.kind, {})
        if model.kind == VLLM:
            shared["stop_token_ids"] = list(ends)
        if likelihoods:
            shared["logprobs"] = likelihoods
        if likelihoods > 1 and model.kind == VLLM:
            shared["return_tokens_as_token_ids"] = True

        def once(request: Request) -> list[Completion]:
            body = shared | {"prompt": list(request.prompt)}
            if request.seed is not None:
                body["seed"] = request.seed
            if request.n > 1:
                body["n"] = request.n
            answer = self._asked("POST", f"{self.url}/completions", body)
            return _read(answer, model, request, max_new_tokens, ends)

        def ask(i: int, given_up: threading.Event) -> list[Completion]:
            return patiently(
                partial(once, requests[i]),
                attempts=_ATTEMPTS,
                first_wait=_FIRST_WAIT,
                longest_wait=_LONGEST_WAIT,
                given_up=given_up,
            )

        with contextlib.closing(arriving(len(requests), ask, problems, threads=self._in_flight)) as answers:
            yield from answers

    def _soon(self, ask: Callable[[], Any]) -> Any:
        """Ask for a thing that a running server answers at once. Where no server is running, that is said soon."""

        def once() -> Any:
            try:
                return ask()
            except Unconnected as problem:
                raise Temporary(str(problem), attempts=2) from None

        try:
            return patiently(
                once, attempts=6, first_wait=_FIRST_WAIT / 2, longest_wait=_LONGEST_WAIT, given_up=threading.Event()
            )
        except Temporary as problem:
            raise ServerError(f"the server at {self.url} cannot be reached ({problem}): is it running?") from None
        except (Stopped, _Refused) as problem:
            if isinstance(problem, _NotThere):
                raise
            raise ServerError(f"the server at {self.url} refuses to answer: {problem}") from None

    def _asked(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """Make one request, and return what the JSON of its answer says."""
        response = response_of(lambda: self._client.request(method, url, json=body))
        if response.status_code == 200:
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise Temporary("answered no JSON", attempts=_UNUSABLE_ATTEMPTS) from None
        words = _words_of(response)
        # A server's message may repeat the request, and with it the key.
        shown = in_line(words if self._key is None else self._key.hidden_in(words))[:_LONGEST_MESSAGE]
        reason = f"HTTP {response.status_code}: {shown}" if shown else f"HTTP {response.status_code}"
        if response.status_code == 404:
            raise _NotThere(reason)
        raise Stopped(reason) if response.status_code in (401, 403) or response.status_code < 400 else _Refused(reason)


class _NotThere(Stopped):
    """The server has nothing at this address, or no model of this name."""


def _names(rows: Mapping[str, Any]) -> str:
    shown = [in_line(name) for name in rows]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _words_of(response: httpx2.Response) -> str:
    """Return the message of an answer that is an error, in whatever form servers give it."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return response.text.strip()
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = next((error[name] for name in ("message", "detail", "error") if error.get(name)), error)
    return str(error)


def _read(
    answer: Any, model: ServedModel, request: Request, max_new_tokens: int, ends: Sequence[int]
) -> list[Completion]:
    """Return the samples of one answer in their order.

    Raises:
        Stopped: another model answered.
        Temporary: samples are missing or cut off, or the answer cannot be understood.
    """
    try:
        if (answered := answer.get("model")) is not None and answered != model.name:
            raise Stopped(f"the model {in_line(answered)} answered, and not {in_line(model.name)}")
        usage = answer.get("usage") or {}
        if (n_read := usage.get("prompt_tokens")) is not None and n_read != len(request.prompt):
            raise _unusable(f"{n_read} tokens were read of a prompt of {len(request.prompt)}")
        choices = {int(choice.get("index", 0)): choice for choice in answer["choices"]}
        if sorted(choices) != list(range(request.n)):
            raise _unusable(f"{len(choices)} samples came of {request.n} that were asked for")
        n_written = usage.get("completion_tokens") if request.n == 1 else None
        return [_completion(choices[i], max_new_tokens, ends, n_written) for i in range(request.n)]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _unusable("an answer has not the form of OpenAI's API") from None


def _completion(choice: Any, max_new_tokens: int, ends: Sequence[int], n_written: int | None) -> Completion:
    text, reason, tokens = choice["text"], choice.get("finish_reason"), choice.get("token_ids")
    if not isinstance(text, str):
        raise TypeError
    if reason not in ("stop", "length"):
        raise _unusable(f"a text was broken off ({in_line(reason)})")
    count = len(tokens) if tokens is not None else n_written
    if reason == "length" and count is not None and count != max_new_tokens:
        raise _unusable(f"a text was cut off after {count} of {max_new_tokens} tokens")
    told = choice.get("logprobs") or {}
    likelihoods, likeliest = told.get("token_logprobs"), (told.get("top_logprobs") or [None])[0]
    ended = reason == "stop"
    if tokens is not None:
        n_kept = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        ended, tokens = ended or n_kept < len(tokens), tuple(map(int, tokens[:n_kept]))
    if likeliest is not None:
        likeliest = {str(token): float(value) for token, value in likeliest.items()}
    return Completion(text, tokens, ended, None if likelihoods is None else tuple(likelihoods), likeliest)


def _unusable(reason: str) -> Temporary:
    return Temporary(reason, attempts=_UNUSABLE_ATTEMPTS)
