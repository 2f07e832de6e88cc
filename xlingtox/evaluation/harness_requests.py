"""A model as lm-evaluation-harness calls it. This module needs the package lm-eval; `harness` imports it when asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from xlingtox.data.conversations import rendered, template_of
from xlingtox.evaluation.text_losses import nats
from xlingtox.models.batches import Batches, Codec
from xlingtox.models.batching import MOST_TEXTS, by_length, rows_that_fit
from xlingtox.models.generation import TEXTS, check_sampling, decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sampling import Sampler, chances
from xlingtox.progress import bar
from xlingtox.text import well_formed

_LOG = logging.getLogger(__name__)

_ITEM = "an item of the task"

_MOST_NEW_TOKENS = 256
"""Write this many tokens where a task does not say how many, or half the model's context if that is less."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names under which a task may say how many tokens are written, the first of them counts."""

_TOKENS_BACK = 24
"""Look for the end of an answer among so many of its last tokens after each step."""

_SCORES: Codec[Float[np.ndarray, "text 2"]] = Codec(
    dump=np.ndarray.tobytes, load=lambda content: np.frombuffer(content).reshape(-1, 2)
)
"""How a journal keeps the log-likelihood of each text, and whether it is the greedy one."""

LanguageOf = Callable[[Instance], str | None]
"""A function that tells the language of a request, for edits that differ by language."""


class _Scored(NamedTuple):
    """Tokens to read, and the tokens after them of which the last ones are scored: each with what is read before it."""

    language: str | None
    read: tuple[int, ...]
    scored: tuple[int, ...]


class _Asked(NamedTuple):
    """An answer to write: the language, the prompt's text and tokens, the number of the sample, and how to write it."""

    language: str | None
    text: str
    ids: tuple[int, ...]
    sample: int


