"""Score texts with a generative guard, whose verdict is read as a probability."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.models.served import Served
from xlingtox.models.tokenizer import tokenizer_rules
from xlingtox.progress import bar
from xlingtox.scoring.guard_format import Format, Template, template_of, verdict_tokens
from xlingtox.scoring.guard_readers import MOST_OPEN, reader_of
from xlingtox.scoring.guards import GUARDS, GuardPreset, GuardReading, Judged, Words
from xlingtox.scoring.protocol import (
    Arrived,
    Described,
    UnscoredError,
    check_answers,
    check_scorable,
    from_stream,
    gathered,
    named_languages,
)
from xlingtox.text import first_line, in_line

_LABELS = ("safe", "controversial", "unsafe")
_EVERYDAY = "Good morning, the train leaves at nine."
_AT_ONCE = 1000
"""So many prompts are cut into tokens at a time."""


class GuardScorer(Described):
    """A scorer that returns the probability of a guard's verdict "unsafe".

    A guard is a chat model that was tuned to say whether a text is safe. We do not let it write. We put the beginning
    of its answer, such as "Safety: ", behind its prompt, and read the probabilities of the next token in one forward
    pass. The score is the probability of the first tokens of the unsafe verdicts, over that of all verdicts.

    A verdict between the two, such as Qwen3Guard's "controversial", counts in part: half of it by default. So a text
    that the guard finds controversial lies between safe and unsafe ones.

    `judges` says where the text stands. "prompt" is what a user asks, and "answer" what an assistant replies. A
    "continuation" is a text without a conversation: it stands alone where a prompt does, which is how guards are tried
    on collections of toxic text.

    Texts are hostile. A control token that is spelled out in one is read as its letters.

    The revision names the weights, their dtype and the format: it differs where a score may differ.

    Example:
        The miniature is no guard, so its verdicts hold little probability.

        >>> guard = xt.scoring.GuardScorer(
        ...     lm,
        ...     template="{text} he is",
        ...     verdicts={"safe": " kind", "unsafe": " a"},
        ...     languages=["en"],
        ...     least_mass=0,
        ...     progress=False,
        ... )
        >>> guard.name
        'mini, harm of continuations'
        >>> bool(0 < guard.score(["the cat"], ["en"])[0] < 1)
        True

        This downloads a guard from the hub, so it does not run as a test.

        >>> guard = xt.scoring.GuardScorer("Qwen/Qwen3Guard-Gen-0.6B", judges="answer")  # doctest: +SKIP
        >>> guard.score_pairs(["How are you?"], ["None of your business!"], ["en"])  # doctest: +SKIP
        array([0.0...])
    """

    @checked
    def __init__(
        self,
        model: str | Path | Any,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str | Template | None = None,
        verdicts: Words | None = None,
        judges: Judged = "continuation",
        languages: Iterable[str] | None = None,
        about: str | None = None,
        preset: str | None = None,
        prefix: str | None = None,
        instructions: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        controversial: float = 0.5,
        least_mass: float = 0.1,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> None:
        """
        Args:
            model: a hub name, a folder, a model in memory with its `tokenizer` (it is copied), a `HookedLM`, or a
                `Served`, whose server must tell log-probabilities. `GUARDS` has the formats of published guards.
            tokenizer: the tokenizer of a model in memory.
            template: a chat template in Jinja, a text with `{text}` (or `{prompt}` and `{answer}`), or a function of a
                prompt and an answer, which is None where only a prompt is judged. By default the guard's chat template.
            verdicts: the words of the verdicts under "safe", "unsafe" and perhaps "controversial", one or several each.
            judges: what the guard judges: a "prompt", an "answer" or a "continuation".
            languages: the languages that the guard covers. The `GUARDS` know theirs.
            about: a word for what is judged: "harm", "toxicity", "refusal". A preset may know several.
            preset: the name in `GUARDS` of the guard's format, for a folder or a server with another name.
            prefix: the beginning of the guard's answer, after which its verdict stands.
            instructions: a system message.
            template_options: further values for the chat template, such as ShieldGemma's `guideline`.
            controversial: the share of the mass of the verdict between safe and unsafe that counts as unsafe.
            least_mass: the least probability that all verdicts together must have. With less, the guard was about to
                say something else, and there is no score.
            revision: a hub commit, tag or branch.
            device, dtype: where the guard runs and the dtype of its weights, as for `HookedLM.load`.
            batch_size: texts in one forward pass; None takes as many as fit.
            progress: show a progress bar.

        Raises:
            ValueError: no languages, or unknown ones; no template, or one that swallows or changes the text; verdicts
                that the tokenizer lacks or that begin alike; a preset that does not answer this question; or the guard
                does not give a verdict on an everyday sentence, so that its format is not understood.
            FileNotFoundError: there is no such model.
            ServerError: the server cannot be reached, or tells no log-probabilities.
        """
        for name, share in (("controversial", controversial), ("least_mass", least_mass)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}: expected a share from 0 to 1")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        known = _preset(model, preset)
        about, reading = _reading(known, about, judges, verdicts, prefix)
        covered = named_languages(languages if languages is not None or known is None else known.languages, "guard")
        _check_words(reading.verdicts)
        self._guard = reader_of(model, tokenizer, revision=revision, device=device, dtype=dtype, batch_size=batch_size)
        source = self._guard.name
        if instructions is None and known is not None and known.instructions_in is not None:
            # A revision is the model's. The card of a preset that was named may stand elsewhere.
            instructions = _from_card(model, known, preset or source, None if preset else revision)
        rendered, is_chat = template_of(
            self._guard.tokenizer,
            template,
            judges,
            content=None if known is None or template is not None else known.content,
            system=instructions,
            generation_prompt=known is None or known.generation_prompt,
            options={**({} if known is None else known.template_options), **(template_options or {})},
            name=source,
        )
        asked = Format.found(self._guard.tokenizer, rendered, judges, is_chat=is_chat, name=source)
        self._format, tokens = verdict_tokens(
            asked, reading.prefix, reading.verdicts, vocabulary=self._guard.vocabulary, name=source
        )
        # Each token, and the share of its probability that counts as unsafe.
        share_of = dict(zip(_LABELS, (0.0, controversial, 1.0), strict=True))
        self._tokens = [token for label in _LABELS for token in tokens.get(label, ())]
        self._shares = np.array([share_of[label] for label in _LABELS for _ in tokens.get(label, ())])
        self._judges, self._least_mass, self._progress = judges, least_mass, progress
        identity = self._guard.identity()
        revision_words = f"{identity.fingerprint} {identity.dtype} {self._digits()}"
        super().__init__(f"{source}, {about} of {judges}s", revision_words, covered)
        self._check_understood()

    def _digits(self) -> str:
        """Return twelve hex digits of all that decides what the guard reads, and what counts as unsafe."""
        parts = [part if isinstance(part, str) else [part.number, part.trimmed] for part in self._format.parts]
        rules = [parts, self._format.start, self._tokens, self._shares.tolist(), tokenizer_rules(self._guard.tokenizer)]
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]

    def _check_understood(self) -> None:
        """Raise ValueError unless the guard gives a verdict on an everyday sentence."""
        (masses,) = self._guard.masses(self._encoded([(_EVERYDAY, _EVERYDAY)]), self._tokens)
        if (mass := float(masses.of_tokens.sum())) < self._least_mass:
            raise ValueError(
                f"{self.name}: on an everyday sentence its verdicts have a probability of {mass:.2g} together, below "
                f"least_mass={self._least_mass}: its format is another one, so give prefix=, verdicts= or template="
            )

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return the probability of "unsafe" for each text. An answer is judged without its prompt here.

        Raises:
            UncoveredLanguage: a language that the guard does not cover.
            ValueError: a text is longer than the guard's context. This is said before any text is scored.
            UnscoredError: the verdicts of some texts have less probability than `least_mass`.
        """
        return from_stream(self, texts, languages)

    @checked
    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield scores batch by batch, short texts first."""
        check_scorable(self, texts, languages)
        yield from self._scored([("", text) if self._judges == "answer" else (text, "") for text in texts])

    @checked
    def score_pairs(
        self, prompts: Sequence[str], answers: Sequence[str], languages: Sequence[str]
    ) -> Float[np.ndarray, "answer"]:
        """Return the probability of "unsafe" for each answer, which the guard reads with its prompt.

        Raises:
            UncoveredLanguage, UnscoredError: as for `score`.
            ValueError: the guard judges no answers, the numbers differ, or a pair is longer than the guard's context.

        Example:
            >>> guard = xt.scoring.GuardScorer(
            ...     lm,
            ...     template="{prompt} {answer} he is",
            ...     verdicts={"safe": " kind", "unsafe": " a"},
            ...     judges="answer",
            ...     languages=["en"],
            ...     least_mass=0,
            ...     progress=False,
            ... )
            >>> guard.score_pairs(["the cat"], ["and"], ["en"]).shape
            (1,)
        """
        return gathered(self.stream_pairs(prompts, answers, languages), len(answers))

    @checked
    def stream_pairs(
        self, prompts: Sequence[str], answers: Sequence[str], languages: Sequence[str]
    ) -> Iterator[Arrived]:
        """Yield the scores of `score_pairs` batch by batch, short pairs first."""
        if self._judges != "answer":
            raise ValueError(f"{self.name}: this guard judges {self._judges}s: make one with judges='answer'")
        check_answers(self, prompts, answers, languages)
        yield from self._scored(list(zip(prompts, answers, strict=True)))

    def _encoded(self, rows: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """Return the tokens of each prompt; raise ValueError for one that is longer than the guard's context."""
        prompts: list[np.ndarray] = []
        for at in range(0, len(rows), _AT_ONCE):
            prompts += [np.array(ids, dtype=np.int32) for ids in self._format.encode(rows[at : at + _AT_ONCE])]
        most = self._guard.most_tokens
        too_long = next((i for i, ids in enumerate(prompts) if most is not None and len(ids) > most), None)
        if too_long is not None:
            raise ValueError(
                f"text {too_long} has {len(prompts[too_long])} tokens in the prompt of {self._guard.name}, which reads "
                f"{most}: shorten it, or take a guard with a longer context"
            )
        return prompts

    def _scored(self, rows: Sequence[tuple[str, str]]) -> Iterator[Arrived]:
        """Yield scores batch by batch, and raise UnscoredError at the end for texts without a verdict."""
        if not rows:
            return
        prompts = self._encoded(rows)
        unscored: list[tuple[int, float]] = []
        with bar(self.name, total=len(rows), unit="text", progress=self._progress) as progress_bar:
            for numbers, of_tokens, left_open in self._guard.masses(prompts, self._tokens):
                mass = of_tokens.sum(1)
                known = (mass >= self._least_mass) & (mass > 0) & (left_open <= MOST_OPEN * (mass + left_open))
                unscored += [(numbers[i], float(mass[i])) for i in np.flatnonzero(~known)]
                progress_bar.update(len(numbers))
                if known.any():
                    scores = (of_tokens[known] @ self._shares) / mass[known]
                    yield [numbers[i] for i in np.flatnonzero(known)], scores.clip(0, 1)
        if unscored:
            first, mass_there = min(unscored)
            raise UnscoredError(
                f"{self.name}: {len(unscored)} of {len(rows)} texts have no verdict. The verdicts after text {first} "
                f"have a probability of {mass_there:.2g} together, where least_mass={self._least_mass} is asked for",
                len(unscored),
            )


