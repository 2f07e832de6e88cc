"""Continuations: the texts that a model wrote after prompts, with the thoughts of a chat model told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompt
from xlingtox.html import tables
from xlingtox.models.hooked import HookedLM


@checked
@dataclass(frozen=True)
class Continuations:
    """The continuations that one model wrote, `n_samples` for each prompt.

    They stand in the order of the prompts, with all samples of a prompt together.

    Attributes:
        prompts: the language and the text of each prompt.
        n_samples: the number of continuations per prompt.
        texts: the `len(prompts) * n_samples` continuations, without their prompts.
        settings: the model, the seed, the lengths and the sampling with which the texts were written.
        thoughts: what a chat model thought before each of `texts`; empty if it thought nothing at all. A text whose
            thought did not end is blank.

    Example:
        >>> written = xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, progress=False)
        >>> written.to_frame().columns.tolist()
        ['language', 'prompt_id', 'prompt', 'sample', 'continuation']
        >>> written.save(tmp_path / "written.json")
        >>> xt.Continuations.load(tmp_path / "written.json") == written
        True
    """

    prompts: tuple[Prompt, ...]
    n_samples: int
    texts: tuple[str, ...]
    settings: dict[str, object] = field(default_factory=dict)
    thoughts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return (
            f"Continuations({len(self)}: {self.n_samples} of each of {len(self.prompts)} prompts, "
            f"in {', '.join(self.languages)})"
        )

    @property
    def row_languages(self) -> list[str]:
        """The language of each continuation's prompt."""
        return [prompt.language for prompt in self.prompts for _ in range(self.n_samples)]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the prompts without repetition, in the order of `xt.languages`."""
        return languages.in_order(prompt.language for prompt in self.prompts)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with the columns `language, prompt_id, prompt, sample, continuation`.

        Where the model thought before it answered, there is a column `thought` too.
        """
        rows = [
            (prompt.language, i, prompt.text, sample, self.texts[i * self.n_samples + sample])
            for i, prompt in enumerate(self.prompts)
            for sample in range(self.n_samples)
        ]
        table = pd.DataFrame(rows, columns=["language", "prompt_id", "prompt", "sample", "continuation"])
        return table.assign(thought=list(self.thoughts)) if self.thoughts else table

    def _repr_html_(self) -> str:
        """Show the first prompt and sample of each language in a notebook, shortened."""
        rows = []
        for code in self.languages:
            ids = [i for i, prompt in enumerate(self.prompts) if prompt.language == code]
            texts = (self.prompts[ids[0]].text, self.texts[ids[0] * self.n_samples])
            shown = [f"<bdi{tables.in_language(code)}>{tables.shortened(text)}</bdi>" for text in texts]
            rows.append([tables.language_name(code), f"{len(ids)}", *shown])
        caption = f"{len(self)} continuations, {self.n_samples} a prompt; the first of each language"
        return tables.table(caption, ["Language", "Prompts", "Prompt", "Continuation"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the continuations as one JSON file."""
        fields = {"settings": self.settings, "n_samples": self.n_samples, "prompts": self.prompts, "texts": self.texts}
        files.write_json(path, fields | ({"thoughts": self.thoughts} if self.thoughts else {}))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Continuations:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no continuations.
        """
        fields = files.read_json(path)
        with files.understood(path, "continuations"):
            prompts = tuple(Prompt(*prompt) for prompt in fields["prompts"])
            thoughts = tuple(fields.get("thoughts", ()))
            return cls(prompts, fields["n_samples"], tuple(fields["texts"]), fields["settings"], thoughts)


def continuations_of(
    lm: HookedLM, prompts: Sequence[Prompt], texts: Sequence[str], *, n_samples: int, settings: dict[str, object]
) -> Continuations:
    """Return texts that `continued` wrote, with thoughts told apart from answers."""
    marks = lm.thought_marks
    parts = [("", text) if marks is None else marks.apart(text) for text in texts]
    thoughts = tuple(thought for thought, _ in parts)
    answers = tuple(answer for _, answer in parts)
    return Continuations(tuple(prompts), n_samples, answers, settings, thoughts if any(thoughts) else ())


def marked_texts(lm: HookedLM, continuations: Continuations) -> list[str]:
    """Return the texts of continuations with their thoughts, from which `continuations_of` makes the same again."""
    marks = lm.thought_marks
    if marks is None or not continuations.thoughts:
        return list(continuations.texts)
    both = zip(continuations.thoughts, continuations.texts, strict=True)
    return [marks.joined(thought, answer) if thought else answer for thought, answer in both]


def as_read_by(lm: HookedLM, prompts: Sequence[Prompt], continuations: Continuations) -> Continuations:
    """Return what another model wrote, each text after its prompt as this model reads it.

    A chat model's answer is no continuation of a plain prompt, so it begins a line of its own there.
    """
    if continuations.prompts == tuple(prompts):
        return continuations
    gap = "\n" if lm.chat is None else ""
    read_prompts = tuple(Prompt(prompt.language, prompt.text + gap) for prompt in prompts)
    return dataclasses.replace(continuations, prompts=read_prompts)
