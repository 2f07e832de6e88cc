"""Score texts with a Hugging Face sequence classifier."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from xlingtox.checking import checked, shown
from xlingtox.models.batching import by_length, each_batch
from xlingtox.models.devices import default_device
from xlingtox.models.identity import fingerprint
from xlingtox.models.loading import read_weights
from xlingtox.models.precision import cast
from xlingtox.models.tokenizer import tokenizer_rules
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Arrived, Described, check_scorable, from_stream, named_languages
from xlingtox.text import first_line, well_formed

Activation = Literal["sigmoid", "softmax"]

_TOXIC = ("toxic", "toxicity")

_KEPT = 1_000_000
"""The answers to so many texts are kept for the scorers of other labels."""


@dataclass(frozen=True)
class Preset:
    """Facts about a published classifier that its card states and its configuration does not.

    Attributes:
        languages: the languages that it was trained on, by its card.
        activation: the activation of its head.
        toxic_label: name or number of its toxic label; None looks it up by name.
        revision: the hub commit that is loaded unless the caller asks for another; None is the newest.

    Example:
        >>> preset = xt.scoring.PRESETS["unitary/multilingual-toxic-xlm-roberta"]
        >>> preset.activation, "tr" in preset.languages
        ('sigmoid', True)
    """

    languages: frozenset[str]
    activation: Activation
    toxic_label: str | int | None = None
    revision: str | None = None


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # Its card's table has 15 languages, with an F1 of each: from 0.56 in Amharic, 0.57 in Tatar and 0.59 in Italian
        # to 0.97 in Hindi. It writes `hin` for Hinglish, Hindi in Latin letters, and says that label 1 is toxic.
        "textdetox/xlmr-large-toxicity-classifier-v2": Preset(
            frozenset("am ar de en es fr he hi hi-Latn it ja ru tt uk zh".split()), "softmax", 1
        ),
        # Its card lists nine languages, with an F1 of each: from 0.73 in Chinese to 0.98 in Russian.
        "textdetox/xlmr-large-toxicity-classifier": Preset(
            frozenset("am ar de en es hi ru uk zh".split()), "softmax", "toxic"
        ),
        # Detoxify's README says that it "should only be tested on" these seven, and has an AUC of each but English.
        # This commit is the hub's conversion to safetensors; the default branch has pickled weights only.
        "unitary/multilingual-toxic-xlm-roberta": Preset(
            frozenset("en es fr it pt ru tr".split()), "sigmoid", revision="a3d4e66839269e45c5e8491dfa55a53fdaedcdbc"
        ),
    }
)
"""Public classifiers by their hub names, with the languages of their cards as we read them in November 2026.

