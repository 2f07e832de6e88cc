"""Run a model over many rows: in batches that fit, each looked up in the journal, and shared out among processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox import processes
from xlingtox.models.batching import MOST_TEXTS, Waiting, by_length, rows_that_fit, within_memory
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import Journal, Kind, digest, in_use
from xlingtox.processes import attempted

T = TypeVar("T")
Item = TypeVar("Item")


class Batches:
    """The batches of one call. They are looked up in the journal in use, and kept there.

    Where several processes work together, all of them make the same plan of batches. Each process computes some, and
    all get the results of all, in the order of the plan. So sums over batches have the same bytes in any number of
    processes. The main process alone uses the journal.

    Batches are all computed where no journal is in use, and where a model has a hook that is not an edit of this
    library: nobody knows what it does, or for whom it reads.

    Example:
        >>> from xlingtox.models.batches import Batches, Codec
        >>> from xlingtox.models.journal import Journal, using
        >>> text = Codec(dump=str.encode, load=bytes.decode)
        >>> with using(Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")):
        ...     batches = Batches("texts", "shout", [lm], {"loud": True})
        ...     for _ in range(2):
        ...         batches.each("abc", 2, lambda some: print("computed") or "".join(some).upper(),
        ...             lambda some, result: print(some, result), codec=text)
        computed
        ['a', 'b'] AB
        computed
        ['c'] C
        ['a', 'b'] AB
        ['c'] C
    """

    def __init__(
        self, kind: Kind | None, task: str, models: Sequence[HookedLM], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Describe the call.

        Args:
            kind: what the batches hold; None for batches that no journal keeps.
            task: a name for what is computed.
            models: the models that run.
            settings: all that the batches depend on besides, in values that JSON can hold.
        """
        self._kind, self._models = kind, models
        self._call: str | None = None
        # Only the main process has a journal. The others ask it.
        if kind is not None and in_use() is not None:
            described = [_described(lm) for lm in models]
            if None not in described:
                self._call = digest({"task": task, "models": described, "settings": settings})

    def size(self, longest: int, fitting: Callable[[], int]) -> int:
        """Return how many rows a batch has: as many as fitted when the call began for the first time.

        The free memory differs from one run to the next, and from one process to another. All need the same batches.

        Args:
            longest: the positions of the longest row.
        """

        def remembered() -> int:
            place = self._place(["size", longest])
            if place is None:
                return fitting()
            content = place.read()
            return int(content if content is not None else place.write(str(fitting()).encode()))

        return processes.from_main(remembered)

    def known(self, batch: Any, codec: Codec[T]) -> T | None:
        """Return the result of one batch as it was kept; None where it was not, and in all but the main process.

        Args:
            batch: what is in the batch, in values that JSON can hold.
        """
        place = self._place(batch)
        content = None if place is None else place.read()
        return None if content is None else codec.load(content)

    def keep(self, batch: Any, codec: Codec[T], result: T) -> T:
        """Keep the result of one batch, in the main process. Return what is kept: another run may have been first."""
        place = self._place(batch)
        return result if place is None else _kept(place, codec, result, alone=processes.count() == 1)[0]

    def each(
        self,
        items: Sequence[Item],
        size: int,
        compute: Callable[[list[Item]], T],
        use: Callable[[list[Item], T], Any],
        *,
        about: Callable[[list[Item]], Any] = lambda batch: batch,
        codec: Codec[T] | None = None,
        smaller: Callable[[list[Item]], list[Item]] | None = None,
    ) -> None:
        """Compute batches of up to `size` items, in their order, and use each result in that order.

        Whenever memory runs out, batches get half as large, in all processes.

        Args:
            compute: a function that returns the result of a batch. A process calls it for its share of the batches.
            use: a function that every process calls with every batch and its result.
            about: a function that tells what is in a batch, in values that JSON can hold.
            codec: how a journal keeps a result; None where none shall.
            smaller: a function that cuts items, the first of which does not fit by itself (`Waiting`).

        Raises:
            MemoryError: a single item does not fit.
            processes.ProcessLost: another process has ended.
        """
        waiting, n_processes, number = Waiting(items, size, smaller), processes.count(), processes.index()

        # The places of the next batches in the journal, which the main process fills.
        places: list[_Place | None] = []

        def next_results() -> list[tuple[T] | None]:
            """Return what is known of the next batches, as far as each process has one to compute."""
            known: list[tuple[T] | None] = []
            n_unknown = 0
            places.clear()
            for batch in waiting.ahead():
                place = None if codec is None or self._call is None else self._place(about(batch))
                places.append(place)
                content = None if place is None else place.read()
                known.append(None if content is None or codec is None else (codec.load(content),))
                n_unknown += known[-1] is None
                if n_unknown == n_processes or n_processes == 1:
                    break
            return known

        while waiting:
            known = processes.from_main(next_results)
            batches = [waiting.take() for _ in known]
            unknown = [i for i, result in enumerate(known) if result is None]
            computed = _shared_out([batches[i] for i in unknown], compute, number)
            results = list(known)
            for i, result in zip(unknown, computed, strict=True):
                place = places[i] if places else None
                if place is not None and codec is not None and result is not None:
                    result = _kept(place, codec, result[0], alone=n_processes == 1)
                results[i] = result
            if len(unknown) < len(batches) or (n_processes > 1 and number >= len(unknown)):
                # Another run or process has computed a batch, so hooks of this process need not see one.
                for lm in self._models:
                    lm.spare_hooks()
            self._use(waiting, batches, results, use)

    def each_text(
        self,
        texts: Sequence[str],
        size: int | None,
        read: Callable[[list[int], Int[Tensor, "row pos"], Bool[Tensor, "row pos"]], T],
        use: Callable[[list[int], T], Any],
        *,
        about: Callable[[list[int]], Any] = lambda rows: rows,
        codec: Codec[T] | None = None,
    ) -> None:
        """Let the model of this call read up to `size` texts at a time, similar lengths together.

        Of a text that is longer than the model's context, only the beginning is read.

        Args:
            size: texts in one batch. By default as many as the free memory allows, up to `MOST_TEXTS`.
            read: a function of the texts' numbers, their tokens and mask, which returns the result of the batch.
            use, about, codec: as in `each`, with the texts' numbers as items.

        Raises:
            ValueError: there are no texts, a text has no tokens, or `size` is below 1.
            MemoryError: a single text does not fit.
        """
        (lm,) = self._models
        if size is not None and size < 1:
            raise ValueError(f"batch_size is {size}: expected at least 1")
        if not texts:
            raise ValueError("there are no texts to read")
        lengths = [len(ids) for ids in lm.token_ids(texts)]
        order = by_length(lengths)
        if lengths[order[0]] == 0:
            raise ValueError(f"text {order[0]} has no tokens")
        longest = min(lengths[order[-1]], lm.n_positions)
        self.each(
            order,
            size or self.size(longest, lambda: min(MOST_TEXTS, rows_that_fit(lm, longest))),
            lambda rows: read(rows, *lm.encode([texts[i] for i in rows], max_length=lm.n_positions)),
            use,
            about=about,
            codec=codec,
        )

    def _use(
        self,
        waiting: Waiting[Item],
        batches: Sequence[list[Item]],
        results: Sequence[tuple[T] | None],
        use: Callable[[list[Item], T], Any],
    ) -> None:
        """Use results up to the first batch for which memory ran out. It waits again, and those after it."""
        for i, (batch, result) in enumerate(zip(batches, results, strict=True)):
            if result is None:
                waiting.put_back([item for later in batches[i + 1 :] for item in later])
                waiting.too_many(batch)
                return
            use(batch, result[0])

    def _place(self, batch: Any) -> _Place | None:
        journal = in_use()
        if self._call is None or self._kind is None or journal is None:
            return None
        return _Place(journal, self._kind, digest({"call": self._call, "batch": batch}))


@dataclasses.dataclass(frozen=True)
class Codec(Generic[T]):
    """Two functions, to bytes and back, which change no bit.

    Example:
        >>> from xlingtox.models.batches import Codec
        >>> Codec(dump=str.encode, load=bytes.decode).dump("a")
        b'a'
    """

    dump: Callable[[T], bytes]
    load: Callable[[bytes], T]


NUMBERS: Codec[Float[np.ndarray, "row"]] = Codec(dump=np.ndarray.tobytes, load=np.frombuffer)
"""How a journal keeps one number in float64 for each row."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """The place of one batch in a journal."""

    journal: Journal
    kind: Kind
    digest: str

    def read(self) -> bytes | None:
        return self.journal.read(self.kind, self.digest)

    def write(self, content: bytes) -> bytes:
        return self.journal.write(self.kind, self.digest, content)


def _kept(place: _Place, codec: Codec[T], result: T, *, alone: bool) -> tuple[T]:
    """Keep a result, and return what is kept."""
    content = codec.dump(result)
    earlier = place.write(content)
    # Another run may have written the batch in the meantime. Processes that work together all use their own result.
    return (codec.load(earlier),) if alone and earlier is not content else (result,)


def _shared_out(
    batches: Sequence[list[Item]], compute: Callable[[list[Item]], T], number: int
) -> list[tuple[T] | None]:
    """Compute one batch in each process, and return the results of all; None where memory ran out.

    Args:
        number: the number of this process.
    """

    def mine() -> tuple[T] | None:
        return within_memory(lambda: compute(batches[number])) if number < len(batches) else None

    if processes.count() == 1:
        return [mine()] if batches else []
    # A model that runs in several processes at once must not wait for the others in the middle of a batch.
    with processes.separate():
        outcome = attempted(mine)
    return processes.results(processes.gathered(outcome))[: len(batches)]


def _described(lm: HookedLM) -> dict[str, Any] | None:
    """Return all that a model's answers depend on; None where a hook of unknown effect is on it."""
    edits = lm.edits_by_digest()
    if edits is None:
        return None
    identity = lm.identity()
    marks = lm.thought_marks
    return {
        **({} if marks is None else {"thoughts": [marks.begin_id, marks.end_id]}),
        "weights": identity.fingerprint,
        "dtype": identity.dtype,
        "edits": edits,
        "ends": lm.ends,
        "special": sorted(lm.tokenizer.all_special_ids),
    }
