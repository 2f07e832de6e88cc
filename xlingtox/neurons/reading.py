"""Reader: hooks that add up the activations of neurons while a batch is read, token by token or all at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet


class Moments:
    """Sums of numbers and of their squared deviations from the mean, by language.

    Attributes:
        counts: the numbers that were added in each language.
        sums: their sum, for each neuron.
        squares: the sum of their squared deviations from the language's mean, for each neuron.
    """

    def __init__(self, n_languages: int, n_neurons: int) -> None:
        self.counts = torch.zeros(n_languages, dtype=torch.int64)
        self.sums = torch.zeros(n_languages, n_neurons, dtype=torch.float64)
        self.squares = torch.zeros(n_languages, n_neurons, dtype=torch.float64)

    def add(self, other: Moments) -> None:
        """Add the numbers of another batch (Chan, Golub and LeVeque 1979)."""
        mine, theirs = self.counts.clamp(min=1)[:, None], other.counts.clamp(min=1)[:, None]
        gap = other.sums / theirs - self.sums / mine
        # Where one of the two batches has nothing, the product is 0.
        product = (self.counts * other.counts)[:, None]
        self.squares += other.squares + gap.square() * product / (mine + theirs)
        self.sums += other.sums
        self.counts += other.counts


class Reader:
    """Hooks that add up the activations at some positions of a batch, by language, on the model's device.

    Attributes:
        values: the activations at each row and step, or None where only the sums are wanted.
    """

    def __init__(
        self, lm: HookedLM, neurons: NeuronSet, belongs: Float[Tensor, "language row"], *, n_kept_steps: int
    ) -> None:
        """Prepare for a batch.

        Args:
            belongs: 1 where a row is in a language, else 0.
            n_kept_steps: steps whose values are kept; 0 for the sums alone.
        """
        device = lm.device
        all_indices = list(range(lm.d_mlp))
        self.layers: dict[int, tuple[Tensor | None, Tensor]] = {}
        for layer, (indices, columns) in neurons.by_layer().items():
            chosen = None if indices == all_indices else torch.tensor(indices, device=lm.device_of(layer))
            self.layers[layer] = chosen, torch.tensor(columns, device=device)
        self.belongs = belongs.to(device)
        n_languages, n_rows = belongs.shape
        shape = n_languages, len(neurons)
        # Sums are of differences from a number near each neuron's mean: squares of large numbers would hide the spread.
        self._shift = torch.full((len(neurons),), torch.nan, device=device)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._squares = torch.zeros(shape, dtype=torch.float64, device=device)
        self._counts = torch.zeros(n_languages, dtype=torch.int64, device=device)
        self._shifted: set[int] = set()
        self.values = torch.zeros(n_rows, n_kept_steps, len(neurons), device=device) if n_kept_steps else None

    def moments(self) -> Moments:
        """Return the sums over the rows and steps so far."""
        shift, counts = self._shift.double().nan_to_num(), self._counts[:, None]
        moments = Moments(*self._sums.shape)
        moments.counts = self._counts.cpu()
        moments.sums = (self._sums + counts * shift).cpu()
        moments.squares = (self._squares - self._sums.square() / counts.clamp(min=1)).clamp(min=0).cpu()
        return moments

    def begin_step(self, step: int, rows: Int[Tensor, "row"], going: Bool[Tensor, "row"]) -> None:
        """Note which rows of the batch the next pass reads, and which of them have not ended.

        The hooks of `newest` then read the last position of the pass.
        """
        self._step, self._rows = step, rows
        self._weights = self.belongs[:, rows] * going
        self._counts += self._weights.sum(1).long()

    def newest(self) -> dict[int, Hook]:
        """Return one hook for each layer, which reads the newest token of each row."""

        def reading(layer: int) -> Hook:
            return lambda value: self._add(layer, value[:, -1], self._rows, self._step, self._weights)

        return {layer: reading(layer) for layer in self.layers}

    def at_once(self, counts: Bool[Tensor, "row step"], n_steps: Int[Tensor, "row"]) -> dict[int, Hook]:
        """Return one hook for each layer, for a single pass over prompts and continuations, padded on the left.

        Args:
            counts: the steps that count of each row.
            n_steps: the number of its steps, which are its last tokens in the pass.
        """
        rows = torch.arange(len(counts), device=counts.device)
        self._counts += (self.belongs @ counts.sum(1).to(self.belongs)).long()

        def reading(layer: int) -> Hook:
            def read(value: Tensor) -> None:
                for step in range(int(n_steps.max())):
                    going = counts[:, step].nonzero().squeeze(-1)
                    if len(going) == 0:
                        continue
                    places = value.shape[1] - n_steps[going] + step
                    here = value[going.to(value.device), places.to(value.device)]
                    self._add(layer, here, rows[going], step, self.belongs[:, going])

            return read

        return {layer: reading(layer) for layer in self.layers}

    def _add(
        self,
        layer: int,
        value: Float[Tensor, "row d_mlp"],
        rows: Int[Tensor, "row"],
        step: int,
        weights: Float[Tensor, "language row"],
    ) -> None:
        """Add one activation of each row: `weights` is 1 where it counts for a language, else 0."""
        chosen, columns = self.layers[layer]
        activations = (value if chosen is None else value.index_select(-1, chosen)).float()
        activations = activations.to(self._sums.device)
        shift = self._shift[columns]
        if layer not in self._shifted:
            self._shifted.add(layer)
            shift = activations.mean(0)
            self._shift[columns] = shift
        differences = activations - shift
        self._sums[:, columns] += weights @ differences
        self._squares[:, columns] += weights @ differences.square()
        if self.values is not None:
            self.values[rows[:, None], step, columns] = activations
