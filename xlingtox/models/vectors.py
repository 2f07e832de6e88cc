"""Vectors that are read from a model's weights: those of its neurons, and the unembedding."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.models.forward import ForwardPasses

_CONVERTED = 2**22
"""So many numbers are converted to 32 bits at once."""


class NeuronVectors(ForwardPasses):
    """Forward passes, and the vectors of the neurons that take part in them.

    A neuron is a place in the hidden layer of an MLP. Its key vector says which inputs activate it, and its value
    vector what it adds to the MLP's output.

    Attributes:
        mlp_multipliers: for each layer, the constant that multiplies the MLP's output on its way to the residual
            stream. It is 1 in most families, `residual_multiplier` in Granite, None where a norm is between (Gemma 2).

    Example:
        >>> lm.key_vectors(0).shape == lm.value_vectors(0).shape == (lm.d_mlp, lm.d_model)
        True
    """

    mlp_multipliers: tuple[float | None, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model is computed."""
        return self._tl_backend.unembedding().dtype

    @property
    def quantised(self) -> bool:
        """Return whether value vectors are stored in 8 or 4 bits. Such vectors can be read, but not changed."""
        return self._tl_backend.packed is not None

    @property
    def n_neurons(self) -> int:
        """The number of MLP neurons in all layers: `n_layers * d_mlp`."""
        return self.n_layers * self.d_mlp

    @checked
    def value_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the value vector of each neuron of `layer`: what it adds to the MLP's output per unit of activation.

        The result is a view of the weights, or for quantised weights a copy of what they compute.
        """
        return self._tl_backend.down_projection(self._check_layer(layer))

    @checked
    def write_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the direction in which each neuron of `layer` moves the residual stream.

        In most families these are the value vectors. Granite multiplies its MLP's output by a constant, and these
        vectors are multiplied by it too. A norm may follow that output (Gemma 2 and 3), or its sum with the residual
        stream (OPT of 350 million parameters). Then these vectors are multiplied by the norm's gain. The norm also
        divides by each token's own scale. That changes no direction, and is left out.
        """
        vectors, constant = self._tl_backend.write_vectors(self._check_layer(layer)), self.mlp_multipliers[layer]
        return vectors if constant is None or constant == 1 else vectors * constant

    @property
    def n_heads(self) -> int:
        """The number of attention heads per layer.

        Raises:
            ValueError: the layers have no attention heads of one width.
        """
        try:
            return self._tl_backend.n_heads
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    @checked
    def output_projection(self, layer: int) -> Float[Tensor, "head_dims d_model"]:
        """Return what attention's output projection makes of each number that the heads of `layer` put out.

        The numbers of the first head come first, `head_width(layer)` for each head. The result is a view of the
        weights, or for quantised weights a copy of what they compute.

        Raises:
            ValueError: the layer has no attention with an output projection.
        """
        return self._tl_backend.output_projection(self._check_layer(layer))

    @checked
    def head_width(self, layer: int) -> int:
        """Return how many numbers each head of `layer` puts out."""
        self.n_heads  # noqa: B018 - refuses a model without heads
        return self._tl_backend.head_widths[self._check_layer(layer)]

    def _project_down(self, layer: int, activations: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """Return what `layer`'s down-projection makes of activations, without its bias."""
        if self._hf_backend is None:
            return activations @ self.value_vectors(layer)
        down = self._hf_backend.modules.downs[layer]
        output: Tensor = down.forward(activations) - down.forward(torch.zeros_like(activations))
        return output

    @checked
    def key_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the key vector of each neuron of `layer`: the direction in the MLP's input that it responds to.

        In a gated MLP it is the neuron's row of the gate. The result is a view of the weights.
        """
        gate = self._tl_backend.gate_projection(self._check_layer(layer))
        return (self._tl_backend.up_projection(layer) if gate is None else gate).T

    @property
    def gated(self) -> bool:
        """Return whether the MLPs are gated: an activation is then the gate's answer times the up-projection's."""
        return self._tl_backend.gate_projection(0) is not None

    @checked
    def up_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the up vector of each neuron of `layer` in a gated MLP: its answer multiplies the gate's.

        The result is a view of the weights.

        Raises:
            ValueError: the MLP has no gate.
        """
        if self._tl_backend.gate_projection(self._check_layer(layer)) is None:
            raise ValueError(f"{self.name} has no gated MLP: its neurons have a key and a value vector only")
        return self._tl_backend.up_projection(layer).T

    @checked
    def after_final_norm(self, states: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """Apply the final norm, if there is one, to states after the last block, as the unembedding reads them."""
        with torch.set_grad_enabled(self._is_differentiable):
            return self._tl_backend.after_final_norm(states)

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """Return the rows of the output embedding: the direction in the residual stream that promotes each token."""
        return self._tl_backend.unembedding().T

    @torch.no_grad()
    def unembedded(self, vectors: Float[Tensor, "vector width"]) -> Float[Tensor, "vector d_vocab"]:
        """Return the logit that each vector gives to each row of the unembedding, without the final norm, in float32.

        Rows in 16 bits are converted part by part, so that no second unembedding is in memory.

        Example:
            >>> lm.unembedded(lm.value_vectors(0)[:3]).shape == (3, len(lm.unembedding()))
            True
        """
        rows = self.unembedding()
        # In float32 nothing is converted, and one product is as quick as any.
        n_rows = len(rows) if rows.dtype == torch.float32 else max(1, _CONVERTED // rows.shape[1])
        found = vectors.to(rows.device, torch.float32)
        parts = [found @ part.float().T for part in torch.split(rows, n_rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
