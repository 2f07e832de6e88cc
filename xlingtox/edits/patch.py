"""Patch: an edit that gives units the activations of another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.step import Columns, OfUnits, Positions, Reader, SourceActivations
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import fingerprint
from xlingtox.models.sites import UNITS, Place, Site
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Patch(OfUnits, Intervention):
    """Activation patching: replace the activations of `neurons` by those of another run.

    If a model patched from its tuned version behaves like the tuned version, these neurons carry what tuning changed.
    Of attention heads (`site="heads"`), all numbers of their outputs are replaced. Units of any other site can be
    patched too, such as dimensions of the residual stream.
    `source` says where the activations come from:

    - Another `HookedLM` of the same shape. It runs on the same tokens, position by position, also while new ones are
      generated. Edits whose blocks were entered earlier act on it too.
    - Cached activations, layer to `[batch, pos, column]`: d_mlp columns of neurons, and of heads n_heads * d_head. They
      serve passes over just these tokens in this order. Their shape is checked; whether they are of these tokens is not
      known.
    - `Activations`, for neurons only. Each row gets the mean of its language over prompts and steps. Yang et al. (2024)
      patch with such means.

    Weights of neurons have no effect, because a patch takes each activation as it is in the other run.

    Attributes:
        neurons: the neurons, heads or dimensions that are patched.
        source: where their activations come from.
        positions: where the edit acts: "all", "prompt" or "new", as in `Offset`.
        language: for `Activations`, take the mean of this language in all rows. Calls that know no languages need it:
            those with plain token ids and without `languages=`, `Probe.fit`, `transfer.bilingual_retrieval`.
        site: what the pairs name, as in `Offset`.

    Example:
        >>> with xt.Patch(candidates, activations, language="es").on(lm):
        ...     texts = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    neurons: NeuronSet
    source: HookedLM | Mapping[int, Float[Tensor, "batch pos column"]] | Activations
    positions: Positions = "all"
    language: str | None = None
    site: dataclasses.InitVar[Site | None] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self, site: Site | None) -> None:
        self._set_site(site)
        if self.language is not None and not isinstance(self.source, Activations):
            raise ValueError("language is for a Patch from Activations, which have a mean per language")

    def __repr__(self) -> str:
        if isinstance(self.source, Activations):
            origin = f"means of {self.language or 'each language'} in {self.source.model.name}"
        else:
            origin = repr(self.source) if isinstance(self.source, HookedLM) else "cached activations"
        return self._named(f"{self.neurons!r}, {origin}")

    def content(self) -> str:
        source = self.source
        if isinstance(source, HookedLM):
            origin: object = source.identity()
        elif isinstance(source, Activations):
            neurons = source.neurons.neurons, source.language_codes, self.language
            origin = neurons, fingerprint({"sums": source.sums, "steps": source.steps})
        else:
            origin = fingerprint({str(layer): values for layer, values in source.items()})
        return f"{super().content()} {origin}"

    def check(self, lm: HookedLM) -> None:
        super().check(lm)
        site, missing = self.neurons.site, None
        if isinstance(self.source, Activations):
            if site != self.source.neurons.site:
                raise ValueError(
                    f"Activations are of {self.source.neurons.site}, and this patch is of {site}: patch them from "
                    "another model, or from cached activations"
                )
            missing = next(iter(self.neurons - self.source.neurons), None)
            if self.language is not None:
                self.source.mean(language=self.language)
        elif isinstance(self.source, Mapping):
            missing = next((neuron for neuron in self.neurons if neuron[0] not in self.source), None)
            for layer, values in self.source.items():
                if values.shape[-1] != (n_columns := places.n_columns(lm, (site, layer))):
                    raise ValueError(
                        f"cached activations of layer {layer} are {list(values.shape)}: expected "
                        f"[batch, pos, {n_columns}]"
                    )
        elif (theirs := places.n_units(self.source, site)) != (ours := places.n_units(lm, site)):
            lm.check_alike(self.source)
            raise ValueError(f"{self.source.name} has {theirs} {site} in each layer, and {lm.name} has {ours}")
        if missing is not None:
            raise ValueError(f"the patch's source has no activations of {UNITS[site]} {missing}")

    def sources(self) -> dict[HookedLM, set[Place]]:
        if not isinstance(self.source, HookedLM):
            return {}
        return {self.source: {(self.neurons.site, layer) for layer, _ in self.neurons}}

    @property
    def serves_one_batch(self) -> bool:
        return isinstance(self.source, Mapping)

    def reader(self, lm: HookedLM, place: Place, columns: Columns, *, source_activations: SourceActivations) -> Reader:
        source, (site, layer) = self.source, place
        if isinstance(source, Activations):
            return self._means(lm, layer, source, columns.indices)
        is_cache, indices = not isinstance(source, HookedLM), torch.tensor(columns.indices)
        activations: Mapping[Place, Tensor] = (
            source_activations[source]
            if isinstance(source, HookedLM)
            else {(site, layer): values for layer, values in source.items()}
        )

        def read() -> Tensor:
            if place not in activations:
                raise RuntimeError("the patch's source runs with HookedLM's own calls, not with calls of .tl")
            if is_cache and lm.current_pass is not None and lm.current_pass.continuing:
                raise ValueError(
                    "cached activations serve a pass over their own tokens, not what is generated after it"
                )
            return activations[place][..., indices].to(lm.device_of(layer), lm.dtype)

        return read

    def _means(self, lm: HookedLM, layer: int, source: Activations, indices: list[int]) -> Reader:
        """Return the function that gives each row the means of its language, for the neurons of one layer."""
        places = {neuron: place for place, neuron in enumerate(source.neurons)}
        columns = [places[layer, index] for index in indices]
        codes = source.language_codes
        means = torch.stack([source.mean(language=code) for code in codes])[:, columns]
        table = means.to(lm.device_of(layer), lm.dtype)

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

    def apply(self, activation: Tensor, values: Tensor) -> Tensor:
        if values.shape != activation.shape and not isinstance(self.source, Activations):
            raise ValueError(
                f"cached activations {list(values.shape[:2])} for a pass of {list(activation.shape[:2])} rows and "
                "positions: they serve passes over their own tokens"
            )
        return values.expand_as(activation)
