"""Served: a model behind a server that speaks OpenAI's completions API, such as vLLM, as a writer of text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from xlingtox import processes
from xlingtox.checking import checked
from xlingtox.data import Chat, Prompt, Prompts, as_prompts
from xlingtox.models import journal
from xlingtox.models.completions import VLLM, Completion, Connection, Request, ServedModel, ServerError
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.loading import mini_checkpoint, smollm2_file
from xlingtox.models.served_check import Difference, check_agreement
from xlingtox.models.tokenizer import text_after, token_ids
from xlingtox.progress import bar
from xlingtox.remote import Key, Problem, commonest, usable_key
from xlingtox.text import first_line, in_line

_LOG = logging.getLogger(__name__)

_MOST_SAMPLES = 64
"""The most samples that one request asks for."""

_SEEDS = 2**31 - 2**16
"""Seeds of prompts are below this number, so that the seed of every sample fits into 31 bits."""


class Served:
    """A model that a server runs, as a writer: `xt.generate` takes it in the place of a `HookedLM`.

    A server such as vLLM writes text many times faster than this library, on several GPUs or machines. It knows no
    hooks, so activations and edits need a `HookedLM`. An edit that is baked into a checkpoint can be served.

    Each sample has a seed of its own, made of its prompt, its number and the seed of the call. So the same call asks
    for the same samples again. The texts are not those of a `HookedLM` with the same seed, because a server draws its
    random numbers in its own way. Greedy texts are the same, up to rounding.

    Each answer is kept as soon as it arrives: on the disk where a journal is in use, as in a study, and else with this
    object. So a call that was interrupted, or of which some requests failed, goes on with those that are missing.

    Attributes:
        url: the address of the API, such as "http://127.0.0.1:8000/v1".
        model: the name under which the server lists the model; None for the only one that it lists.
        in_flight: how many requests are made at a time.

    Example:
        >>> xt.Served("http://127.0.0.1:8000/v1", model="quiet", tokenizer="runs/quiet")
        Served('http://127.0.0.1:8000/v1', model='quiet')
    """

    @checked
    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        api_key: str | None = None,
        in_flight: int = 32,
    ) -> None:
        """Describe a server. Nothing is asked of it yet.

        Args:
            url: the address of the API, mostly with "/v1" at its end.
            model: the name under which the server lists the model; None takes the only one that it lists.
            tokenizer: the tokenizer of the model, or the folder or hub name of its checkpoint. By default it is read
                from where the server says that its checkpoint lies, or from the model's name.
            api_key: the key, where the server asks for one. It is sent as a header and written nowhere.
            in_flight: how many requests are made at a time, each of all samples of a prompt where the server is vLLM.

        Raises:
            ValueError: the address is not plain, the key cannot be sent, or `in_flight` is below 1.
        """
        if not url.startswith(("https://", "http://")) or "?" in url or "@" in url:
            raise ValueError("url is no plain address: expected http(s)://host:port/v1, with the key as api_key=")
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}: expected at least 1")
        if api_key is not None and usable_key(api_key) is None:
            raise ValueError("api_key cannot be sent: expected printable ASCII characters")
        self.url, self.model, self.in_flight = url.rstrip("/"), model, in_flight
        self._tokenizer = tokenizer
        self._key = None if api_key is None else Key(usable_key(api_key) or "", "Authorization", "Bearer ")
        self._ends: tuple[int, ...] | None = None
        self._identity: Identity | None = None
        self._chat: Chat | None = None
        self._arrived: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Served({self.url!r}, model={self.model!r})"

    @checked
    def identity(self) -> Identity:
        """Return the identity of the texts' model.

        It is that of the local model, if `writing_for` named one. Else the fingerprint is of the address and the name,
        because the weights of a served model cannot be seen.
        """
        if self._identity is not None:
            return self._identity
        digest = hashlib.sha256(json.dumps(["served", self.url, self.model]).encode()).hexdigest()
        return Identity(self.model or self.url, None, "as served", digest[:12])

    @checked
    def writing_for(self, lm: HookedLM) -> Served:
        """Return this server as the writer of a local model, whose identity its texts get.

        Call `check` before: it tells whether the server runs the same weights.

        Raises:
            ValueError: an edit is on the model, which the server does not know.
        """
        lm.check_unedited("a server does not know")
        writer = Served(self.url, model=self.model, tokenizer=lm.tokenizer, in_flight=self.in_flight)
        writer._key, writer._ends, writer._identity = self._key, lm.ends, lm.identity()
        writer._arrived, writer._chat = self._arrived, lm.chat
        return writer

    @checked
    def check(
        self, lm: HookedLM, *, prompts: Prompts | None = None, max_new_tokens: int = 20
    ) -> tuple[Difference, ...]:
        """Check that the server runs the weights of a local model, with the same tokenizer.

        The server continues five prompts greedily, and the local model reads what it wrote. It must find each token
        the likeliest, and about as likely as the server does. Rounding may decide between two tokens that are almost
        equally likely. Such a difference is returned, and in 32 bits more than one in five texts is an error.

        Args:
            prompts: prompts, of which one of each of the first five languages is taken; by default short sentences.

        Returns:
            the differences that rounding explains, mostly none.

        Raises:
            ServerError: the server cannot be reached, or it runs another model or tokenizer. The message shows a prompt
                with both texts.
            ValueError: an edit is on the local model.
        """
        writer = self.writing_for(lm)
        given = None if prompts is None else lm.as_prompts(prompts)

        def agreement() -> tuple[Difference, ...]:
            with writer._connected() as connection:
                model = connection.listed(self.model)
                return check_agreement(connection, model, lm, given, max_new_tokens=max_new_tokens)

        return processes.from_main(agreement)

    @checked
    def write(
        self,
        prompts: Prompts,
        *,
        n_samples: int,
        max_new_tokens: int,
        sampling: Mapping[str, Any],
        progress: bool,
    ) -> tuple[list[Prompt], list[str], dict[str, object]]:
        """Write samples of each prompt; see `generate`, which checks the arguments.

        Args:
            sampling: `temperature`, `top_p` and `seed`; empty for greedy text.

        Returns:
            the prompts, the texts, all samples of a prompt together, and settings that say who wrote them.

        Raises:
            ServerError: the server cannot be reached, serves another model, or did not write some of the texts.
            ValueError: a prompt is too long for the server.
        """

        def written() -> tuple[list[Prompt], list[str], dict[str, object]]:
            with self._connected() as connection:
                model = connection.listed(self.model)
                if sampling and model.kind != VLLM:
                    _LOG.warning(
                        "the server at %s is not vLLM: what shapes its samples besides temperature and top-p is not "
                        "known",
                        self.url,
                    )
                tokenizer = self._read_tokenizer(model)
                checked_prompts = as_prompts(prompts, tokenizer=tokenizer, chat=self._chat)
                ids = token_ids(tokenizer, [prompt.text for prompt in checked_prompts])
                _check_room(checked_prompts, ids, model, max_new_tokens)
                ends = self._ends_of(model, tokenizer)
                call = _Call(connection, model, tokenizer, ends, max_new_tokens, sampling, self._arrived)
                texts = call.texts(checked_prompts, ids, n_samples, self.identity(), progress=progress)
            settings: dict[str, object] = {
                "model": dataclasses.asdict(self.identity()),
                "server": {"url": self.url, "model": model.name, "kind": model.kind},
            }
            return checked_prompts, texts, settings

        # Of several processes, one asks: the server shares the work out in its own way.
        return processes.from_main(written)

    def _connected(self) -> Connection:
        return Connection(self.url, self._key, self.in_flight)

    def _read_tokenizer(self, model: ServedModel) -> PreTrainedTokenizerBase:
        """Return the tokenizer, read from a checkpoint if none was given."""
        if isinstance(self._tokenizer, PreTrainedTokenizerBase):
            return self._tokenizer
        named = [self._tokenizer] if self._tokenizer is not None else [model.root, model.name]
        for source in dict.fromkeys(str(name) for name in named if name is not None):
            try:
                place, options = _place(source)
                self._tokenizer = AutoTokenizer.from_pretrained(place, **options)
            except (OSError, ValueError) as error:
                problem = first_line(error)
                continue
            try:
                config = GenerationConfig.from_pretrained(place)
            except (OSError, ValueError):
                return self._tokenizer
            eos = config.eos_token_id
            self._ends = tuple([eos] if isinstance(eos, int) else eos or [])
            return self._tokenizer
        raise ValueError(
            f"there is no tokenizer for {in_line(model.name)} ({problem}): give tokenizer= the folder or the hub name "
            "of the checkpoint that the server runs"
        )

    def _ends_of(self, model: ServedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Return the tokens that end a text: the tokenizer's end of sequence, and others that the checkpoint names."""
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        return tuple(dict.fromkeys([*own, *(self._ends or ())]))


