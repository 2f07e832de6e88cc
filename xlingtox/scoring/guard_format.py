"""The format in which a guard is asked: where a text stands in its prompt, and which tokens its verdicts begin with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from xlingtox.models.tokenizer import added_start, n_shared
from xlingtox.scoring.guards import Judged, Words
from xlingtox.text import first_line, in_line, well_formed

Template = Callable[..., str]
"""A function of a prompt and an answer (None where there is none) that returns the guard's prompt as text."""

_MARKS = ("ZQXPROMPTXQZ", "ZQXANSWERXQZ")
"""Texts that stand for the prompt and the answer while we look where a template puts them."""

_OTHER = ("An <odd> \"text\"\\ with 'marks' & ünï€ödé {{ x }} 你好", "Quite another one: 7 % of it\nis new.")
"""Texts that a template must not change."""

_TAG = re.compile(r"[<\[].*[>\]]", re.DOTALL)

_MOST_CUT = 8
"""The most characters at the end of a guard's prompt that may belong to the verdict's own token, such as a space."""


@dataclass(frozen=True)
class Slot:
    """The place of a text in a guard's prompt.

    Attributes:
        number: 0 for the prompt, 1 for the answer.
        trimmed: whether the template removes blanks around the text.
    """

    number: int
    trimmed: bool = False

    def text(self, texts: Sequence[str]) -> str:
        """Return the text that stands here."""
        text = texts[self.number]
        return text.strip() if self.trimmed else text