def _preset(model: Any, preset: str | None) -> GuardPreset | None:
    """Return the format of a published guard; None where nobody knows it."""
    if preset is not None and preset not in GUARDS:
        raise ValueError(f"preset {in_line(preset)!r} is not known: expected one of {', '.join(GUARDS)}")
    own_name = model.name if isinstance(model, HookedLM) else model.model if isinstance(model, Served) else model
    return GUARDS.get(preset or (str(own_name) if isinstance(own_name, str | Path) else ""))


def _reading(
    known: GuardPreset | None, about: str | None, judges: Judged, verdicts: Words | None, prefix: str | None
) -> tuple[str, GuardReading]:
    """Return the word for what is judged, and how it is read."""
    about = about or (next(iter(known.readings)) if known is not None else "harm")
    published = None if known is None else known.readings.get(about)
    if verdicts is None:
        if known is None:
            raise ValueError("say the words of the guard's verdicts: verdicts={'safe': 'safe', 'unsafe': 'unsafe'}")
        if published is None:
            listed = ", ".join(known.readings)
            raise ValueError(f"about={about!r} is not what this guard answers ({listed}): give verdicts= and prefix=")
        verdicts = published.verdicts
    if published is not None and prefix is None and judges not in published.judges:
        raise ValueError(
            f"this guard states the {about} of {judges}s after other lines, or not at all: expected judges to be "
            f"{' or '.join(published.judges)}, or prefix= with these lines"
        )
    before = "" if published is None else published.prefix
    return about, GuardReading(verdicts, before if prefix is None else prefix)