def _place(source: str) -> tuple[str, dict[str, Any]]:
    """Return what transformers reads a tokenizer from: a hub name, a folder, or a folder with a GGUF file."""
    if source == "mini":
        return str(mini_checkpoint()), {}
    file = smollm2_file() if source == "smollm2" else Path(source)
    return (str(file.parent), {"gguf_file": file.name}) if file.suffix == ".gguf" else (source, {})


def _check_room(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], model: ServedModel, new: int) -> None:
    """Raise ValueError where a prompt has no tokens, or more than the server takes."""
    for i, row in enumerate(ids):
        if not row:
            raise ValueError(f"prompt {i} has no tokens: {prompts[i].text!r}")
        if model.n_positions is not None and len(row) > model.n_positions - new:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens: the server has room for {model.n_positions - new} "
                f"({model.n_positions} positions minus {new} new tokens)"
            )


def seed_of(text: str, seed: int) -> int:
    """Return the seed of a prompt's first sample. It depends on nothing but the prompt's text and the call's seed.

    Example:
        >>> from xlingtox.models.served import seed_of
        >>> seed_of("the cat", 0) == seed_of("the cat", 0) != seed_of("the cat", 1)
        True
    """
    digest = hashlib.sha256(f"{seed}\n".encode() + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % _SEEDS


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a server: what is the same for all its requests.

    Attributes:
        arrived: what arrived in calls that did not come to their end, where no journal is in use.
    """

    connection: Connection
    model: ServedModel
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    max_new_tokens: int
    sampling: Mapping[str, Any]
    arrived: dict[str, bytes]

    def texts(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        n_samples: int,
        identity: Identity,
        *,
        progress: bool,
    ) -> list[str]:
        """Return the texts that were kept and those that the server writes. One that is wanted twice is asked for once.

        Raises:
            ServerError: some were not written. The others are kept.
        """
        at_once = min(n_samples, _MOST_SAMPLES) if self.model.writes_many else 1
        texts: list[str | None] = [None] * (len(prompts) * n_samples)
        places: dict[Request, list[int]] = {}
        for i, prompt in enumerate(prompts):
            for first in range(0, n_samples, at_once):
                seed = seed_of(prompt.text, self.sampling["seed"]) + first if self.sampling else None
                request = Request(tuple(ids[i]), seed, min(at_once, n_samples - first))
                places.setdefault(request, []).append(i * n_samples + first)
        about = {
            "task": "served",
            "model": [identity.fingerprint, identity.dtype],
            "max_new_tokens": self.max_new_tokens,
            "sampling": dict(self.sampling),
        }

        def described(request: Request) -> dict[str, Any]:
            return {**about, "request": [request.prompt, request.seed, request.n]}

        with bar("writing", total=len(texts), unit="text", progress=progress) as shown:

            def put(request: Request, written: Sequence[str]) -> None:
                for place in places[request]:
                    texts[place : place + len(written)] = written
                shown.update(len(written) * len(places[request]))

            missing = []
            for request in places:
                if (content := self._known(described(request))) is None:
                    missing.append(request)
                else:
                    put(request, json.loads(content))
            problems: list[Problem] = []
            sampling = {name: value for name, value in self.sampling.items() if name != "seed"}
            arriving = self.connection.complete(
                self.model,
                missing,
                problems,
                max_new_tokens=self.max_new_tokens,
                sampling=sampling,
                ends=self.ends,
            )
            for i, completions in arriving:
                request = missing[i]
                written = json.dumps(self._texts_of(request, completions)).encode()
                put(request, json.loads(self._keep(described(request), written)))
        if problems:
            raise self._error(problems, len(texts), texts.count(None))
        for request in places:
            self.arrived.pop(journal.digest(described(request)), None)
        return [text for text in texts if text is not None]

    def _texts_of(self, request: Request, completions: Sequence[Completion]) -> list[str]:
        """Return what a server wrote: decoded here, as a `HookedLM` decodes, where it tells the tokens."""
        rows = [completion.tokens for completion in completions if completion.tokens is not None]
        if len(rows) < len(completions):
            return [completion.text for completion in completions]
        return text_after(self.tokenizer, [request.prompt] * len(rows), rows)

    def _known(self, about: Mapping[str, Any]) -> bytes | None:
        return journal.known("texts", about) if journal.in_use() else self.arrived.get(journal.digest(about))

    def _keep(self, about: Mapping[str, Any], content: bytes) -> bytes:
        if journal.in_use():
            return journal.keep("texts", about, content)
        return self.arrived.setdefault(journal.digest(about), content)

    def _error(self, problems: Sequence[Problem], n: int, n_missing: int) -> ServerError:
        """Return one error that counts the requests that failed, by their reasons."""
        return ServerError(
            f"the server at {self.connection.url} did not write {n_missing} of {n} texts: {commonest(problems)}. The "
            "others are kept, and the same call goes on from here",
            n_missing,
        )