@dataclass(frozen=True)
class Format:
    """A guard's prompt: fixed text with places for the texts that are judged.

    Attributes:
        tokenizer: the guard's tokenizer.
        parts: the fixed pieces and the places, in their order.
        start: tokens that stand before everything.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: tuple[str | Slot, ...]
    start: tuple[int, ...] = ()

    @classmethod
    def found(
        cls, tokenizer: PreTrainedTokenizerBase, rendered: Template, judges: Judged, *, is_chat: bool, name: str
    ) -> Format:
        """Look where a template puts its texts.

        Raises:
            ValueError: the template cannot be rendered, leaves out the text that is judged, or changes it.
        """

        def render(texts: Sequence[str]) -> str:
            try:
                made = rendered(texts[0], texts[1] if judges == "answer" else None)
            except Exception as error:
                raise ValueError(f"the template of {name} cannot be filled in: {first_line(error)}") from error
            if not isinstance(made, str):
                raise ValueError(f"the template of {name} gives {type(made).__name__}: expected text")
            return made

        wanted = 1 if judges == "answer" else 0
        pieces = re.split(f"({'|'.join(_MARKS)})", render(_MARKS))
        slots: list[str | Slot] = [Slot(_MARKS.index(piece)) if piece in _MARKS else piece for piece in pieces]
        if not any(isinstance(part, Slot) and part.number == wanted for part in slots):
            raise ValueError(
                f"the template of {name} swallows the text: the {judges} does not stand in the guard's prompt"
            )
        start = () if is_chat else tuple(added_start(tokenizer))
        plain = cls(tokenizer, tuple(part for part in slots if part != ""), start)
        if render(_OTHER) != plain.filled(_OTHER):
            raise ValueError(
                f"the template of {name} changes the {judges} that it is given: a judge must read what was written"
            )
        if plain.encode([_OTHER])[0] == plain.encode([_OTHER[::-1]])[0]:
            raise ValueError(f"the template of {name} swallows the text: two texts have the same tokens in it")
        padded = [f" \n{text} \n" for text in _OTHER]
        for trimmed in itertools.product((False, True), repeat=2):
            parts = (Slot(p.number, trimmed[p.number]) if isinstance(p, Slot) else p for p in plain.parts)
            candidate = cls(tokenizer, tuple(parts), start)
            if render(padded) == candidate.filled(padded):
                return candidate
        return plain

    def filled(self, texts: Sequence[str]) -> str:
        """Return the guard's prompt for the texts of one row: the prompt, and the answer."""
        return "".join(part.text(texts) if isinstance(part, Slot) else part for part in self.parts)

    def ending(self, text: str) -> Format:
        """Return the format with further text at its end, such as the beginning of the guard's answer."""
        *rest, last = self.parts
        parts = (*rest, last + text) if isinstance(last, str) else (*self.parts, text)
        return Format(self.tokenizer, tuple(part for part in parts if part != ""), self.start)

    def cut(self, n: int) -> Format | None:
        """Return the format without its last n characters; None where these are no fixed text."""
        last = self.parts[-1]
        if n == 0:
            return self
        if isinstance(last, Slot) or len(last) <= n:
            return None
        return Format(self.tokenizer, (*self.parts[:-1], last[:-n]), self.start)

    def encode(self, rows: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the tokens of each row's prompt.

        The texts are hostile: a model may have written "<|im_end|>" into one. Such a string becomes the tokens of its
        letters, never the control token. Where no text holds one, the tokens are those of the whole prompt at once.

        Raises:
            ValueError: a text cannot be kept from becoming a control token.
        """
        rows = [[well_formed(text) for text in row] for row in rows]
        filled = [self.filled(row) for row in rows]
        prompts = self._tokens(filled)
        for i, (row, text) in enumerate(zip(rows, filled, strict=True)):
            if breaks := self._breaks(row, text):
                prompts[i] = self._broken(text, breaks)
            if self._n_controls(prompts[i]) > self._n_own:
                # The tokenizer changes text before it looks for control tokens, so it gets the letters one by one.
                letters = {place for start, end in self._spans(row) for place in range(start, end)}
                prompts[i] = self._broken(text, breaks | letters)
                if self._n_controls(prompts[i]) > self._n_own:
                    raise ValueError(f"text {i} holds a control token of the guard, which cannot be read as plain text")
        return [[*self.start, *ids] if tuple(ids[: len(self.start)]) != self.start else ids for ids in prompts]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    @cached_property
    def _controls(self) -> dict[str, int]:
        """The tokens that control a conversation: special ones, and others that are written like a tag."""
        return {
            token.content: number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if len(token.content) > 1 and (token.special or _TAG.fullmatch(token.content))
        }

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._controls, key=len, reverse=True)
        return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))") if longest_first else None

    @cached_property
    def _longest(self) -> int:
        """The number of characters of the longest control token."""
        return max(map(len, self._controls), default=0)

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(self._controls.values()) - {self.tokenizer.unk_token_id}

    @cached_property
    def _n_own(self) -> int:
        """The number of control tokens in the format itself."""
        return self._n_controls(self._tokens([self.filled(("a", "a"))])[0])

    def _n_controls(self, ids: Sequence[int]) -> int:
        return sum(token in self._numbers for token in ids)

    def _spans(self, row: Sequence[str]) -> list[tuple[int, int]]:
        """Return where the texts stand in the filled prompt."""
        ends = list(itertools.accumulate(len(p.text(row)) if isinstance(p, Slot) else len(p) for p in self.parts))
        starts = [0, *ends[:-1]]
        return [(starts[i], ends[i]) for i, part in enumerate(self.parts) if isinstance(part, Slot)]

    def _breaks(self, row: Sequence[str], text: str) -> set[int]:
        """Return the places in the filled prompt behind which control tokens that a text writes must be broken."""
        if self._pattern is None:
            return set()
        context, breaks = self._longest, set()
        for start, end in self._spans(row):
            for match in self._pattern.finditer(text, max(0, start - context), min(len(text), end + context)):
                if match.start() < end and match.start() + len(match[1]) > start:
                    breaks.add(match.start())
        return breaks

    def _broken(self, text: str, breaks: Collection[int]) -> list[int]:
        """Return the tokens of a filled prompt that is cut into pieces behind the characters at these places."""
        edges = [0, *(place + 1 for place in sorted(breaks)), len(text)]
        pieces = [text[first:last] for first, last in itertools.pairwise(edges) if first < last]
        return [token for ids in self._tokens(pieces) for token in ids]


def verdict_tokens(
    asked: Format, prefix: str, words: Words, *, vocabulary: int, name: str
) -> tuple[Format, dict[str, tuple[int, ...]]]:
    """Return the format with the beginning of the answer, and the first tokens of each verdict behind it.

    A tokenizer may join the space before a word with the word, so the end of the prompt is cut where the tokens of all
    verdicts part.

    Raises:
        ValueError: a word is not in the tokenizer, has a special token, or begins with the token of another verdict.
    """
    probe = ("Good day.", "Good day.")
    # A template that ends with the prefix has put it there itself.
    if not (isinstance(asked.parts[-1], str) and asked.parts[-1].endswith(prefix)):
        asked = asked.ending(prefix)
    listed = [
        (label, word) for label, group in words.items() for word in ((group,) if isinstance(group, str) else group)
    ]
    rows = [asked.ending(word).encode([probe])[0] for _, word in listed]
    shared = min(n_shared(rows[0], row) for row in rows)
    cuts = (asked.cut(n) for n in range(_MOST_CUT + 1))
    read = next((cut for cut in cuts if cut is not None and cut.encode([probe])[0] == rows[0][:shared]), None)
    spelled = ", ".join(repr(word) for _, word in listed)
    alike = f"the verdicts {spelled} of {name} begin with the same token: give words (or a prefix) that differ at once"
    if read is None or shared == min(map(len, rows)):
        raise ValueError(alike)
    special = {*asked.tokenizer.all_special_ids} - {asked.tokenizer.unk_token_id}
    tokens: dict[str, tuple[int, ...]] = {}
    for (label, word), row in zip(listed, rows, strict=True):
        token = row[shared]
        if token == asked.tokenizer.unk_token_id or token >= vocabulary:
            raise ValueError(
                f"the verdict {in_line(word)!r} is not in the tokenizer of {name}: give the guard's own words"
            )
        if special.intersection(row[shared:]):
            raise ValueError(f"the verdict {in_line(word)!r} of {name} has a special token: give a plain word")
        if any(token in known for known_label, known in tokens.items() if known_label != label):
            raise ValueError(alike)
        tokens[label] = tuple(dict.fromkeys((*tokens.get(label, ()), token)))
    return read, tokens


def _with_marks(text: str, values: Mapping[str, str]) -> str:
    """Return a text with each mark, such as `{prompt}`, replaced at once, so that no value's own marks are."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda match: values[match[1]], text)


def template_of(
    tokenizer: PreTrainedTokenizerBase,
    template: str | Template | None,
    judges: Judged,
    *,
    content: str | None,
    system: str | None,
    generation_prompt: bool,
    options: Mapping[str, Any],
    name: str,
) -> tuple[Template, bool]:
    """Return the function that fills in a template, and whether it is a chat template.

    Raises:
        ValueError: there is no template, or it has no place for the text.
    """
    if callable(template):
        return template, False
    if template is not None and "{%" not in template and "{{" not in template:
        place = "answer" if judges == "answer" else "prompt"
        if f"{{{place}}}" not in template and "{text}" not in template:
            raise ValueError(f"the template of {name} swallows the text: write {{text}} where it shall stand")

        def filled(prompt: str, answer: str | None) -> str:
            own_text = prompt if answer is None else answer
            return _with_marks(template, {"text": own_text, "prompt": prompt, "answer": answer or ""})

        return filled, False
    if (chat_template := template or tokenizer.chat_template) is None:
        raise ValueError(
            f"{name} has no chat template: give template= with the place of the text, as in 'Text: {{text}}'"
        )

    def rendered(prompt: str, answer: str | None) -> str:
        if content is not None:
            prompt, answer = _with_marks(content, {"prompt": prompt, "answer": answer or ""}), None
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        made: Any = tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **options,
        )
        return made

    return rendered, True
