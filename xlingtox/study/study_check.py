"""StudyCheck: what a study will take and what stands in its way, found before it runs."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.study.check_text import WIDTH, duration, percent, prompts, size
from xlingtox.study.weights import Licence


@checked
@dataclass(frozen=True)
class LanguageCheck:
    """What a few prompts of one language showed.

    Attributes:
        n_prompts: how many prompts the study has in this language.
        toxicity: the mean score of the sampled continuations, and `low` and `high`, its 95 % interval over prompts.
        greedy: the mean score of the greedy continuations.
        toxic_texts, n_texts: how many samples score 0.5 or more, and how many there are.
        blank, unsound: the share of samples that say nothing, and that are not sound (`evaluation.soundness.kinds`).
        needed: about how many prompts would show in four of five studies that toxicity halved; infinite where there is
            too little toxicity to tell.

    Example:
        >>> xt.study.study_check.LanguageCheck(30, 0.1, 0.05, 0.2, 0.0, 4, 40, 0.0, 0.0, 25.0).needed
        25.0
    """

    n_prompts: int
    toxicity: float
    low: float
    high: float
    greedy: float
    toxic_texts: int
    n_texts: int
    blank: float
    unsound: float
    needed: float


@checked
@dataclass(frozen=True)
class StageCheck:
    """What a stage will take: seconds, peak memory in bytes, and bytes on the disk that stay, and the most of them.

    Example:
        >>> xt.study.study_check.StageCheck(60.0, 2**30, 0, 0).seconds
        60.0
    """

    seconds: float
    memory: int
    disk: int
    most_disk: int


@checked
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class StudyCheck:
    """What a study will take and what stands in its way, from a few prompts and from the sizes of its tables.

    Attributes:
        model: the model in words.
        device: the device in words, with its memory.
        data: the data in words.
        languages: for each language, what a few prompts showed; empty where the model did not run.
        stages: for each stage to run, what it will take.
        tokens_per_second: how fast the model writes and reads; empty where it did not run.
        n_texts: how many texts the figures were measured on; 0 where they are guessed from the model's size.
        problems: why the study cannot be run, a sentence each.
        warnings: why its figures may not tell anything, or take longer than one may expect.
        notes: what was made from what, and what is left out.
        licences: what must be accepted.

    Example:
        >>> check = xt.study.check.check_without_weights("meta-llama/Meta-Llama-3-8B", output_dir=tmp_path)
        >>> [licence.of for licence in check.licences], list(check.stages)[:2]
        (['meta-llama/Meta-Llama-3-8B', 'RTP-LX', 'Jigsaw'], ['localize', 'promoted'])
        >>> check.save(tmp_path / "check.json")
        >>> xt.study.study_check.StudyCheck.load(tmp_path / "check.json") == check
        True
    """

    model: str
    device: str
    data: str
    languages: Mapping[str, LanguageCheck] = field(default_factory=dict)
    stages: Mapping[str, StageCheck] = field(default_factory=dict)
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)
    n_texts: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    licences: tuple[Licence, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Return whether everything is the same; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        can = "can run" if not self.problems else f"cannot run: {self.problems[0]}"
        return f"StudyCheck({self.model}: {can})"

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, as a study's line of progress takes them."""
        return {name: stage.seconds for name, stage in self.stages.items()}

    def sentences(self) -> list[str]:
        """Return lines of at most 80 columns for a terminal: tables first, then what to know, and problems last."""
        return _lines(self)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each stage: columns `stage, seconds, memory, disk, most_disk`."""
        rows = [{"stage": name, **dataclasses.asdict(stage)} for name, stage in self.stages.items()]
        return pd.DataFrame(rows, columns=["stage", "seconds", "memory", "disk", "most_disk"])

    def languages_frame(self) -> pd.DataFrame:
        """Return a row for each language: column `language`, and the attributes of `LanguageCheck`."""
        rows = [{"language": code, **dataclasses.asdict(row)} for code, row in self.languages.items()]
        return pd.DataFrame(rows, columns=["language", *(name.name for name in dataclasses.fields(LanguageCheck))])

    def _repr_html_(self) -> str:
        """Return tables for notebooks, with problems and warnings first."""
        return _html(self)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> StudyCheck:
        """Read a file that `save` wrote; raise ValueError, with the path, where the file holds no check."""
        content = files.read_json(path)
        with files.understood(path, "check of a study"):
            plain = {name.name: content[name.name] for name in dataclasses.fields(cls)}
            plain |= {name: tuple(plain[name]) for name in ("problems", "warnings", "notes")}
            plain["languages"] = {code: LanguageCheck(**row) for code, row in plain["languages"].items()}
            plain["stages"] = {name: StageCheck(**row) for name, row in plain["stages"].items()}
            plain["licences"] = tuple(Licence(**row) for row in plain["licences"])
            return cls(**plain)


def _lines(check: StudyCheck) -> list[str]:
    """Return the lines of a terminal."""
    found = [*_field("Model", check.model), *_field("On", check.device), *_field("Data", check.data)]
    if check.tokens_per_second:
        speeds = ", ".join(f"{value:,.0f} tokens/s {name}" for name, value in check.tokens_per_second.items())
        found += _field("Speed", speeds)
    if check.languages:
        found += ["", *_language_lines(check)]
    if check.stages:
        found += ["", *_stage_lines(check)]
    for licence in check.licences:
        found += ["", *_item("Accept", f"{licence.of}: {licence.terms}. {licence.then}"), f"    {licence.place}"]
    for title, sentences in (("Note", check.notes), ("Beware", check.warnings), ("Cannot run", check.problems)):
        for sentence in sentences:
            found += ["", *_item(title, sentence)]
    if not check.problems:
        found += ["", "Nothing stands in the way of this study."]
    return found


def _field(title: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{title:<7}", subsequent_indent=" " * 7, break_long_words=True)


def _item(title: str, sentence: str) -> list[str]:
    return textwrap.wrap(
        f"{title}. {sentence}",
        WIDTH,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _language_lines(check: StudyCheck) -> list[str]:
    head = f"{'Base toxicity':<16}{'mean':>7}{'95 % interval':>16}{'greedy':>8}{'blank':>7}{'unsound':>9}"
    rows = [f"{head}{'prompts':>9}{'needed':>8}"]
    for code, row in check.languages.items():
        interval = f"{percent(row.low)} to {percent(row.high)}"
        needed = f"{row.needed:,.0f}" if row.needed < 1e4 else ">10,000"
        cells = f"{percent(row.toxicity):>7}{interval:>16}{percent(row.greedy):>8}{percent(row.blank):>7}"
        cells += f"{percent(row.unsound):>9}{row.n_prompts:>9,}{needed:>8}"
        rows.append(f"{languages.name(code)[:15]:<16}{cells}")
    n_texts = next(iter(check.languages.values())).n_texts
    note = f"Of {n_texts} samples a language. Needed: the prompts that show a halving 4 times in 5."
    return [*rows, *textwrap.wrap(note, WIDTH)]


def _stage_lines(check: StudyCheck) -> list[str]:
    rows = [f"{'Stage':<16}{'time':>14}{'memory':>12}{'disk':>12}{'disk at most':>15}"]
    for name, stage in check.stages.items():
        sizes = f"{size(stage.memory):>12}{size(stage.disk):>12}{size(stage.most_disk):>15}"
        rows.append(f"{name:<16}{duration(stage.seconds):>14}{sizes}")
    stages = check.stages.values()
    stays, for_a_while = sum(stage.disk for stage in stages), max(stage.most_disk - stage.disk for stage in stages)
    sizes = f"{size(max(stage.memory for stage in stages)):>12}{size(stays):>12}{size(stays + for_a_while):>15}"
    rows.append(f"{'all':<16}{duration(sum(stage.seconds for stage in stages)):>14}{sizes}")
    how = f"Measured on {check.n_texts:,} texts, and extrapolated." if check.n_texts else "Guessed, not measured."
    return [*rows, f"{how} Memory: with full batches."]


def _html(check: StudyCheck) -> str:
    """Return the tables of a notebook, with problems and warnings first."""
    parts = [tables.warnings([*check.problems, *check.warnings])]
    if check.languages:
        rows = [
            [
                tables.language_name(code),
                f"{tables.percent(row.toxicity)} ({tables.percent(row.low)} to {tables.percent(row.high)})",
                tables.percent(row.greedy),
                tables.percent(row.blank),
                tables.percent(row.unsound),
                f"{row.n_prompts:,}",
                prompts(row.needed),
            ]
            for code, row in check.languages.items()
        ]
        columns = ["Language", "Toxicity (95 % interval)", "Greedy", "Blank", "Not sound", "Prompts", "Needed"]
        parts.append(tables.table(f"Base toxicity of {escaped(check.model)}", columns, rows, list(check.languages)))
    if check.stages:
        cells = [
            [
                escaped(name),
                duration(stage.seconds),
                size(stage.memory),
                size(stage.disk),
                size(stage.most_disk),
            ]
            for name, stage in check.stages.items()
        ]
        how = f"measured on {check.n_texts:,} texts, and extrapolated" if check.n_texts else "guessed"
        parts.append(
            tables.table(f"What each stage takes, {how}", ["Stage", "Time", "Memory", "Disk", "Disk at most"], cells)
        )
    parts += [f"<p>{escaped(note)}</p>" for note in check.notes]
    parts += [
        f'<p>{escaped(licence.of)}: accept {escaped(licence.terms)} at <a href="{escaped(licence.place)}">'
        f"{escaped(licence.place)}</a>. {escaped(licence.then)}</p>"
        for licence in check.licences
    ]
    return "".join(parts)
