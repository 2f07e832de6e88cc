"""The judges of a settings file: checked by their arguments, and made into one scorer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlingtox import data, mini
from xlingtox.languages import in_order, name
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.probe import Probe
from xlingtox.scoring import (
    ByLanguage,
    ClassifierScorer,
    GuardScorer,
    PerspectiveReplay,
    PerspectiveScorer,
    ProbeScorer,
    Scorer,
    WordlistScorer,
)
from xlingtox.study.arguments import Signature, arguments, is_hub_name, resolved
from xlingtox.study.mistakes import Mistakes, did_you_mean, toml


def _wordlist(
    source: str | Path | None = None,
    *,
    words: Mapping[str, Sequence[str] | Mapping[str, float]] | None = None,
    languages: Sequence[str] | None = None,
    everywhere: bool = False,
    name: str = "wordlist",
) -> Scorer:
    listed = dict(words or {}) if source is None else data.word_lists(source, languages=languages)
    return WordlistScorer(listed, everywhere=everywhere, name=name)


def _probe(source: str | Path, *, model: str, languages: Sequence[str]) -> Scorer:
    # The scorer's model must be without edits, so it is not the model of the study.
    return ProbeScorer(HookedLM.load(model), Probe.load(source), languages=languages, progress=False)


_UNSEEN = frozenset({"progress", "tokenizer"})

KINDS: Mapping[str, Signature] = {
    "wordlist": Signature(_wordlist),
    "classifier": Signature(ClassifierScorer, hub=True, left_out=_UNSEEN, renamed={"path": "source"}),
    "guard": Signature(
        GuardScorer,
        hub=True,
        left_out=_UNSEEN | {"template"},
        renamed={"path": "model"},
        files=frozenset({"model"}),
    ),
    "perspective": Signature(
        PerspectiveScorer,
        renamed={"key": "api_key", "key_env": "api_key"},
        files=frozenset(),
        left_out=frozenset({"progress", "cache"}),
    ),
    "replay": Signature(PerspectiveReplay),
    "probe": Signature(_probe),
    "mini": Signature(mini.scorer, renamed={}),
}
"""Each kind of judge: what makes it, and the keys that it takes."""

_NEEDS_NO_TEXT_SENT = ("wordlist", "classifier", "guard", "probe", "mini")


@dataclass(frozen=True)
class Judge:
    """A judge as a settings file describes it: checked, and not loaded yet.

    Attributes:
        kind: one of `KINDS`.
        arguments: the arguments of its scorer; a key is among them.
        strict: whether a language of the prompts that no judge covers is an error.
        section: the section of the file that it stands in, which messages name.

    Example:
        >>> from xlingtox.study.judging import Judge
        >>> Judge("mini").scorer().name
        "miniature's insults"
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    strict: bool = False
    section: str = "judge"

    @property
    def free(self) -> bool:
        """Whether it can judge any text, and asks no service for that."""
        return self.kind in _NEEDS_NO_TEXT_SENT

    def scorer(self) -> Scorer:
        """Load the scorer.

        Raises:
            ValueError: a file or a model cannot be read; the message begins with the place in the settings file.
        """
        try:
            return KINDS[self.kind].call(**self.arguments)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"[{self.section}] {self.kind}: {error}") from error