class HarnessModel(LM):  # type: ignore[misc]
    """A `HookedLM` under the interface of lm-evaluation-harness. Edits that are on the model act in it."""

    def __init__(
        self,
        lm: HookedLM,
        *,
        language_of: LanguageOf = lambda request: None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Wrap a model.

        Args:
            seed: the seed of answers that a task wants to be drawn at random.
        """
        super().__init__()
        self._lm, self._language_of, self._seed, self._progress = lm, language_of, seed, progress
        self.tokenizer = lm.tokenizer
        self.n_cut = 0

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, by which lm-eval tells its caches apart."""
        return str(self.tokenizer.name_or_path or self._lm.name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the text that the model's template makes of it, in the model's chat form.

        The form's system prompt comes first where the conversation has none, and thinking is switched as it says. Where
        a template refuses a system message of the task, it is left out, as lm-eval's own models do.

        Raises:
            ValueError: the template refuses the conversation.
        """
        chat = self._lm.chat
        messages = chat_history if chat is None else chat.messages(chat_history)
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        how |= {} if chat is None else chat.switches(self.tokenizer)
        tokenizer = template_of(self.tokenizer, "tasks are asked as conversations")
        try:
            return rendered(tokenizer, messages, _ITEM, **how)
        except ValueError:
            without = [message for message in messages if message["role"] != "system"]
            if len(without) == len(messages):
                raise
            _LOG.warning("the model's chat template refuses a system message: what the task says there is left out")
            return rendered(tokenizer, without, _ITEM, **how)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template's text, which lm-eval writes into its records."""
        return str(self.tokenizer.get_chat_template()) if chat_template else ""

    # --- likelihoods

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return how likely each continuation is after its context, and whether it is the greedy one.

        Spaces at a context's end are read as the continuation's beginning, as lm-eval's own models do.
        """
        pairs = [_spaces_moved(*request.args) for request in requests]
        texts = self._lm.token_ids([well_formed(context + continuation) for context, continuation in pairs])
        before = self._lm.token_ids([well_formed(context) for context, _ in pairs])
        rows = []
        for request, (context, continuation), ids, start in zip(requests, pairs, texts, before, strict=True):
            begin = len(start)
            if not context:
                bare = self.tokenizer(well_formed(continuation), add_special_tokens=False)["input_ids"]
                ids, begin = (bare if bare[:1] == [self._first] else [self._first, *bare]), 1
            if len(ids) < 2:
                raise ValueError(f"the task asks for the likelihood of {continuation!r}, which has no tokens")
            begin = min(begin, len(ids) - 1)
            rows.append(self._row(self._language_of(request), ids[:begin], ids[begin:]))
        return [(float(likelihood), bool(greedy)) for likelihood, greedy in self._scores(rows)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return how likely each text is, from its first token on. A long text is read in windows."""
        rows, owners = [], []
        for number, (request, ids) in enumerate(
            zip(requests, self._lm.token_ids([well_formed(request.args[0]) for request in requests]), strict=True)
        ):
            windows = get_rolling_token_windows(
                token_list=ids, prefix_token=self._first, max_seq_len=self._lm.n_positions, context_len=1
            )
            for context, continuation in map(make_disjoint_window, windows):
                rows.append(self._row(self._language_of(request), context, continuation))
                owners.append(number)
        sums = np.bincount(owners, self._scores(rows)[:, 0], len(requests))
        return [float(total) for total in sums]

    @property
    def _first(self) -> int:
        """The token that is read before a text that nothing precedes."""
        begin = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if begin is None else begin)

    def _row(self, language: str | None, context: Sequence[int], continuation: Sequence[int]) -> _Scored:
        """Return what is read and scored, cut on the left to the model's context."""
        ids, room = (*context, *continuation), self._lm.n_positions + 1
        self.n_cut += len(ids) > room
        return _Scored(language, tuple(ids[-room:-1]), tuple(continuation[-(min(len(ids), room) - 1) :]))

    def _scores(self, rows: Sequence[_Scored]) -> Float[np.ndarray, "text 2"]:
        """Return the log-likelihood of each row's scored tokens, and 1 where all of them are the likeliest.

        Choices of one token after the same context are read once.
        """
        places: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}
        for number, row in enumerate(rows):
            places.setdefault((row.language, row.read), []).append(number)
        texts = list(places)
        scores = np.empty((len(rows), 2))
        batches, longest = Batches("texts", "harness", [self._lm]), max(len(read) for _, read in texts)
        size = batches.size(longest, lambda: min(MOST_TEXTS, rows_that_fit(self._lm, longest, longest)))

        def about(batch: list[int]) -> Any:
            return [[*texts[i], [rows[number].scored for number in places[texts[i]]]] for i in batch]

        with bar("tasks", total=len(rows), unit="text", progress=self._progress) as shown:

            def keep(batch: list[int], found: Float[np.ndarray, "text 2"]) -> None:
                numbers = [number for i in batch for number in places[texts[i]]]
                scores[numbers] = found
                shown.update(len(numbers))

            batches.each(
                by_length([len(read) for _, read in texts]),
                size,
                lambda batch: self._read([[rows[number] for number in places[texts[i]]] for i in batch]),
                keep,
                about=about,
                codec=_SCORES,
            )
        return scores

    @torch.no_grad()
    def _read(self, batch: Sequence[Sequence[_Scored]]) -> Float[np.ndarray, "text 2"]:
        """Score a batch. Each of its items is the rows that read the same tokens."""
        ids, mask = self._lm.pad([same[0].read for same in batch])
        most = max(len(row.scored) for same in batch for row in same)
        logits = self._lm.logits(ids, mask, languages=_all_or_none(same[0].language for same in batch), last=most)
        scores = []
        for place, same in enumerate(batch):
            for row in same:
                scored = torch.tensor([row.scored], device=logits.device)
                these = logits[place : place + 1, -len(row.scored) :]
                is_greedy = bool((these.argmax(-1) == scored).all())
                scores.append((-float(nats(these, scored).sum()), float(is_greedy)))
        return np.array(scores)

    # --- answers

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer to each context, up to the first of the task's stop strings.

        Raises:
            ValueError: a task asks for another way of writing than greedy or nucleus sampling, or for as many tokens as
                the model's context has.
        """
        groups: dict[_Writing, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_Writing.of(request.args[1], self._lm.n_positions), []).append(number)
        # The harness sends a request once for each repeat.
        seen: dict[int, int] = {}
        asked = []
        tokens = self._lm.token_ids([well_formed(request.args[0]) for request in requests])
        for request, ids in zip(requests, tokens, strict=True):
            sample = seen[id(request)] = seen.get(id(request), -1) + 1
            asked.append(_Asked(self._language_of(request), well_formed(request.args[0]), tuple(ids), sample))
        answers = [""] * len(requests)
        with bar("answers", total=len(requests), unit="text", progress=self._progress) as shown:
            for writing, numbers in groups.items():
                room = self._lm.n_positions - writing.max_new_tokens
                self.n_cut += sum(len(asked[i].ids) > room for i in numbers)
                some = [asked[i]._replace(ids=asked[i].ids[-room:] or (self._first,)) for i in numbers]
                for number, answer in zip(numbers, self._written(some, writing, shown.update), strict=True):
                    answers[number] = answer
        return answers

    def _written(self, asked: Sequence[_Asked], writing: _Writing, done: Callable[[int], Any]) -> list[str]:
        answers = [""] * len(asked)
        lengths = [len(one.ids) for one in asked]
        positions = max(lengths) + writing.max_new_tokens
        batches = Batches("texts", "harness answers", [self._lm], writing._asdict() | {"seed": self._seed})

        def keep(batch: list[int], texts: list[str]) -> None:
            for number, text in zip(batch, texts, strict=True):
                answers[number] = text
            done(len(batch))

        batches.each(
            by_length(lengths),
            batches.size(positions, lambda: rows_that_fit(self._lm, positions)),
            lambda batch: self._write([asked[i] for i in batch], writing),
            keep,
            about=lambda batch: [asked[i] for i in batch],
            codec=TEXTS,
        )
        return answers

    def _write(self, asked: Sequence[_Asked], writing: _Writing) -> list[str]:
        ids, mask = self._lm.pad([one.ids for one in asked])
        stopping = _Stopping(self._lm, writing, self._draw(asked, writing), len(asked))
        tokens, counts = decode(
            self._lm,
            ids,
            mask,
            writing.max_new_tokens,
            pick=stopping,
            languages=_all_or_none(one.language for one in asked),
        )
        counts &= ~torch.isin(tokens, torch.tensor(self._lm.ends, device=tokens.device))
        rows = [new[keep].tolist() for new, keep in zip(tokens.cpu(), counts.cpu(), strict=True)]
        texts = self._lm.decode_after([one.ids for one in asked], rows)
        return [_up_to(text, writing.until) for text in texts]

    def _draw(self, asked: Sequence[_Asked], writing: _Writing) -> Any:
        if not writing.temperature:
            return pick_greedily
        drawn = [chances([one.text], [one.sample], writing.max_new_tokens, self._seed) for one in asked]
        return Sampler(torch.cat(drawn).to(self._lm.device), writing.temperature, writing.top_p)


class _Writing(NamedTuple):
    """Tells how answers are written. A temperature of 0 stands for greedy text."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def of(cls, settings: Mapping[str, Any], n_positions: int) -> _Writing:
        """Read a task's `generation_kwargs`."""
        known = {*_LENGTHS, "until", "do_sample", "temperature", "top_p"}
        if unknown := sorted(name for name in settings.keys() - known if settings[name] is not None):
            raise ValueError(
                f"the task writes its answers with {unknown[0]}={settings[unknown[0]]!r}, and a HookedLM knows "
                f"{', '.join(sorted(known))}: change generation_kwargs in the task's file"
            )
        until = settings.get("until") or ()
        lengths = [int(settings[name]) for name in _LENGTHS if settings.get(name) is not None]
        most = lengths[0] if lengths else min(_MOST_NEW_TOKENS, n_positions // 2)
        if most >= n_positions:
            raise ValueError(
                f"the task writes up to {most} tokens, and the model's context has {n_positions}: give a smaller "
                "max_gen_toks in the task's file"
            )
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is False:
            temperature = 0.0
        elif settings.get("do_sample") and not temperature:
            temperature = 1.0
        writing = cls(
            tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
            most,
            temperature,
            float(settings.get("top_p") or 1.0),
        )
        check_sampling(
            max_new_tokens=most,
            n_samples=1,
            batch_size=None,
            temperature=temperature or 1.0,
            top_p=writing.top_p,
            seed=0,
        )
        return writing


class _Stopping:
    """Chooses tokens as another function does, and ends a row after the first stop string in it."""

    def __init__(self, lm: HookedLM, writing: _Writing, pick: Any, n_rows: int) -> None:
        self._lm, self._until, self._pick = lm, writing.until, pick
        self._written: list[list[int]] = [[] for _ in range(n_rows)]

    def __call__(self, logits: Float[Tensor, "row vocab"], rows: Int[Tensor, "row"], step: int) -> Int[Tensor, "row"]:
        picked: Int[Tensor, "row"] = self._pick(logits, rows, step)
        if not self._until:
            return picked
        numbers = rows.tolist()
        tails = self._lm.decode([self._written[row][-_TOKENS_BACK:] for row in numbers])
        for place, (row, tail) in enumerate(zip(numbers, tails, strict=True)):
            if any(stop in tail for stop in self._until):
                picked[place] = self._lm.ends[0]
            self._written[row].append(int(picked[place]))
        return picked


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _up_to(text: str, until: Iterable[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


def _all_or_none(codes: Iterable[str | None]) -> list[str] | None:
    """Return the languages of rows, or None where one is not known."""
    known = list(codes)
    return None if None in known else [code for code in known if code is not None]
