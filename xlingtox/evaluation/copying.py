"""The score that the paper calls perplexity."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xlingtox.checking import checked
from xlingtox.evaluation.fluency import LIMIT, Fluency, fluency_of, prompts_and_texts
from xlingtox.evaluation.text_losses import nats
from xlingtox.models.batching import by_length, in_batches
from xlingtox.models.generation import Continuations
from xlingtox.progress import bar


@checked
@torch.no_grad()
def copying_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    continuations: Continuations,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Fluency:
    """Compute what the paper reports as perplexity, as the authors' code does with mT5-XL. It is not a perplexity.

    An encoder-decoder reads a text and is scored on writing the same text, so it sees the answer. Let L be its mean
    loss per token times (the number of tokens - 1). The score is exp((L(prompt + continuation) - L(prompt)) / (how many
    more tokens there are)). As in that code, blank continuations and scores out of range are left out of the medians.
    `Fluency.counts` says how many these are.

    Args:
        model: an encoder-decoder, such as `google/mt5-xl`, in evaluation mode.
        batch_size: how many texts are read at once.

    Raises:
        ValueError: there are no continuations, or the model is not an encoder-decoder, or it is in training mode.

    Example:
        This downloads a model of 15 GB from the hub, so it does not run as a test.

        >>> from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        >>> model = AutoModelForSeq2SeqLM.from_pretrained("google/mt5-xl")  # doctest: +SKIP
        >>> tokenizer = AutoTokenizer.from_pretrained("google/mt5-xl")  # doctest: +SKIP
        >>> written = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> xt.evaluation.copying_score(model, tokenizer, written).medians  # doctest: +SKIP
        {'en': ..., 'es': ...}
    """
    if not model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is not an encoder-decoder: for a causal judge, use conditional_perplexity"
        )
    if model.training:
        raise ValueError("the model is in training mode, where dropout is on: call model.eval()")
    prompts, written = prompts_and_texts(continuations)
    blank = np.array([not text.strip() for text in written])
    joined = [prompt + text for prompt, text in zip(prompts, written, strict=True)]
    texts = list(dict.fromkeys([*prompts, *joined]))
    place = {text: i for i, text in enumerate(texts)}
    rows = [torch.tensor(ids, dtype=torch.long) for ids in tokenizer(texts)["input_ids"]]
    lengths, losses = np.array([len(row) for row in rows]), np.zeros(len(rows))
    with bar("copying score", total=len(rows), unit="text", progress=progress) as shown:

        def read(batch: list[int]) -> None:
            labels = pad_sequence([rows[i].to(model.device) for i in batch], batch_first=True, padding_value=-100)
            mask = labels != -100
            out = model(input_ids=labels.where(mask, 0), attention_mask=mask.long(), labels=labels)
            loss = nats(out.logits, labels.where(mask, 0)).where(mask, 0.0)
            losses[batch] = (loss.sum(1) / mask.sum(1) * (mask.sum(1) - 1)).cpu().numpy()
            shown.update(len(batch))

        in_batches(by_length(lengths.tolist()), batch_size, read)
    of_joined, of_prompt = ([place[text] for text in side] for side in (joined, prompts))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = np.exp((losses[of_joined] - losses[of_prompt]) / (lengths[of_joined] - lengths[of_prompt]))
    values[blank] = np.nan
    in_range = values < LIMIT
    faults = {"blank": blank, "out_of_range": ~blank & ~in_range}
    codes = continuations.row_languages
    return fluency_of(str(model.config.name_or_path), codes, values, faults=faults, counted=in_range)