No open classifier covers all 17 languages. Dutch, Swedish, Indonesian, Polish, Czech and Korean are in none of these.
"""


class ClassifierScorer(Described):
    """A scorer that returns a sequence classifier's probability of its toxic label.

    A text longer than the model's context is cut at its end.

    The revision says all that decides a score, so that a cache never mixes two classifiers. It begins with the hub
    commit, or with twelve hex digits of the weights' hash if the model is not from the hub. Label, activation and dtype
    follow. If the tokenizer is not from that commit, twelve hex digits of a hash of it and of the length limit follow
    too.

    Example:
        This downloads the classifier from the hub, so it does not run as a test.

        >>> hub_name = "textdetox/xlmr-large-toxicity-classifier-v2"
        >>> scorer = xt.scoring.ClassifierScorer(hub_name)  # doctest: +SKIP
        >>> scorer.score(["you are a fool"], ["en"])  # doctest: +SKIP
        array([0.9...])
    """

    @checked
    def __init__(
        self,
        source: str | Path | Any,
        languages: Iterable[str] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        toxic_label: str | int | None = None,
        activation: Activation | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        """
        Args:
            source: a hub name, a folder, or a model in memory with its `tokenizer`. A model in memory is copied.
            languages: the languages that the classifier works in. The `PRESETS` know theirs.
            tokenizer: the tokenizer of a model in memory.
            toxic_label: name or number of the label; None takes the label called toxic or toxicity.
            activation: "softmax" for labels that exclude each other, "sigmoid" for labels that do not. None takes what
                the model's configuration implies, like transformers' pipeline.
            revision: a hub commit, tag or branch (default: the preset's, or the newest). The attribute `revision` names
                the commit.
            device: where the model runs; None takes a GPU if there is one.
            dtype: the dtype of the weights; None keeps the stored one.
            batch_size: texts in one forward pass.
            progress: show a progress bar.

        Raises:
            ValueError: no languages, or unknown ones; it is not clear which label is toxic or which activation to
                use; the tokenizer cannot pad.
            FileNotFoundError: there is no such model.
        """
        preset = PRESETS.get(str(source)) if isinstance(source, str | Path) else None
        if preset is not None:
            languages = preset.languages if languages is None else languages
            toxic_label = preset.toxic_label if toxic_label is None else toxic_label
            activation = activation or preset.activation
            revision = revision or preset.revision
        covered = named_languages(languages, "classifier")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        self._batch_size, self._progress = batch_size, progress
        self._model, self._tokenizer, name = _loaded(
            source, copy.deepcopy(tokenizer), revision=revision, device=device, dtype=dtype
        )
        if self._tokenizer.pad_token_id is None:
            raise ValueError(f"the tokenizer of {name} has no padding token: set tokenizer.pad_token first")
        config = self._model.config
        self._label = _label(config, toxic_label)
        self._activation: Activation = _activation(config, activation)
        self._longest = _longest(self._model, self._tokenizer)
        # A model in memory remembers the commit that it came from, even if its weights were changed since.
        from_hub = isinstance(source, str | Path) and not Path(source).exists()
        commit = getattr(config, "_commit_hash", None) if from_hub else None
        self._weights = commit or fingerprint(self._model.state_dict())
        own_tokenizer = commit is None or tokenizer is not None
        self._rules = [_tokenizer_digits(self._tokenizer, self._longest)] if own_tokenizer else []
        # The logits of texts that were read, where scorers of other labels need them too.
        self._read: dict[str, Float[np.ndarray, "label"]] | None = None
        self._source = name
        super().__init__(name, self._described(), covered)

    def _described(self) -> str:
        """Return the revision."""
        head = [self._model.config.id2label[self._label], self._activation]
        return " ".join([self._weights, *head, str(self._model.dtype).removeprefix("torch."), *self._rules])

    @checked
    def for_label(self, label: str | int, *, activation: Activation | None = None) -> ClassifierScorer:
        """Return a scorer of another label of the same classifier. A text is read once for all labels.

        The scorers share the model. What one has read, the others score without another pass, also within `Cached`. The
        answers to the last million texts are kept for that. The new scorer's name ends with the label.

        Args:
            label: name or number of the label.
            activation: as for the constructor (default: this scorer's).

        Raises:
            ValueError: there is no such label.

        Example:
            >>> toxic = xt.scoring.ClassifierScorer("unitary/multilingual-toxic-xlm-roberta")  # doctest: +SKIP
            >>> insulting = toxic.for_label("insult")  # doctest: +SKIP
        """
        if self._read is None:
            self._read = {}
        other = copy.copy(self)
        other._label = _label(self._model.config, label)
        other._activation = activation or self._activation
        other._name, other._revision = (
            f"{self._source}, {self._model.config.id2label[other._label]}",
            other._described(),
        )
        return other

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return the probability of the toxic label for each text.

        Raises:
            UncoveredLanguage: a language that was not named.
        """
        return from_stream(self, texts, languages)

    @checked
    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield scores batch by batch, short texts first."""
        check_scorable(self, texts, languages)
        if not texts:
            return
        if known := [i for i, text in enumerate(texts) if text in (self._read or {})]:
            assert self._read is not None
            yield known, self._scores(torch.tensor(np.stack([self._read[texts[i]] for i in known])))
            unread = sorted(set(range(len(texts))) - set(known))
            for rows, scores in self._read_and_scored([texts[i] for i in unread]) if unread else ():
                yield [unread[row] for row in rows], scores
            return
        yield from self._read_and_scored(texts)

    def _read_and_scored(self, texts: Sequence[str]) -> Iterator[Arrived]:
        """Let the model read texts, and yield their scores batch by batch."""
        longest = self._longest
        readable = [well_formed(text) for text in texts]
        encoded = self._tokenizer(readable, truncation=longest is not None, max_length=longest)
        ids = encoded["input_ids"]
        lengths = [len(row) for row in ids]
        if not min(lengths):
            raise ValueError(f"text {lengths.index(0)} has no tokens, and the tokenizer adds none")
        pads = {
            "input_ids": self._tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": self._tokenizer.pad_token_type_id,
        }
        columns = {name: encoded[name] for name in pads if name in encoded}

        def run(rows: list[int]) -> Float[np.ndarray, "row"]:
            batch = {
                name: torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(values[i]) for i in rows],
                    batch_first=True,
                    padding_value=pads[name],
                    padding_side=self._tokenizer.padding_side,
                ).to(self._model.device)
                for name, values in columns.items()
            }
            with torch.inference_mode():
                logits = self._model(**batch).logits.float()
                self._remember([texts[i] for i in rows], logits)
                return self._scores(logits)

        with bar(self.name, total=len(texts), unit="text", progress=self._progress) as progress_bar:
            for rows, scores in each_batch(by_length(lengths), self._batch_size, run):
                progress_bar.update(len(rows))
                yield rows, scores

    def _scores(self, logits: Float[Tensor, "row label"]) -> Float[np.ndarray, "row"]:
        """Return the probability of the label."""
        scores = logits.sigmoid() if self._activation == "sigmoid" else logits.softmax(-1)
        return scores[:, self._label].double().cpu().numpy()

    def _remember(self, texts: Sequence[str], logits: Float[Tensor, "row label"]) -> None:
        """Keep logits for the scorers of other labels, if there are any."""
        if self._read is not None:
            self._read.update(zip(texts, logits.cpu().numpy(), strict=True))
            for text in list(itertools.islice(self._read, max(0, len(self._read) - _KEPT))):
                del self._read[text]


def _loaded(
    source: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    revision: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Return the model, its tokenizer and its name."""
    if not isinstance(source, str | Path):
        if not isinstance(source, torch.nn.Module):
            raise TypeError(
                f"ClassifierScorer: source is {shown(source)}, expected a hub name, a folder, or a model in "
                "memory with its tokenizer"
            )
        if tokenizer is None:
            raise ValueError(f"a {type(source).__name__} in memory needs its tokenizer: tokenizer=...")
        model = cast(copy.deepcopy(source), dtype).to(device or source.device)
        return model.eval(), tokenizer, getattr(source.config, "_name_or_path", "") or type(source).__name__
    origin = {"local_files_only": True} if Path(source).exists() else {"revision": revision or "main"}
    try:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, **origin)
    except OSError as error:
        raise FileNotFoundError(
            f"{source} is no folder with a classifier, nor a model that the hub gives us: {first_line(error)}"
        ) from error
    model = read_weights(AutoModelForSequenceClassification, source, dtype=dtype or "auto", **origin)
    return model.to(device or default_device()).eval(), tokenizer, str(source)


def _label(config: Any, toxic_label: str | int | None) -> int:
    """Return the number of the toxic label."""
    labels: dict[int, str] = config.id2label
    if isinstance(toxic_label, int) and toxic_label in labels:
        return toxic_label
    names = _TOXIC if toxic_label is None else (str(toxic_label).lower(),)
    numbers = [number for number, label in labels.items() if label.strip().lower() in names]
    if toxic_label is None and not numbers and list(labels.values()) == ["LABEL_0"]:
        return 0
    if len(numbers) != 1:
        known = ", ".join(f"{number}: {label!r}" for number, label in labels.items())
        problem = "which label is toxic is not clear" if toxic_label is None else f"there is no label {toxic_label!r}"
        raise ValueError(f"{problem}: give toxic_label, one of {known}")
    return numbers[0]


def _activation(config: Any, activation: Activation | None) -> Activation:
    """Return the activation that the caller asks for, or else the one that the configuration implies."""
    if activation is not None:
        return activation
    problem = config.problem_type
    if problem == "regression":
        raise ValueError("the classifier is a regression, not a probability: give activation='sigmoid' if it is one")
    if problem == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    if problem is None and config.num_labels > 2:
        raise ValueError(
            f"the configuration does not say whether its {config.num_labels} labels exclude each other: "
            "give activation='softmax' if they do, 'sigmoid' if not"
        )
    return "softmax"


def _longest(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the most tokens that the model reads, or None without a limit."""
    limits = [tokenizer.model_max_length]
    if positions := getattr(model.config, "max_position_embeddings", None):
        # RoBERTa counts positions from after its padding index.
        skipped = {
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        }
        limits.append(positions - max(skipped, default=0))
    longest = min(limits)
    return longest if longest < 1_000_000 else None


def _tokenizer_digits(tokenizer: Any, longest: int | None) -> str:
    """Return twelve hex digits of everything that decides which tokens the model reads."""
    settings = [longest, tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id]
    rules = json.dumps([tokenizer_rules(tokenizer), settings], sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()[:12]
