"""Continuations: the texts that a model writes after prompts. Each text has its own seed, so batches do not matter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts
from xlingtox.models.batches import Batches, Codec
from xlingtox.models.batching import by_length, rows_that_fit
from xlingtox.models.continuations import Continuations as Continuations
from xlingtox.models.continuations import continuations_of
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sampling import Sampler, chances
from xlingtox.models.served import Served
from xlingtox.progress import bar

Picker = Callable[[Float[Tensor, "row vocab"], Int[Tensor, "row"], int], Int[Tensor, "row"]]
"""A function that chooses the next tokens, from the logits of unfinished rows, the rows' numbers, and the step."""

BeforePass = Callable[[int, Int[Tensor, "row"], Bool[Tensor, "row"]], None]
"""A function that is called before each pass, with the step, the pass's rows, and a mask of the unfinished ones."""

_Part = tuple[int, tuple[int, ...]]
"""The number of a prompt, and the numbers of the samples that are written for it at once."""

TEXTS: Codec[list[str]] = Codec(dump=lambda texts: json.dumps(texts).encode(), load=json.loads)
"""How a journal keeps texts."""

_MIN_TEMPERATURE = 1e-6

_SHRINK_BELOW = 0.75
"""Finished rows are dropped from a batch once at most this share of its rows is unfinished."""


