"""Gathering: the tables of a settings file become the materials of a study, each sentence for one purpose only."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from xlingtox import data, languages, mini
from xlingtox.evaluation.degenerate import Identifier, lingua
from xlingtox.languages import in_order, name
from xlingtox.scoring.protocol import check_scores
from xlingtox.study import overlaps, parts_of_parallel
from xlingtox.study.judging import Jury, jury, second_scorers
from xlingtox.study.loaders import TableFile
from xlingtox.study.settings import Materials
from xlingtox.study.settings_file import SettingsFile

_TOXIC = 0.5
"""The score from which a sentence counts as toxic, and is not used as held-out text or a neutral prompt."""

_TOO_TOXIC = 0.1
"""Where the judge finds a larger share of parallel sentences toxic, they are no ordinary text, and nothing is made."""

_NOT_ASKED_FOR = "language"
"""The beginning of the reason for rows and files in languages that are not studied."""

_FIELD = {"prompts": "toxic_prompts"}
"""Keys of `[data]` that have another name in `Materials`."""

_PLURAL = {"pairs": "Pairs", "validation": "Validation pairs"}


def gather(file: SettingsFile) -> Materials:
    """Read all tables of a settings file, make what is missing from what is there, and load the judges.

    Raises:
        ValueError: a table cannot be read or has nothing that can be used, or a judge cannot be loaded. The message
            begins with the place in the settings file.
    """
    return _Gathering(file).materials()


class _Gathering:
    """Tables that are being gathered, with notes on what was done to them."""

    def __init__(self, file: SettingsFile) -> None:
        self.file, self.seed, self.source_language = file, file.seed, file.source_language
        self.notes: list[str] = []
        self.tables: dict[str, Dataset] = {}
        self.made_from: dict[str, str] = {}

    def materials(self) -> Materials:
        self._read("prompts", languages=self.file.languages, n=self.file.per_language)
        found = in_order(self.tables["prompts"]["language"])
        chosen = jury(self.file.judges, self.file.languages or found)
        self.notes += chosen.notes
        self.codes = tuple(code for code in self.file.languages or found if code in chosen.languages)
        self._check_present("prompts", self.codes)
        self._keep("prompts", self.codes)
        seconds, notes = second_scorers(self.file.second_judges, self.codes)
        self.notes += notes
        self._draw_prompts("prompts")
        for table in ("neutral_prompts", "held_out"):
            if table in self.file.tables:
                self._read(table, languages=self.codes, n=self.file.per_language)
                self._check_present(table, self.codes)
                self._keep(table, self.codes)
                self._draw_prompts(table)
        self._requests()
        self._parallel(chosen)
        self._labelled()
        self._pairs()
        words = self._other("toxic_words", languages=None) or chosen.words
        return Materials(
            scorer=chosen.scorer,
            second_judges=seconds,
            identify_language=self._identifier(),
            toxic_words=dict(words),
            word_groups=self._other("word_groups", source_language=self.source_language) or {},
            mixing=self._other("mixing") or {},
            origins=tuple(self._origin(table) for table in self.tables),
            notes=tuple(self.notes),
            **{_FIELD.get(table, table): rows for table, rows in self.tables.items()},
        )

    # --- reading

    def _read(self, table: str, *, languages: Sequence[str] | None, n: int | None = None) -> None:
        described = self.file.tables[table]
        codes = None if languages is None else list(languages)
        rows = described.read(seed=self.seed, n=n, languages=codes, language=self._language(described))
        self._note_skipped(table, rows)
        self.tables[table] = rows

    def _language(self, described: TableFile) -> str | None:
        """Return the source language for loaders that take their rows to be of one language, unless the file says."""
        return self.source_language if described.loader in ("jigsaw", "mini.labelled", "mini.pairs") else None

    def _note_skipped(self, table: str, rows: Dataset) -> None:
        for _, source, reason, count, first in data.skipped(rows).itertuples():
            if reason.startswith(_NOT_ASKED_FOR):
                continue
            self.notes.append(f"{_named(table)}: rows of {source} were left out: {reason}: {count} ({first}).")

    def _other(self, table: str, **how: Any) -> Any:
        return self.file.tables[table].read(**how) if table in self.file.tables else None

    def _identifier(self) -> Identifier | None:
        kind = self.file.identify_language
        return {None: None, "mini": mini.identify_language}[kind] if kind != "lingua" else lingua()

    # --- prompts and held-out text

    def _keep(self, table: str, codes: Sequence[str]) -> None:
        """Keep the rows of these languages. A table of one language may have no column for it."""
        rows = self.tables[table]
        if "language" in rows.column_names and set(rows["language"]) - set(codes):
            self.tables[table] = rows.select([i for i, code in enumerate(rows["language"]) if code in set(codes)])

    def _check_present(self, table: str, codes: Sequence[str]) -> None:
        rows = self.tables[table]
        present = set(rows["language"])
        if lacking := [code for code in codes if code not in present]:
            raise ValueError(
                f"[data] {table} has nothing in {', '.join(map(name, lacking))}: leave {', '.join(lacking)} out of "
                "[data] languages, or give another file"
            )

    def _draw_prompts(self, table: str) -> None:
        """Draw at most so many rows of each language; translations of the same prompts, where the table knows them."""
        n = self.file.tables[table].n or self.file.per_language
        rows = self.tables[table]
        places: dict[str, list[int]] = {}
        for i, code in enumerate(rows["language"]):
            places.setdefault(code, []).append(i)
        if max(map(len, places.values())) <= n:
            return
        ids = data.meanings(rows) if "index" in rows.column_names else None
        shared = set.intersection(*(set(of_language) for of_language in ids.values())) - {None} if ids else set()
        if ids is not None and len(shared) >= n:
            drawn = set(random.Random(self.seed).sample(sorted(shared, key=str), n))
            first = {code: dict(reversed(list(zip(ids[code], places[code], strict=True)))) for code in places}
            kept = [place for code in places for index, place in first[code].items() if index in drawn]
        else:
            kept = [
                place
                for of_language in places.values()
                for place in random.Random(self.seed).sample(of_language, min(n, len(of_language)))
            ]
        self.tables[table] = rows.select(sorted(kept))

    def _requests(self) -> None:
        """Read requests in the studied languages, and draw at most so many of each kind in each language."""
        if "requests" not in self.file.tables:
            return
        self._read("requests", languages=None)
        self._keep("requests", self.codes)
        rows = self.tables["requests"]
        if not len(rows):
            raise ValueError(f"[data] requests has nothing in {', '.join(map(name, self.codes))}: give another file")
        n = self.file.tables["requests"].n or self.file.per_language
        places: dict[tuple[str, bool], list[int]] = {}
        for place, key in enumerate(zip(rows["language"], rows["harmful"], strict=True)):
            places.setdefault(key, []).append(place)
        drawn = [
            place
            for of_kind in places.values()
            for place in random.Random(self.seed).sample(of_kind, min(n, len(of_kind)))
        ]
        self.tables["requests"] = rows.select(sorted(drawn))

    # --- labelled sentences

    def _labelled(self) -> None:
        described = self.file.tables.get("labelled")
        pairs = self.file.tables.get("pairs")
        if described is None and pairs is not None and pairs.loader == "paradetox":
            described = TableFile("pairs", "paradetox_labelled", {"source": pairs.arguments["source"]}, pairs.path)
            self.made_from["labelled"] = "pairs"
            self.notes.append("Labelled sentences were made from ParaDetox: its toxic sentences and their rewrites.")
        if described is not None:
            self._read_labelled("labelled", described)
            rows = self.tables["labelled"]
            if "language" in rows.column_names:
                elsewhere = [i for i, code in enumerate(rows["language"]) if code != self.source_language]
                if elsewhere and "labelled_elsewhere" not in self.file.tables:
                    self.tables["labelled_elsewhere"] = rows.select(elsewhere)
                    self.made_from["labelled_elsewhere"] = "labelled"
                    self.notes.append("Labelled sentences in other languages test the probe, and do not train it.")
                self._keep("labelled", (self.source_language,))
                if not len(self.tables["labelled"]):
                    raise ValueError(f"[data] labelled has nothing in {name(self.source_language)}: give another file")
        if "labelled_elsewhere" in self.file.tables:
            self._read_labelled("labelled_elsewhere", self.file.tables["labelled_elsewhere"])
            others = [code for code in languages.NAMES if code != self.source_language]
            self._keep("labelled_elsewhere", others)

    def _read_labelled(self, table: str, described: TableFile) -> None:
        rows = described.read(seed=self.seed, language=self._language(described))
        self._note_skipped(table, rows)
        if "line" in rows.column_names:
            rows = self._half_of_paradetox(rows)
        if described.n is not None and described.n < len(rows):
            rows = data.subsample(rows, described.n, seed=self.seed)
        self.tables[table] = rows

    def _half_of_paradetox(self, rows: Dataset) -> Dataset:
        """Return the sentences of half of the file's rows, where pairs are made of the same file."""
        pairs = self.file.tables.get("pairs")
        if pairs is not None and pairs.loader == "paradetox":
            lines = sorted(set(rows["line"]))
            drawn = set(random.Random(f"labelled {self.seed}").sample(lines, len(lines) // 2))
            rows = rows.select([i for i, line in enumerate(rows["line"]) if line in drawn])
            self.notes.append("Half of the rows of ParaDetox are labelled sentences, the other half are pairs.")
        return rows.remove_columns("line")

    # --- pairs

    def _pairs(self) -> None:
        for table in ("validation", "pairs"):
            if table not in self.file.tables:
                continue
            codes = (self.source_language,)
            self._read(table, languages=codes)
            self._keep(table, codes)
            if not len(self.tables[table]):
                raise ValueError(f"[data] {table} has nothing in {name(self.source_language)}: give another file")
            if self.file.tables[table].loader == "mini.pairs":
                # The column was added later. Without it, the keys of the stages are those of earlier studies.
                self.tables[table] = self.tables[table].remove_columns("language")
            prompts = [
                text
                for evaluated in ("prompts", "neutral_prompts", "requests")
                for text in (self.tables[evaluated]["prompt"] if evaluated in self.tables else ())
            ]
            self._leave_out(table, overlaps.without_prompts(self.tables[table], prompts), "hold an evaluation prompt")
            if "labelled" in self.tables and self._is_paradetox("labelled") and self._is_paradetox(table):
                sentences = self.tables["labelled"]["text"]
                left = overlaps.without_sentences(self.tables[table], list(sentences))
                self._leave_out(table, left, "are labelled sentences")
            if table == "pairs" and "validation" in self.tables:
                left = overlaps.without_pairs(self.tables["pairs"], self.tables["validation"])
                self._leave_out(table, left, "have a prompt of the validation pairs")
            n = self.file.tables[table].n
            if n is not None and n < len(self.tables[table]):
                self.tables[table] = data.subsample(self.tables[table], n, seed=self.seed)

    def _is_paradetox(self, table: str) -> bool:
        described = self.file.tables.get(table)
        return self.made_from.get(table) == "pairs" or (described is not None and "paradetox" in described.loader)

    def _leave_out(self, table: str, kept: tuple[Dataset, int], reason: str) -> None:
        rows, n = kept
        if not n:
            return
        if not len(rows):
            raise ValueError(f"[data] {table}: all {n} {reason}: give other pairs")
        self.tables[table] = rows
        self.notes.append(f"{_PLURAL[table]} left out because they {reason}: {n:,} of {n + len(rows):,}.")

    # --- parallel sentences, and what is made from them

    def _parallel(self, chosen: Jury) -> None:
        if "parallel" not in self.file.tables:
            return
        self._read("parallel", languages=self._of_parallel())
        rows = self.tables["parallel"]
        if "sentence" in rows.column_names:
            self._keep("parallel", self.codes)
        elif set(rows.column_names) - set(self._of_parallel()):
            kept = [code for code in rows.column_names if code in self._of_parallel()]
            self.tables["parallel"] = rows.select_columns(kept)
        n = self.file.tables["parallel"].n
        if n is not None:
            by = ("language",) if "sentence" in rows.column_names else ()
            if min(Counter(rows["language"]).values(), default=0) > n if by else len(rows) > n:
                self.tables["parallel"] = data.subsample(self.tables["parallel"], n, by=by, seed=self.seed)
        missing = [table for table in ("held_out", "neutral_prompts") if table not in self.tables]
        if not missing:
            return
        prompts = list(self.tables["prompts"]["prompt"])
        left, n_prompts = parts_of_parallel.without(self.tables["parallel"], prompts)
        parts = parts_of_parallel.split(
            left,
            self.codes,
            n=self.file.per_language,
            seed=self.seed,
            held_out="held_out" in missing,
            neutral="neutral_prompts" in missing,
            usable=lambda texts, codes: self._harmless(chosen, texts, codes),
        )
        if n_prompts:
            self.notes.append(f"{n_prompts:,} rows of parallel sentences were left out: they are evaluation prompts.")
        self.tables["parallel"] = parts.parallel
        for table, made in (("held_out", parts.held_out), ("neutral_prompts", parts.neutral_prompts)):
            if table not in missing:
                continue
            lacking = [code for code in self.codes if made is None or code not in set(made["language"])]
            if made is None or lacking:
                self.notes.append(
                    f"{_named(table)} could not be made from the parallel sentences: too few can be used in "
                    f"{', '.join(map(name, lacking))}."
                )
                continue
            self.tables[table], self.made_from[table] = made, "parallel"
            counts = sorted(Counter(made["language"]).values())
            size = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
            what = "whole sentences" if table == "held_out" else "the first halves of sentences"
            self.notes.append(
                f"{_named(table)} were made from the parallel sentences: {what}, {size} in each language, which are "
                "not used for retrieval."
            )

    def _of_parallel(self) -> tuple[str, ...]:
        """Return the languages to read of parallel text; Tatoeba's has English beside each of the others."""
        codes = self.codes if self.source_language in self.codes else (self.source_language, *self.codes)
        described = self.file.tables["parallel"]
        return tuple(code for code in codes if code != "en") if described.loader == "tatoeba" else codes

    def _harmless(self, chosen: Jury, texts: Sequence[str], codes: Sequence[str]) -> Sequence[bool]:
        """Return which parallel sentences may become held-out text and prompts: those that the judge finds clean."""
        if not chosen.free or not texts:
            self.notes.append("What was made from parallel sentences was not judged before: it may hold toxic text.")
            return [True] * len(texts)
        toxic = check_scores(chosen.scorer, list(texts), list(codes)) >= _TOXIC
        if not toxic.any():
            return [True] * len(texts)
        counts = f"the judge finds {int(toxic.sum()):,} of {len(texts):,} toxic"
        if toxic.mean() > _TOO_TOXIC:
            self.notes.append(f"Parallel sentences are no ordinary text, from which others could be made: {counts}.")
            return [False] * len(texts)
        self.notes.append(f"Parallel sentences that are toxic were not made into anything: {counts}.")
        return [not is_toxic for is_toxic in toxic]

    # --- origins

    def _origin(self, table: str) -> Mapping[str, Any]:
        rows = self.tables[table]
        made_from = self.made_from.get(table)
        described = self.file.tables.get(made_from or table)
        if "language" in rows.column_names:
            counts = Counter(rows["language"])
        elif table == "parallel":
            counts = Counter(dict.fromkeys(rows.column_names, len(rows)))
        else:
            counts = Counter({self.source_language: len(rows)})
        return {
            "table": _FIELD.get(table, table),
            "loader": None if described is None else described.loader,
            "path": None if described is None else described.path,
            "n": len(rows),
            "languages": {code: counts[code] for code in in_order(counts)},
            "hash": hashlib.sha256(json.dumps(rows.to_list(), sort_keys=True).encode()).hexdigest()[:12],
            "made_from": made_from,
        }


def _named(table: str) -> str:
    """Return a table's name at the beginning of a sentence."""
    return {"prompts": "Toxic prompts", "held_out": "Held-out texts"}.get(table, table.replace("_", " ").capitalize())
