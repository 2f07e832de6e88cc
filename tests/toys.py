"""Small stand-ins that several tests share: a scorer without a list, a random classifier, and strict JSON."""

import json
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers


class HashScorer:
    """A number in [0, 1] that depends on the whole text and on nothing else."""

    name = "hash"
    revision = "1"

    def __init__(self, *languages: str) -> None:
        self.languages = frozenset(languages)

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        return np.array([zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2**32 for text in texts])


class NeverAsked(HashScorer):
    """For bad input that must be refused before any work."""

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        raise AssertionError("work had begun")


def xlm_roberta(config: dict[str, Any], texts: Sequence[str]) -> tuple[Any, Any]:
    """A random XLM-R classifier with a unigram tokenizer of these texts, as its own has it: <s> text </s>."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    unigram.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=unigram, **named)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    small = {"vocab_size": len(fast), "max_position_embeddings": 66, "type_vocab_size": 1}
    torch.manual_seed(0)
    # Weights large enough that texts differ in their scores.
    made = transformers.XLMRobertaConfig(**{**shape, **ids, **small, "initializer_range": 0.3, **config})
    return transformers.XLMRobertaForSequenceClassification(made).eval(), fast


def value_or_refusal(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call gives and "", or None and the line in which it says what is wrong; any other exception fails."""
    try:
        return call(), ""
    except ValueError as error:
        refusal = error
    # Those of decoders are ValueErrors too, and say neither which file nor what to do.
    assert type(refusal) is ValueError, refusal
    assert "\n" not in str(refusal), refusal
    return None, str(refusal)


def strict_json(path: Path) -> Any:
    """Read JSON as the standard has it: without NaN and infinities."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{path.name} holds {constant}, which is not JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


class Ran:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled(model: Any, folder: Path, name: str = "pytorch_model.bin") -> None:
    """The model's configuration, and its weights in a pickle that runs code, which leaves a file `ran`."""
    model.config.save_pretrained(folder)
    with (folder / name).open("wb") as file:
        pickle.dump({**model.state_dict(), "more": Ran(folder / "ran")}, file)