def check_judges(
    written: Sequence[Mapping[str, Any]],
    folder: Path,
    model: str | None,
    mistakes: Mistakes,
    *,
    section: str = "judge",
) -> tuple[Judge, ...]:
    """Check the judges of a settings file; those with mistakes are left out.

    Args:
        written: the tables of the file, each with its `kind`.
        folder: the folder to which paths are relative.
        model: the model that is studied, on which a probe judges unless the file names another.
        section: the section that holds the tables.
    """
    judges = []
    for number, table in enumerate(written):
        place = (section, number) if len(written) > 1 else (section,)
        before = len(mistakes.lines)
        kind, strict = str(table.get("kind")), table.get("strict", False)
        if "kind" not in table:
            mistakes.add((*place, "kind"), f"is missing: write one of {', '.join(map(toml, KINDS))}")
        elif kind not in KINDS:
            mistakes.value((*place, "kind"), table["kind"], f"there is no such judge: {did_you_mean(kind, KINDS)}")
        if not isinstance(strict, bool):
            mistakes.value((*place, "strict"), strict, "write true or false")
        if kind in KINDS:
            rest = {key: value for key, value in table.items() if key not in ("kind", "strict")}
            if kind == "probe" and model is not None:
                rest.setdefault("model", model)
            if kind == "perspective":
                rest.setdefault("key_env", "PERSPECTIVE_API_KEY")
            given = arguments(KINDS[kind], rest, place, folder, mistakes)
            if kind == "wordlist" and ("path" in rest) == ("words" in rest):
                mistakes.add((*place, "path"), 'and words: write one of them, such as path = "wordlists"')
            if kind == "probe" and isinstance(given.get("model"), str) and not is_hub_name(given["model"], folder):
                given["model"] = str(resolved(given["model"], folder))
            if len(mistakes.lines) == before:
                judges.append(Judge(kind, given, strict is True, section))
    return tuple(judges)


@dataclass(frozen=True)
class Jury:
    """The scorer of a study, and the languages of its prompts that it covers.

    Attributes:
        scorer: one judge, or several as one.
        languages: the languages that are covered, in their order.
        notes: a sentence about languages that are dropped, if there are any.
        free: whether it can judge any text, and asks no service for that.
        words: the toxic words of judges that have a list.
    """

    scorer: Scorer
    languages: tuple[str, ...]
    notes: tuple[str, ...]
    free: bool
    words: Mapping[str, Sequence[str]]


def jury(judges: Sequence[Judge], languages: Iterable[str]) -> Jury:
    """Load the judges, and give each language to the first that covers it.

    Raises:
        ValueError: no language is covered; or one is not, and a judge is strict.
    """
    scorers = [judge.scorer() for judge in judges]
    scorer = scorers[0] if len(scorers) == 1 else ByLanguage(scorers)
    wanted = in_order(languages)
    covered = tuple(code for code in wanted if code in scorer.languages)
    notes = []
    if lacking := [code for code in wanted if code not in scorer.languages]:
        names = ", ".join(f"{name(code)} ({code})" for code in lacking)
        if not covered or any(judge.strict for judge in judges):
            raise ValueError(
                f"[judge] covers none of {names}, in which there are prompts: write another [[judge]] for "
                "them, or leave them out of [data] languages"
            )
        notes.append(f"No judge covers {names}: the prompts in {'it' if len(lacking) == 1 else 'them'} were dropped.")
    return Jury(scorer, covered, tuple(notes), all(judge.free for judge in judges), _words(judges))


def second_scorers(judges: Sequence[Judge], languages: Iterable[str]) -> tuple[tuple[Scorer, ...], tuple[str, ...]]:
    """Load the judges that score the same texts again, and say in a sentence which languages each leaves out.

    Raises:
        ValueError: a judge covers none of the languages; or not all, and is strict.
    """
    wanted, scorers, notes = in_order(languages), [], []
    for judge in judges:
        scorer = judge.scorer()
        lacking = [code for code in wanted if code not in scorer.languages]
        names = ", ".join(f"{name(code)} ({code})" for code in lacking)
        if len(lacking) == len(wanted) or (lacking and judge.strict):
            raise ValueError(f"[second_judge] {judge.kind} does not cover {names}: leave it out, or take another")
        if lacking:
            notes.append(f"The second judge {scorer.name} does not cover {names}: nothing is said there under it.")
        scorers.append(scorer)
    return tuple(scorers), tuple(notes)


def _words(judges: Sequence[Judge]) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    for judge in judges:
        listed: Mapping[str, Any] = {}
        if judge.kind == "mini":
            listed = mini.toxic_words()
        elif judge.kind == "wordlist":
            listed = judge.arguments.get("words") or {}
            if (source := judge.arguments.get("source")) is not None:
                listed = data.word_lists(source, languages=judge.arguments.get("languages"))
        for code, of_language in listed.items():
            words.setdefault(code, list(of_language))
    return words
