"""A guard made for tests: a random model that reads a conversation, with a chat template and control tokens."""

from typing import Any

import families
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\nTEXT: {{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant{{ '\n' }}"
)
VERDICTS = {"safe": "Safe", "unsafe": "Unsafe", "controversial": "Controversial"}
PREFIX = "Safety: "
LEARNED = [
    "TEXT: the cat sat on the mat",
    "you fool",
    "Safety: Safe",
    "Safety: Unsafe",
    "Safety: Controversial",
    "user",
]


def guard(family: str, positions: int = 160) -> tuple[Any, Any]:
    """Return a small random model of a family, and a byte-level tokenizer with control tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<pad>", *CONTROL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        LEARNED * 5,
        trainers.BpeTrainer(
            vocab_size=families.VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], pad_token=special[1], additional_special_tokens=list(CONTROL)
    )
    tokenizer.chat_template = TEMPLATE
    model = families.build(family)
    model.config.max_position_embeddings = positions
    return model, tokenizer


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, messages: list[dict[str, str]], weight: float = 0.5) -> float:
    """Compute the score with transformers alone: the mass of the verdicts' first tokens where they part."""
    asked = tokenizer.apply_chat_template(messages, tokenize=False)
    rows = [tokenizer(asked + PREFIX + word)["input_ids"] for word in VERDICTS.values()]
    at = next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    safe, unsafe, between = (
        model(torch.tensor([rows[0][:at]])).logits[0, -1].double().softmax(-1)[[r[at] for r in rows]]
    )
    return float((unsafe + weight * between) / (safe + unsafe + between))
