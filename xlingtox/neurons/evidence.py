"""Ask whether there is anything to find: a probe, its top neurons and their words, next to what chance gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Labelled, labelled_texts
from xlingtox.data.tabular import column_names, columns
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.states import mean_states
from xlingtox.neurons.areas import Auc, areas, auc
from xlingtox.neurons.chance import shuffled_dimensions, shuffled_label_directions, top_neurons
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.judging import ALPHA, FEWEST_SHUFFLES, Chance, Ranking, Separation, Words, judged
from xlingtox.neurons.localize import check_k
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import PENALTY, Probe, SplitStates, check_penalty
from xlingtox.neurons.toxic_tokens import promoted_counts, toxic_tokens, vectors_at
from xlingtox.progress import bar
from xlingtox.verdicts import Verdict

ALL = "all"
"""The key of the words of all languages together in `Evidence.words`. The verdict is on these."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Evidence:
    """The evidence that toxicity can be localised in the top neurons of a model, and the verdicts on it.

    Every ranking has a top, and every top neuron promotes some token. So each number stands next to what chance gives:
    probes fitted to shuffled labels, and the same probe in models with shuffled value vectors.

    Attributes:
        candidates: the top neurons by cosine, as `localize.by_cosine` returns them. They carry the verdicts.
        probe: the probe that ranked them.
        separations: how well the probe tells toxic from other sentences, in each language; the first is the one that
            it was fitted in.
        ranking: the cosines of the candidates.
        words: the toxic words that they promote, under "all" and under each language's code; empty where no word list
            was given.
        without_words: the languages with labels in which no token stands for a listed word.
        verdicts: the verdict on each claim, and last that on the whole.
        n_shuffles: how often labels and weights were shuffled.

    Example:
        >>> evidence = xt.evidence(lm, xt.mini.labelled("en", n=200), k=50, progress=False)
        >>> evidence.verdict.claim
        'Toxicity can be localised in these 50 neurons.'
        >>> evidence.candidates.neurons == xt.localize.by_cosine(lm, evidence.probe, k=50).neurons
        True
        >>> evidence.candidates.evidence == evidence.verdicts
        True
    """

    candidates: NeuronSet
    probe: Probe
    separations: Mapping[str, Separation]
    ranking: Ranking
    words: Mapping[str, Words]
    without_words: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    n_shuffles: int

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole: whether toxicity can be localised in the candidates."""
        return self.verdicts[-1]

    def __repr__(self) -> str:
        return f"Evidence({self.verdict.verdict}: {self.verdict.claim} {self.verdict.reason})"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each measured value and each of its controls.

        The columns are `measure, language, value, low, high, control, chance, chance_high, p`. `low` and `high` are the
        value's 95 % interval. `chance` is the control's mean and `chance_high` its 95th percentile. For random neurons
        it is the 97.5th, and there is no p-value.
        """
        source = next(iter(self.separations))
        rows: list[tuple[Any, ...]] = []
        for code, separation in self.separations.items():
            area = separation.auc
            rows.append(("auc", code, area.value, area.low, area.high, *_cells("shuffled labels", separation.labels)))
        ranking = self.ranking
        for control, chance in (("shuffled labels", ranking.labels), ("shuffled weights", ranking.weights)):
            rows.append(("mean cosine", source, ranking.mean, math.nan, math.nan, *_cells(control, chance)))
        for code, words in self.words.items():
            observed = ("toxic tokens", code, words.count, words.low, words.high)
            rows.append((*observed, *_cells("shuffled labels", words.labels)))
            rows.append((*observed, *_cells("shuffled weights", words.weights)))
            rows.append((*observed, "random neurons", words.random[0], words.random[2], math.nan))
        names = ["measure", "language", "value", "low", "high", "control", "chance", "chance_high", "p"]
        return pd.DataFrame(rows, columns=names)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: each claim, the verdict on it and why; the one on the whole comes first."""
        rows = [
            [escaped(verdict.claim), f"<strong>{verdict.verdict}</strong>", escaped(verdict.reason)]
            for verdict in (self.verdict, *self.verdicts[:-1])
        ]
        caption = f"Evidence in {escaped(self.probe.model)}: {self.verdict.verdict}"
        return tables.table(caption, ["Claim", "Verdict", "Reason"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file.

        Example:
            >>> evidence = xt.evidence(lm, xt.mini.labelled("en", n=200), k=50, progress=False)
            >>> evidence.save(tmp_path / "evidence.safetensors")
            >>> xt.Evidence.load(tmp_path / "evidence.safetensors") == evidence
            True
        """
        names = ("separations", "ranking", "words", "without_words", "verdicts", "n_shuffles")
        about = {name: _plain(getattr(self, name)) for name in names}
        probe = {field.name: getattr(self.probe, field.name) for field in dataclasses.fields(Probe)}
        about["probe"] = _plain(probe | {"direction": None})
        about["candidates"] = [self.candidates.neurons, self.candidates.scores]
        files.write_tensors(path, {"direction": self.probe.direction}, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Evidence:
        """Read evidence that `save` wrote; raise ValueError, with the path, where the file holds none."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "evidence"):
            verdicts = tuple(Verdict(**row) for row in about["verdicts"])
            neurons, scores = about["candidates"]
            model = about["probe"].pop("model")
            return cls(
                candidates=dataclasses.replace(NeuronSet.of(neurons, scores=scores), evidence=verdicts),
                probe=Probe(
                    **about["probe"] | {"direction": tensors["direction"], "model": model and Identity(**model)}
                ),
                separations={
                    code: Separation(Auc(**row["auc"]), Chance(**row["labels"]))
                    for code, row in about["separations"].items()
                },
                ranking=Ranking(**_with_chances(about["ranking"])),
                words={
                    code: Words(**_with_chances(row) | {"random": tuple(row["random"])})
                    for code, row in files.with_nan(about["words"]).items()
                },
                without_words=tuple(about["without_words"]),
                verdicts=verdicts,
                n_shuffles=about["n_shuffles"],
            )


@checked
def evidence(
    lm: HookedLM,
    labelled: Labelled,
    *,
    k: int = 100,
    labelled_elsewhere: Mapping[str, Labelled] | None = None,
    toxic_words: Mapping[str, Sequence[str]] | None = None,
    source_language: str = "en",
    held_out_share: float = 0.1,
    penalty: float = PENALTY,
    n_shuffles: int = 199,
    n_random: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Evidence:
    """Fit a probe, rank all neurons by it, and say whether that found more than chance would.

    Read this before you believe a list of neurons. Three things are asked. Does the probe tell toxic from other
    sentences, and in which languages? Do the top neurons point along it more than they do by chance? Do they promote
    toxic words? There are two controls. Probes fitted to shuffled labels, on the same states, show what any direction
    would find here. The same probe in models whose value vectors have shuffled entries shows what it would find in any
    model. A claim has to beat both.

    Verdicts are at the level of 0.01, corrected for the number of tests. "Not found" says that chance explains what
    was seen, not that the contrary was shown. A verdict of "found" also asks for an effect
    that matters. The AUC is at least 0.7. At most half of the candidates are what chance explains. One candidate in
    ten promotes a toxic word, and there are twice as many such words as among random neurons of the same layers.

    Args:
        labelled: columns `text, label` (1 is toxic), and perhaps `language`. The probe is fitted on the source
            language, and tested on held-out sentences of it and on all sentences of other languages.
        k: how many neurons to take.
        labelled_elsewhere: further labelled sentences by language, on which the probe is tested.
        toxic_words: toxic words by language, such as `data.word_lists` reads. A promoted token counts when it is such
            a word, or the first token of one with at least three letters.
        held_out_share, penalty: as for `Probe.fit`.
        n_shuffles: how often labels and weights are shuffled; at least 199, because fewer cannot decide at 0.01.
        n_random: how many sets of random neurons are read.

    Raises:
        ValueError: no or bad sentences in the source language, or of one class only in some language; `k` is not
            between 1 and the number of neurons; too few shuffles or random sets; an unknown language; the model is
            edited; or it has a projection before its unembedding.

    Example:
        >>> evidence = xt.evidence(lm, xt.mini.labelled("en", n=400), toxic_words=xt.mini.toxic_words(), k=50,
        ...     labelled_elsewhere={"es": xt.mini.labelled("es", n=60)}, progress=False)
        >>> [verdict.verdict for verdict in evidence.verdicts][:2]
        ['found', 'found']
    """
    check_k(lm, k=k)
    check_penalty(penalty)
    if n_shuffles < FEWEST_SHUFFLES:
        raise ValueError(
            f"n_shuffles is {n_shuffles}: expected at least {FEWEST_SHUFFLES}, fewer cannot decide at {ALPHA}"
        )
    if n_random < 1:
        raise ValueError(f"n_random is {n_random}: expected at least 1")
    languages.check([source_language, *(toxic_words or {})])
    lm.check_unedited("evidence does not show")
    rows, elsewhere = _by_language(labelled, labelled_elsewhere or {}, source_language)
    flags = {} if toxic_words is None else toxic_tokens(lm, toxic_words)
    measured = [source_language, *elsewhere]
    without_words = () if toxic_words is None else tuple(code for code in measured if code not in flags)

    with bar("evidence", total=4, unit="step", progress=progress) as shown:
        split_states = SplitStates.read(lm, rows, held_out_share=held_out_share, seed=seed, progress=progress)
        others = {
            code: (mean_states(lm, texts, [lm.n_layers], progress=progress)[0].numpy(), np.array(labels))
            for code, (texts, labels) in elsewhere.items()
        }
        shown.update()
        probe = Probe.fitted(lm, split_states, penalty=penalty)
        shuffled = shuffled_label_directions(*split_states.train, penalty=penalty, n=n_shuffles, seed=seed)
        directions = torch.cat([probe.direction[:, None], shuffled], 1)
        separations = {source_language: _separation(*split_states.held_out, directions)}
        separations |= _separations(others, directions)
        shown.update()
        orders = shuffled_dimensions(lm.d_model, n=n_shuffles, seed=seed)
        # A vector with its entries in another order has the same product with the direction as the vector itself has
        # with the direction in the opposite order. So the weights need not be copied.
        turned = torch.empty(n_shuffles, lm.d_model).scatter_(1, orders, probe.direction.expand(n_shuffles, -1))
        cosines, places = top_neurons(lm, torch.cat([directions, turned.T], 1), k=k)
        shown.update()
        pairs = [divmod(place, lm.d_mlp) for place in places[:, 0].tolist()]
        candidates = NeuronSet.of(pairs, scores=cosines[:, 0].tolist())
        words = {} if not flags else _words(lm, candidates, places, orders, flags, n_random=n_random, seed=seed)
        shown.update()
    ranking = _ranking(cosines.numpy(), n_shuffles)
    verdicts = judged(
        separations, ranking, words.get(ALL), source_language=source_language, k=k, without_words=without_words
    )
    return Evidence(
        dataclasses.replace(candidates, evidence=verdicts),
        probe,
        separations,
        ranking,
        words,
        without_words,
        verdicts,
        n_shuffles,
    )


def _by_language(
    labelled: Labelled, labelled_elsewhere: Mapping[str, Labelled], source_language: str
) -> tuple[Labelled, dict[str, tuple[list[str], list[int]]]]:
    """Return the rows of the source language, and the texts and labels of every other language."""
    tables_by_language: dict[str, Any] = {}
    if "language" in (column_names(labelled) or ()):
        table = columns(labelled, ("language", "text", "label"), "labelled sentences")
        for language, text, label in zip(table["language"], table["text"], table["label"], strict=True):
            tables_by_language.setdefault(language, []).append({"text": text, "label": label})
    else:
        tables_by_language[source_language] = labelled
    if source_language in labelled_elsewhere or (both := set(tables_by_language) & set(labelled_elsewhere)):
        code = source_language if source_language in labelled_elsewhere else sorted(both)[0]
        raise ValueError(f"labelled_elsewhere has {code!r}, which labelled has too: give each language once")
    tables_by_language |= labelled_elsewhere
    languages.check(list(tables_by_language))
    if source_language not in tables_by_language:
        raise ValueError(
            f"no labelled sentences in the source language {source_language!r}: there are "
            f"{', '.join(tables_by_language)}"
        )
    elsewhere: dict[str, tuple[list[str], list[int]]] = {}
    for code in languages.in_order(set(tables_by_language) - {source_language}):
        try:
            elsewhere[code] = labelled_texts(tables_by_language[code])
        except ValueError as error:
            raise ValueError(f"labelled sentences in {code!r}: {error}") from None
    return tables_by_language[source_language], elsewhere


def _judgements(
    states: Float[np.ndarray, "text d_model"], directions: Float[Tensor, "d_model direction"]
) -> Float[np.ndarray, "text direction"]:
    return (torch.tensor(states, dtype=torch.float64) @ directions.double()).numpy()


def _separation(
    states: Float[np.ndarray, "text d_model"],
    labels: Int[np.ndarray, "text"],
    directions: Float[Tensor, "d_model direction"],
) -> Separation:
    """Return how well the first direction separates the classes, next to the others."""
    judgements = _judgements(states, directions)
    observed = auc(judgements[:, 0], labels.tolist())
    return Separation(observed, Chance.of(areas(judgements[:, 1:], labels == 1), observed.value))


def _separations(
    others: Mapping[str, tuple[Float[np.ndarray, "text d_model"], Int[np.ndarray, "text"]]],
    directions: Float[Tensor, "d_model direction"],
) -> dict[str, Separation]:
    """Return how well the first direction separates the classes in each language, with corrected p-values."""
    if not others:
        return {}
    by_language = np.stack([areas(_judgements(states, directions), labels == 1) for states, labels in others.values()])
    spread = by_language.std(1, keepdims=True).clip(min=1e-12)
    standardised = (by_language - by_language.mean(1, keepdims=True)) / spread
    highest = standardised[:, 1:].max(0)
    separations = {}
    for (code, (states, labels)), values, z in zip(others.items(), by_language, standardised[:, 0], strict=True):
        corrected = Chance.of(highest, float(z)).p
        chance = dataclasses.replace(Chance.of(values[1:], float(values[0])), p=corrected)
        judgements = _judgements(states, directions[:, :1])[:, 0]
        separations[code] = Separation(auc(judgements, labels.tolist()), chance)
    return separations


def _ranking(cosines: Float[np.ndarray, "k direction"], n_shuffles: int) -> Ranking:
    """Compare the cosines of the first direction with those of shuffled labels, which follow, and of shuffled weights.

    A control's neurons are only known up to its own top k, so that chance explains at most all candidates.
    """
    means, reaching = cosines.mean(0).astype(np.float64), (cosines >= cosines[-1, 0]).mean(0)
    labels, weights = slice(1, 1 + n_shuffles), slice(1 + n_shuffles, None)
    return Ranking(
        mean=float(means[0]),
        top=float(cosines[0, 0]),
        labels=Chance.of(means[labels], float(means[0])),
        weights=Chance.of(means[weights], float(means[0])),
        beyond_chance=float(1 - max(reaching[labels].mean(), reaching[weights].mean())),
    )


def _words(
    lm: HookedLM,
    candidates: NeuronSet,
    places: Int[Tensor, "k direction"],
    orders: Int[Tensor, "shuffle d_model"],
    flags: Mapping[str, Tensor],
    *,
    n_random: int,
    seed: int,
) -> dict[str, Words]:
    """Count the toxic words that the candidates promote, and those of the controls, in all languages and in each."""
    codes = [ALL, *languages.in_order(flags)]
    tables_of_tokens = torch.stack([torch.stack(list(flags.values())).any(0), *(flags[code] for code in codes[1:])])
    n_shuffles = len(orders)
    by_neuron = promoted_counts(lm, vectors_at(lm, places[:, 0]), tables_of_tokens)
    # Many top neurons of shuffled-label probes are the same, and are read once.
    distinct, where = np.unique(places[:, 1 : 1 + n_shuffles].numpy(), return_inverse=True)
    labels = promoted_counts(lm, vectors_at(lm, torch.tensor(distinct)), tables_of_tokens)[where].sum(0)
    weights = np.stack(
        [
            promoted_counts(lm, vectors_at(lm, places[:, 1 + n_shuffles + i])[:, order], tables_of_tokens).sum(0)
            for i, order in enumerate(orders)
        ]
    )
    drawn = random_sets(candidates, lm, n=n_random, seed=seed, match="layers")
    if drawn:
        random = np.stack([promoted_counts(lm, control.vectors(lm), tables_of_tokens).sum(0) for control in drawn])
    else:
        random = np.full((1, len(codes)), np.nan)  # the candidates are all neurons of their layers
    resampled = np.random.default_rng([seed, 3]).integers(len(by_neuron), size=(2000, len(by_neuron)))
    lowest, highest = np.quantile(random, [0.025, 0.975], axis=0)
    words = {}
    for column, code in enumerate(codes):
        count, draws = int(by_neuron[:, column].sum()), by_neuron[:, column][resampled].sum(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        words[code] = Words(
            listed=int(tables_of_tokens[column].sum()),
            count=count,
            low=float(low),
            high=float(high),
            promoters=int((by_neuron[:, column] > 0).sum()),
            labels=Chance.of(labels[:, column].astype(np.float64), float(count)),
            weights=Chance.of(weights[:, column].astype(np.float64), float(count)),
            random=(float(random[:, column].mean()), float(lowest[column]), float(highest[column])),
        )
    return words


def _cells(control: str, chance: Chance) -> tuple[str, float, float, float]:
    return control, chance.mean, chance.high, chance.p


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts, also inside mappings and tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _with_chances(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a file with its two controls as `Chance`."""
    return {**row, "labels": Chance(**row["labels"]), "weights": Chance(**row["weights"])}
