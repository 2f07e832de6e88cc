"""Text into a model and out of it: the tokens of texts, padded batches of them, and the text of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlingtox.checking import checked
from xlingtox.models.forward import ForwardPasses
from xlingtox.models.tokenizer import rows_without_text, text_after, token_ids


class TextEncoding(ForwardPasses):
    """Forward passes, and the conversion between texts and the tokens that they read.

    Padding is on the left, so that the last position of every row is its newest token.

    Example:
        >>> lm.decode(lm.token_ids(["the cat", "la casa"]))
        ['the cat', 'la casa']
    """

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

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text: the tokenizer's end of sequence, and others that the model's settings name."""
        model = (
            getattr(self._tl_backend.tl, "original_model", None) if self._hf_backend is None else self._hf_backend.model
        )
        eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        named = [eos] if isinstance(eos, int) else eos or []
        known = [token for token in named if token < self._n_logits]
        return tuple(dict.fromkeys([int(self.tokenizer.eos_token_id), *known]))