@checked
def generate(
    lm: HookedLM | Served,
    prompts: Prompts,
    *,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    temperature: float = 0.9,
    top_p: float = 0.8,
    greedy: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Continuations:
    """Continue each prompt `n_samples` times (paper, section 3: 25 samples of 20 tokens, temperature 0.9, top-p 0.8).

    Each prompt is read once, and its cache serves all its samples, or as many at a time as fit into memory. A text
    depends on its prompt, its sample number and the seed, not on the rest of its batch. In 16 bits there are
    exceptions, because rounding changes with the size of a batch.

    A continuation ends with the tokenizer's end of sequence, or with another that the model's generation settings name.
    Rows of the unembedding that stand for no token are never written.

    A model that was loaded with `chat=` reads plain prompts as a user's messages, and writes answers. They end where
    its template ends an answer. What it thinks before is kept apart, and counts among its new tokens.

    Args:
        lm: the model that writes, or a server that runs it. A server draws other random numbers; see `Served`.
        prompts: texts, conversations or a table of them, as `data.as_prompts` takes them.
        n_samples: the number of continuations to write for each prompt.
        max_new_tokens: the number of tokens after which a continuation is cut off.
        temperature, top_p: the parameters of nucleus sampling.
        greedy: whether to write the likeliest token at each step, and so one continuation per prompt.
        seed: the seed of the sampling: the same seed gives the same texts.
        batch_size: continuations that are decoded at once (default: as many as the free memory allows). When memory
            runs out it is halved, with a warning. A server makes its own batches.

    Raises:
        ValueError: there are no prompts, one is blank or too long for the model, or a sampling parameter is out of
            range.
        MemoryError: a single continuation does not fit.
        ServerError: a server cannot be reached, serves another model, or did not write some of the texts.

    Example:
        >>> xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, progress=False)
        Continuations(8: 2 of each of 4 prompts, in en, es)
    """
    check_sampling(
        max_new_tokens=max_new_tokens,
        n_samples=n_samples,
        batch_size=batch_size,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    samples = 1 if greedy else n_samples
    sampling: dict[str, Any] = {} if greedy else {"temperature": temperature, "top_p": top_p, "seed": seed}
    settings: dict[str, object] = {"max_new_tokens": max_new_tokens, "greedy": greedy, **sampling}
    if isinstance(lm, Served):
        limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "progress": progress}
        written, served_texts, writer = lm.write(prompts, n_samples=samples, **limits)
        return Continuations(tuple(written), samples, tuple(served_texts), {**writer, **settings})
    checked_prompts = lm.as_prompts(prompts)
    texts: list[str] = [""] * (len(checked_prompts) * samples)
    lengths = check_lengths(lm, checked_prompts, max_new_tokens)
    batches, positions = Batches("texts", "generate", [lm], settings), max(lengths) + max_new_tokens
    rows_at_once = batch_size or batches.size(positions, lambda: rows_that_fit(lm, positions))
    with bar("writing", total=len(texts), unit="text", progress=progress) as shown:

        def described(batch: list[_Part]) -> list[Any]:
            some = [checked_prompts[i] for i, _ in batch]
            return [some, lm.token_ids([prompt.text for prompt in some]), batch[0][1]]

        def keep(batch: list[_Part], written: list[str]) -> None:
            places = [i * samples + sample for i, numbers in batch for sample in numbers]
            for place, text in zip(places, written, strict=True):
                texts[place] = text
            shown.update(len(places))

        batches.each(
            [part for i in by_length(lengths) for part in _in_parts(i, range(samples), rows_at_once)],
            max(1, rows_at_once // samples),
            lambda batch: continued(
                lm, [checked_prompts[i] for i, _ in batch], list(batch[0][1]), max_new_tokens, sampling
            ),
            keep,
            about=described,
            codec=TEXTS,
            smaller=_fewer_samples,
        )
    settings = {"model": dataclasses.asdict(lm.identity()), **settings}
    return continuations_of(lm, checked_prompts, texts, n_samples=samples, settings=settings)


def check_sampling(
    *,
    max_new_tokens: int,
    n_samples: int,
    batch_size: int | None,
    temperature: float,
    top_p: float,
    seed: int,
) -> None:
    """Raise ValueError unless all arguments of `generate` that are numbers are in their range."""
    counts = {"max_new_tokens": max_new_tokens, "n_samples": n_samples, "batch_size": batch_size}
    if too_small := {name: count for name, count in counts.items() if count is not None and count < 1}:
        name, count = next(iter(too_small.items()))
        raise ValueError(f"{name} is {count}: expected at least 1")
    if not (temperature >= _MIN_TEMPERATURE and 0 < top_p <= 1):
        raise ValueError(
            f"temperature {temperature} must be at least {_MIN_TEMPERATURE} (or use greedy=True) "
            f"and top_p {top_p} in (0, 1]"
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}: expected 0 or more")


def _fewer_samples(parts: list[_Part]) -> list[_Part]:
    """Cut the samples that wait into parts of half as many. Return none where the first is of a single sample."""
    most = len(parts[0][1])
    if most == 1:
        return []
    numbers_by_prompt: dict[int, list[int]] = {}
    for prompt, numbers in parts:
        numbers_by_prompt.setdefault(prompt, []).extend(numbers)
    return [
        part for prompt, numbers in numbers_by_prompt.items() for part in _in_parts(prompt, numbers, (most + 1) // 2)
    ]


def _in_parts(prompt: int, numbers: Sequence[int], most: int) -> list[_Part]:
    """Cut the samples of a prompt into parts of up to `most`."""
    return [(prompt, tuple(numbers[start : start + most])) for start in range(0, len(numbers), most)]


def continued(
    lm: HookedLM,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    *,
    edits: int | None = None,
) -> list[str]:
    """Write the samples of these numbers for each prompt of a batch.

    Args:
        sampling: `temperature`, `top_p` and `seed`; empty for greedy text.
        edits: the number of edits under which all of this is written together; None outside of such a block.

    Returns:
        the texts, prompt by prompt; under several edits, all texts of the first edit come first. A text that begins
        with a thought has its marks; see `continuations_of`.
    """
    times = 1 if edits is None else edits
    texts = [prompt.text for prompt in prompts]
    pick: Picker = pick_greedily
    if sampling:
        # The same random numbers under every edit.
        chance = chances(texts, numbers, max_new_tokens, sampling["seed"]).repeat(times, 1, 1).to(lm.device)
        pick = Sampler(chance, sampling["temperature"], sampling["top_p"])
    ids, mask = lm.encode(texts)
    ids, mask = ids.repeat(times, 1), mask.repeat(times, 1)
    tokens, counts = decode(
        lm,
        ids,
        mask,
        max_new_tokens,
        pick=pick,
        n_samples=len(numbers),
        languages=[prompt.language for prompt in prompts] * times,
        edits=None if edits is None else [edit for edit in range(edits) for _ in prompts],
    )
    counts &= ~torch.isin(tokens, torch.tensor(lm.ends, device=tokens.device))
    written = [new[keep].tolist() for new, keep in zip(tokens.cpu(), counts.cpu(), strict=True)]
    read = [before[keep].tolist() for before, keep in zip(ids.cpu(), mask.cpu(), strict=True) for _ in numbers]
    return lm.decode_after(read, written) if lm.thought_marks is None else _marked(lm, read, written)


def _marked(lm: HookedLM, read: Sequence[list[int]], written: Sequence[list[int]]) -> list[str]:
    """Return the texts of a chat model's new tokens, with marks around what it thought."""
    marks = lm.thought_marks
    assert marks is not None
    lengths = lm.n_thought(read, written)
    answers = lm.decode_after(read, [new if n == 0 else [] for n, new in zip(lengths, written, strict=True)])
    places = [i for i, n in enumerate(lengths) if n]
    if not places:
        return answers
    bare = [
        [token for token in written[i][: lengths[i]] if token not in (marks.begin_id, marks.end_id)] for i in places
    ]
    after = lm.decode([written[i][lengths[i] :] for i in places])
    for i, thought, answer in zip(places, lm.decode(bare), after, strict=True):
        has_ended = written[i][lengths[i] - 1] == marks.end_id
        answers[i] = marks.joined(thought, answer if has_ended else None)
    return answers


def check_lengths(lm: HookedLM, prompts: Sequence[Prompt], max_new_tokens: int) -> list[int]:
    """Return the number of tokens of each prompt, after a check that the model has room for it.

    Raises:
        ValueError: a prompt has no tokens, or more than the model's context minus the new tokens.
    """
    lengths = [len(ids) for ids in lm.token_ids([prompt.text for prompt in prompts])]
    room = lm.n_positions - max_new_tokens
    for i, length in enumerate(lengths):
        if length == 0:
            raise ValueError(f"prompt {i} has no tokens: {prompts[i].text!r}")
        if length > room:
            raise ValueError(
                f"prompt {i} has {length} tokens: {lm.name} has room for {room} "
                f"({lm.n_positions} positions minus {max_new_tokens} new tokens)"
            )
    return lengths


@torch.no_grad()
def decode(
    lm: HookedLM,
    ids: Int[Tensor, "prompt pos"],
    mask: Bool[Tensor, "prompt pos"],
    max_new_tokens: int,
    *,
    pick: Picker,
    n_samples: int = 1,
    before_pass: BeforePass | None = None,
    languages: Sequence[str] | None = None,
    edits: Sequence[int] | None = None,
    stop_at_end: bool = True,
) -> tuple[Int[Tensor, "row step"], Bool[Tensor, "row step"]]:
    """Continue a left-padded batch of prompts, with `n_samples` rows for each. Rows that have ended are dropped.

    Args:
        pick: the function that chooses the next tokens.
        before_pass: a function for hooks that need to know whose activations they see. In the first pass the rows are
            prompts, and later continuations.
        languages: the prompts' languages, for edits that differ by language.
        edits: the number of each prompt's edit, in a block of `edits.Together`.
        stop_at_end: whether a row ends with an end of sequence. If not, all rows continue to the last step.

    Returns:
        the new tokens, and a mask that is False after a row's end. There the token is an end of sequence.

    Example:
        >>> from xlingtox.models.generation import decode, pick_greedily
        >>> ids, mask = lm.encode(["the cat"])
        >>> tokens, counts = decode(lm, ids, mask, 4, pick=pick_greedily, stop_at_end=False)
        >>> tokens.shape, counts.all().item()
        (torch.Size([1, 4]), True)
    """
    end, ends = lm.ends[0], torch.tensor(lm.ends if stop_at_end else (), dtype=torch.long, device=lm.device)
    if before_pass:
        rows = torch.arange(len(ids), device=lm.device)
        before_pass(0, rows, torch.ones_like(rows, dtype=torch.bool))
    logits, cache = lm.extend(ids, mask, languages=languages, edits=edits)
    logits = lm.only_tokens(logits)
    if n_samples > 1:
        logits, mask = logits.repeat_interleave(n_samples, 0), mask.repeat_interleave(n_samples, 0)
        cache = lm.repeated(cache, n_samples)
    tokens = torch.full((len(logits), max_new_tokens), end, device=lm.device)
    counts = torch.zeros(len(logits), max_new_tokens, dtype=torch.bool, device=lm.device)
    rows = torch.arange(len(logits), device=lm.device)
    is_unfinished, n_unfinished = torch.ones_like(rows, dtype=torch.bool), len(rows)
    for step in range(max_new_tokens):
        # Most often no row has ended, and the logits, which are large, need not be copied.
        none_ended = n_unfinished == len(rows)
        unfinished = rows if none_ended else rows[is_unfinished]
        picked = pick(logits if none_ended else logits[is_unfinished], unfinished, step)
        tokens[unfinished, step], counts[unfinished, step] = picked, True
        chosen = torch.full_like(rows, end)
        chosen[is_unfinished] = picked
        is_unfinished = is_unfinished & ~torch.isin(chosen, ends)
        n_unfinished = int(is_unfinished.sum())
        if step + 1 == max_new_tokens or n_unfinished == 0:
            break
        if n_unfinished <= _SHRINK_BELOW * len(rows):
            places = is_unfinished.nonzero().squeeze(-1)
            cache = lm.selected(cache, places)
            rows, chosen, mask, is_unfinished = rows[places], chosen[places], mask[places], is_unfinished[places]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        if before_pass:
            before_pass(step + 1, rows, is_unfinished)
        logits, cache = lm.extend(chosen[:, None], mask, cache=cache)
        logits = lm.only_tokens(logits)
    return tokens, counts


def pick_greedily(logits: Float[Tensor, "row vocab"], rows: Int[Tensor, "row"], step: int) -> Int[Tensor, "row"]:
    """Pick the likeliest token of each row. This is greedy decoding."""
    return logits.argmax(-1)
