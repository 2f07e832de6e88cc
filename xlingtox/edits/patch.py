"""Patch: an edit by what neurons are in another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.edits.interventions import Amount, Positions, Seen, Step
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import fingerprint
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Patch(Step):
    """Activation patching: hold the post-activations of `neurons` at what they are in another run.

    Attributes:
        neurons: what is patched.
        source: another `HookedLM` of the same shape, which then runs on the same tokens, position by position, also
            while new ones are generated, under the edits whose blocks were entered before; or cached activations, layer
            to `[batch, pos, d_mlp]`, for passes over just these tokens in this order (their shape is checked, what they
            are of is not known); or `Activations`, whose mean over prompts and steps is taken, in each row that of its
            language (Yang et al. 2024 patch with such means).
        language: take the mean of this one in all rows. Calls that know no languages need it: those with plain token
            ids and without `languages=`, `Probe.fit`, `retrieval.bilingual_retrieval`.
        positions: as in `Offset`.
    """

    neurons: NeuronSet
    source: HookedLM | Mapping[int, Float[Tensor, "batch pos d_mlp"]] | Activations
    positions: Positions = "all"
    language: str | None = None

    def __post_init__(self) -> None:
        if self.language is not None and not isinstance(self.source, Activations):
            raise ValueError("language is for a Patch from Activations, which have a mean per language")

    def __repr__(self) -> str:
        if isinstance(self.source, Activations):
            what = f"means of {self.language or 'each language'} in {self.source.model.name}"
        else:
            what = repr(self.source) if isinstance(self.source, HookedLM) else "cached activations"
        return self._named(what)

    def content(self) -> str:
        source = self.source
        if isinstance(source, HookedLM):
            what: object = source.identity()
        elif isinstance(source, Activations):
            neurons = source.neurons.neurons, source.language_codes, self.language
            what = neurons, fingerprint({"sums": source.sums, "steps": source.steps})
        else:
            what = fingerprint({str(layer): values for layer, values in source.items()})
        return f"{super().content()} {what}"

    def check(self, lm: HookedLM) -> None:
        super().check(lm)
        missing = None
        if isinstance(self.source, Activations):
            missing = next(iter(self.neurons - self.source.neurons), None)
            if self.language is not None:
                self.source.mean(language=self.language)
        elif isinstance(self.source, Mapping):
            missing = next((neuron for neuron in self.neurons if neuron[0] not in self.source), None)
            for layer, values in self.source.items():
                if values.shape[-1] != lm.d_mlp:
                    raise ValueError(
                        f"cached activations of layer {layer} are {list(values.shape)}: expected "
                        f"[batch, pos, {lm.d_mlp}]"
                    )
        if missing is not None:
            raise ValueError(f"the patch's source has no activations of neuron {missing}")

    def sources(self) -> dict[HookedLM, set[int]]:
        if not isinstance(self.source, HookedLM):
            return {}
        return {self.source: {layer for layer, _ in self.neurons}}

    def amount(self, lm: HookedLM, layer: int, indices: list[int], columns: list[int], seen: Seen) -> Amount:
        source = self.source
        if isinstance(source, Activations):
            return self._means(lm, layer, source, indices)
        held = seen[source] if isinstance(source, HookedLM) else source

        def read() -> Tensor:
            if layer not in held:
                raise RuntimeError("the patch's source runs with HookedLM's own calls, not with calls of .tl")
            if held is source and lm.current_pass is not None and lm.current_pass.continuing:
                raise ValueError(
                    "cached activations serve a pass over their own tokens, not what is generated after it"
                )
            return held[layer][..., indices].to(lm.device_of(layer), lm.dtype)

        return read

    def _means(self, lm: HookedLM, layer: int, source: Activations, indices: list[int]) -> Amount:
        places = {neuron: place for place, neuron in enumerate(source.neurons)}
        own = [places[layer, index] for index in indices]
        codes = source.language_codes
        table = torch.stack([source.mean(language=code) for code in codes])[:, own].to(lm.device_of(layer), lm.dtype)

        def read() -> Tensor:
            if self.language is not None:
                return table[codes.index(self.language)]
            rows = None if lm.current_pass is None else lm.current_pass.languages
            if rows is None:
                raise ValueError("this patch has a mean per language, and the languages of the rows are not known")
            if absent := sorted(set(rows) - set(codes)):
                raise ValueError(f"the patch has no mean for {', '.join(absent)}: it has {', '.join(codes)}")
            return table[[codes.index(row) for row in rows]].unsqueeze(1)

        return read

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        if amount.shape != activation.shape and not isinstance(self.source, Activations):
            raise ValueError(
                f"cached activations {list(amount.shape[:2])} for a pass of {list(activation.shape[:2])} rows and "
                "positions: they serve passes over their own tokens"
            )
        return amount.expand_as(activation)
