"""Tune a model on each source language, and measure each tuned model in each target language."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from datasets import Dataset
from jaxtyping import Float

from xlingtox import languages as table
from xlingtox.checking import checked
from xlingtox.data import PreferencePairs, Prompts
from xlingtox.data.sides import PairsOrder, ordered_pairs
from xlingtox.data.translations import Parallel
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.matrix.asked import Asked
from xlingtox.matrix.folder import MatrixFolder
from xlingtox.matrix.measuring import Measuring
from xlingtox.matrix.result import TransferMatrix
from xlingtox.matrix.runs import Cell, Run, runs, stacked
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, ScorerIdentity
from xlingtox.transfer import retrieval_between
from xlingtox.tuning import MINI, Recipe, tune


@checked
def transfer_matrix(
    lm: HookedLM,
    pairs: PreferencePairs,
    prompts: Prompts,
    *,
    scorer: Scorer,
    output_dir: str | Path,
    recipe: Recipe = MINI,
    languages: Sequence[str] | None = None,
    held_out: Dataset | None = None,
    parallel: Parallel | None = None,
    properties: Mapping[str, Mapping[tuple[str, str], float]] | None = None,
    neurons: NeuronSet | None = None,
    shuffled: bool = True,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    identify_language: Identifier | None = None,
    keep_models: bool = True,
    progress: bool = True,
) -> TransferMatrix:
    """Tune a model on each source language, and measure each tuned model in each target language.

    A row of the matrix shows what one source teaches, and a column what one target learns. All models continue the same
    prompts with the same random numbers, so each cell is compared with the base prompt by prompt. Beside each source
    stands a control: the same pairs, with sides that a coin has exchanged. What these pairs teach is no preference.

    Each cell is a file in `output_dir`, as soon as it is measured. The same call goes on where it was broken off, and
    gives the result that it would have given. Tuned models are in `tuned/` and `shuffled/`, as checkpoints.

    Args:
        lm: the base, which is left as it is.
        pairs: preference pairs of all sources, with the columns `language, prompt, chosen, rejected`. If languages have
            different numbers of pairs, each is tuned on as many as the one with fewest, with a `UserWarning`.
        prompts: prompts of all targets. In a table with a column `index`, prompts of the same index are translations.
        scorer: any scorer. `scoring.Cached(scorer)` scores no text twice, and resumes after an interrupt.
        output_dir: the folder of the matrix, made if it does not exist.
        recipe: how each source is tuned. Its own `seed` decides the order of the pairs.
        languages: the languages that are both sources and targets. By default the sources are the languages of the
            pairs, and the targets those of the prompts.
        held_out: columns `language, text`, for the perplexity of each target.
        parallel: translations, with a column for each language, to ask how well the base finds a sentence's translation
            between source and target. That is the property "retrieval".
        properties: numbers of your own for each source and target, such as `{"mixing": {("en", "es"): 0.2, ...}}`.
        neurons: neurons whose mean activation is read in all models, on the base's greedy continuations, beside random
            neurons that are as active there.
        shuffled: whether each source has its control, which doubles the work.
        n_samples, max_new_tokens: how many continuations of each prompt are sampled, and how long they are.
        seed: decides the samples, the random neurons, and how the coin falls. Translated pairs at the same place in
            their languages are exchanged together.
        identify_language: a function that tells the language of continuations, as in `compare`.
        keep_models: False removes a tuned model's weights once all its cells are measured.

    Raises:
        ValueError: the pairs have no column `language`; there are fewer than three sources or three targets; one of
            `languages` has no pairs or no prompts; the scorer or the held-out texts do not cover a target; a property
            lacks a cell or has one too many; pairs or a model that `tune` refuses; or the folder holds another
            matrix.
        Diverged: the loss of a source is not a finite number any more. The cells before are kept.
        OSError: the folder cannot be written.

    Example:
        >>> codes = ["en", "es", "fr"]
        >>> recipe = xt.tuning.Recipe(steps=1, batch_size=2, learning_rate=1e-3, warm_up=0)
        >>> matrix = xt.transfer_matrix(lm, xt.mini.pairs(codes, n=4), xt.mini.prompts(n=2, languages=codes),
        ...     scorer=xt.mini.scorer(), output_dir=tmp_path / "matrix", recipe=recipe, shuffled=False,
        ...     n_samples=1, max_new_tokens=4, progress=False)
        >>> matrix.sources, matrix.targets
        (('en', 'es', 'fr'), ('en', 'es', 'fr'))
    """
    asked = Asked.of(
        lm,
        pairs,
        prompts,
        scorer=scorer,
        recipe=recipe,
        only=languages,
        held_out=held_out,
        parallel=parallel,
        properties=properties,
        neurons=neurons,
        sampling={"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed},
        identify_language=identify_language,
    )
    folder = MatrixFolder(output_dir)
    folder.claim(asked.record(lm))
    rows = runs(asked.sources, shuffled=shuffled)
    _measure(lm, asked, folder, rows, keep_models=keep_models, progress=progress)
    values, perplexity = stacked(folder.read(rows, asked.targets))
    return TransferMatrix(
        asked.sources,
        asked.targets,
        values,
        perplexity,
        asked.meanings,
        {**_properties(lm, asked, progress=progress), **asked.properties},
        ScorerIdentity.of(scorer),
        lm.identity(),
        dataclasses.asdict(recipe),
        shuffled,
    )


def _measure(
    lm: HookedLM, asked: Asked, folder: MatrixFolder, rows: Sequence[Run], *, keep_models: bool, progress: bool
) -> None:
    """Tune and measure what is not measured yet, run by run."""
    measuring: Measuring | None = None
    with (
        bar("transfer matrix", total=len(rows), unit="model", progress=progress) as shown,
        _quick_collections() as collect,
    ):
        for run in rows:
            shown.note(run.name)
            if not folder.has(run, asked.targets):
                if measuring is None:
                    with folder.journal(Run("base")):
                        measuring = Measuring(lm, asked, progress=progress)
                with folder.journal(run):
                    cells = measuring.base() if run.kind == "base" else _tuned_cells(run, measuring, folder)
                folder.write(run, cells)
                collect()
            if run.source:
                folder.forget(run)
                if not keep_models:
                    folder.remove_weights(run)
            shown.update()
    folder.forget(Run("base"))


def _tuned_cells(run: Run, measuring: Measuring, folder: MatrixFolder) -> dict[str, Cell]:
    """Tune the model of a run, or load it where it is tuned, and measure it in all targets."""
    asked, progress = measuring.asked, measuring.progress
    order: PairsOrder = "shuffled" if run.kind == "shuffled" else "given"
    pairs = ordered_pairs(asked.pairs[run.source], order, seed=asked.sampling["seed"])
    place = folder.ready_to_tune(run)
    return measuring.of(tune(measuring.lm, pairs, output_dir=place, recipe=asked.recipe, progress=progress))


@contextmanager
def _quick_collections() -> Iterator[Callable[[], None]]:
    """Yield a function that frees what is not needed any more, such as the last model, and spares the rest.

    A model is freed by a collection only, because its modules refer to each other. Tuning collects several times too.
    Each time, all objects of all imported packages are looked through, which takes longer than to tune a small model
    for a step. So those that are still needed are put aside until the end of the block.
    """
    was_frozen = gc.get_freeze_count()

    def collect() -> None:
        gc.collect()
        if not was_frozen:
            gc.freeze()

    collect()
    try:
        yield collect
    finally:
        if not was_frozen:
            gc.unfreeze()


def _properties(lm: HookedLM, asked: Asked, *, progress: bool) -> dict[str, Float[np.ndarray, "source target"]]:
    """Return what is known of each two languages besides what the caller gave."""
    properties = {
        name: np.array([[float(of(source) == of(target)) for target in asked.targets] for source in asked.sources])
        for name, of in (("same_script", table.script), ("same_family", table.family))
    }
    if asked.parallel is not None:
        between = retrieval_between(lm, asked.parallel, progress=progress)
        rows, columns = ([between.languages.index(code) for code in codes] for codes in (asked.sources, asked.targets))
        # Each sentence is searched both ways, as in `bilingual_retrieval`.
        properties["retrieval"] = (between.top1 + between.top1.T)[np.ix_(rows, columns)] / 2
    return properties