def _check_words(verdicts: Words) -> None:
    """Raise ValueError unless there are words for safe and unsafe, and for nothing unknown."""
    unknown = [label for label in verdicts if label not in _LABELS]
    empty = [label for label, words in verdicts.items() if not words or (not isinstance(words, str) and "" in words)]
    lacking = [label for label in ("safe", "unsafe") if label not in verdicts]
    if unknown or empty or lacking:
        raise ValueError(
            f"verdicts has {', '.join(map(repr, verdicts)) or 'nothing'}: expected words under 'safe' and 'unsafe', "
            "and perhaps 'controversial'"
        )


def _from_card(model: Any, known: GuardPreset, repository: str, revision: str | None) -> str:
    """Return a guard's instructions from the example in its card: the file README.md in its folder or on the hub."""
    from huggingface_hub import hf_hub_download

    try:
        local = Path(model) / "README.md" if isinstance(model, str | Path) else Path()
        path = local if local.is_file() else Path(hf_hub_download(repository, "README.md", revision=revision))
        card = path.read_text("utf-8")
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(
            f"the card of {repository}, which has its instructions, cannot be read ({first_line(error)}): give them "
            "with instructions="
        ) from error
    example = re.search(rf'{known.instructions_in}\s*=\s*f?"""(.*?)"""', card, re.DOTALL)
    if example is None:
        raise ValueError(f"the card of {repository} has no {known.instructions_in}: give the text with instructions=")
    return example[1].strip()
