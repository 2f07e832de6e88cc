"""Text into a model and out of it: the tokens of texts, padded batches of them, and the text of tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlingtox.checking import checked
from xlingtox.data import Chat, Prompt, Prompts, as_prompts
from xlingtox.data.chat import ThoughtMarks, turn_ends
from xlingtox.models.forward import ForwardPasses
from xlingtox.models.tokenizer import rows_without_text, text_after, token_ids
from xlingtox.text import in_line

_LOG = logging.getLogger(__name__)


class TextEncoding(ForwardPasses):
    """Forward passes, and the conversion between texts and the tokens that they read.

    Padding is on the left, so that the last position of every row is its newest token.

    Example:
        >>> lm.decode(lm.token_ids(["the cat", "la casa"]))
        ['the cat', 'la casa']
    """

    # How plain prompts become messages; None for a model that continues them as they are.
    chat: Chat | None = None
    # The token with which the template ends an answer, and the marks of thoughts; a model without `chat` needs none.
    _turn_ends: tuple[int, ...] = ()
    thought_marks: ThoughtMarks | None = None
    # The tokens of texts that need not be cut again. They are of one block only: a tokenizer's rules can be changed.
    _known_tokens: Mapping[str, Sequence[int]] = MappingProxyType({})

    @property
    def _n_logits(self) -> int:
        """The number of rows of the unembedding. It may be larger than the tokenizer's vocabulary."""
        return int(self._tl_backend.unembedding().shape[-1])

    @cached_property
    def without_text(self) -> Int[Tensor, "row"] | None:
        """The rows of the unembedding that stand for no token, so that no text can hold them; None if there are none.

        Many families pad their vocabulary to a round number (Qwen 2.5 has 152,064 rows for 151,665 tokens), or leave
        holes in it. Tokens that end a text are not among these rows.
        """
        rows = rows_without_text(self.tokenizer, self._n_logits, self.ends)
        return torch.tensor(rows, device=self._tl_backend.unembedding().device) if rows else None

    def only_tokens(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Set the logits of `without_text` to minus infinity, in place, and return them."""
        rows = self.without_text
        return logits if rows is None else logits.index_fill_(-1, rows.to(logits.device), -torch.inf)

    @checked
    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, after a beginning of sequence if the tokenizer adds one, and without an end.

        Whatever reads texts with this model reads these tokens.
        """
        known = self._known_tokens
        new = [text for text in dict.fromkeys(texts) if text not in known] if known else texts
        if len(new) == len(texts):
            return token_ids(self.tokenizer, texts)
        ids = dict(zip(new, token_ids(self.tokenizer, new), strict=True))
        return [list(known[text] if text in known else ids[text]) for text in texts]

    @contextlib.contextmanager
    def knowing(self, tokens: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """Take the `token_ids` of these texts as known while the block runs, so that they are cut into tokens once.

        Example:
            >>> texts = ["the cat", "la casa"]
            >>> with lm.knowing(dict(zip(texts, lm.token_ids(texts)))):
            ...     ids, mask = lm.encode(texts)
        """
        before = self._known_tokens
        self._known_tokens = {**before, **tokens}
        try:
            yield
        finally:
            self._known_tokens = before

    @checked
    def encode(
        self, texts: Sequence[str], *, max_length: int | None = None
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Return the `token_ids` of texts, padded on the left, and their mask (False on padding).

        Args:
            max_length: the number of tokens to keep of each text, from its beginning. By default all.

        Example:
            >>> ids, mask = lm.encode(["the cat", "la casa es grande"])
            >>> ids.shape == mask.shape, mask.all(1).tolist()
            (True, [False, True])
        """
        # Cut before padding: a slice of a padded batch would cut its short texts too.
        return self.pad([ids[:max_length] for ids in self.token_ids(texts)])

    @checked
    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Return rows of token ids, padded on the left, and their mask (False on padding)."""
        tensors = [torch.tensor(ids, dtype=torch.long) for ids in rows]
        padding = int(self.tokenizer.pad_token_id)
        ids = pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side="left")
        if ids.numel() and int(ids.max()) >= self._n_logits:
            raise ValueError(
                f"the tokenizer gives token {int(ids.max())}, and {self.name} knows {self._n_logits}: "
                "model.resize_token_embeddings(len(tokenizer)), or give the model's own tokenizer"
            )
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side="left")
        return ids.to(self.device), mask.to(self.device, torch.bool)

    @checked
    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of token ids, without special tokens."""
        return list(self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True))

    @checked
    def decode_after(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of token ids that follow a prompt; see `tokenizer.text_after`.

        Args:
            prompts: each prompt's token ids.
            rows: the token ids that follow each prompt.
        """
        return text_after(self.tokenizer, prompts, rows)

    def _ask_as(self, chat: Chat | None) -> None:
        """Settle how prompts become messages, after a check that the tokenizer's template can write them.

        Raises:
            ValueError: it cannot (`Chat.check`).
        """
        if chat is None:
            return
        chat.check(self.tokenizer)
        self.chat, self._turn_ends = chat, turn_ends(self.tokenizer)
        self.thought_marks = ThoughtMarks.of(self.tokenizer)

    @checked
    def as_prompts(self, prompts: Prompts) -> list[Prompt]:
        """Return prompts of any form as the texts that this model reads, with their languages.

        Conversations go through the chat template. Of a model that was loaded with `chat=`, plain texts do too. A
        `Prompt` passes through unchanged. See `data.as_prompts`, which says what is refused.

        Example:
            >>> lm.as_prompts(["the cat"])
            [Prompt(language='en', text='the cat')]
        """
        listed = as_prompts(prompts, tokenizer=self.tokenizer, chat=self.chat)
        if self.chat is None and self.tokenizer.chat_template is not None:
            missed = self.tokenizer.convert_ids_to_tokens([i for i in turn_ends(self.tokenizer) if i not in self.ends])
            if any(end in prompt.text for end in missed for prompt in listed):
                _LOG.warning(
                    "%s: answers end with %s, which ends no text of this model: load it with chat=True",
                    in_line(self.name),
                    missed[0],
                )
        return listed

    def n_thought(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[int]:
        """Return how many of each row's tokens are a thought, which comes before the answer; 0 without `chat`.

        Args:
            prompts: each prompt's token ids, in which a thought may begin.
            rows: the token ids that follow each prompt.
        """
        marks = self.thought_marks
        if marks is None:
            return [0] * len(rows)
        return [marks.n_thought(prompt, new) for prompt, new in zip(prompts, rows, strict=True)]

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text: the tokenizer's end of sequence, and others that the model's settings name.

        Of a model that was loaded with `chat=`, it is also the token with which its template ends an answer.
        """
        model = (
            getattr(self._tl_backend.tl, "original_model", None) if self._hf_backend is None else self._hf_backend.model
        )
        eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        named = [eos] if isinstance(eos, int) else eos or []
        known = [token for token in [*named, *self._turn_ends] if token < self._n_logits]
        return tuple(dict.fromkeys([int(self.tokenizer.eos_token_id), *known]))
