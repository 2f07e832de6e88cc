"""The vectors of a model's neurons, and the unembedding that turns a direction into tokens, read from its weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.models.forward import ForwardPasses


class NeuronVectors(ForwardPasses):
    """Forward passes, and the vectors of the neurons that take part in them.

    Attributes:
        mlp_multipliers: for each layer, the constant that multiplies the MLP's output on its way to the residual
            stream. It is 1 in most families, `residual_multiplier` in Granite, None where a norm is between (Gemma 2).
    """

    mlp_multipliers: tuple[float | None, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model is computed."""
        return self._tl_backend.unembedding().dtype

    @property
    def quantised(self) -> bool:
        """Return whether value vectors are stored in 8 or 4 bits. They can then be read, not written."""
        return self._tl_backend.packed is not None

    @property
    def n_neurons(self) -> int:
        """The number of all MLP neurons: `n_layers * d_mlp`."""
        return self.n_layers * self.d_mlp

    @checked
    def value_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the value vector of each neuron of `layer`: it is added to the MLP's output per unit of activation.

        A view of the weights; for quantised weights, a copy of what they compute.
        """
        return self._tl_backend.down_projection(self._check_layer(layer))

    @checked
    def write_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the direction in which each neuron of `layer` moves the residual stream.

        In most families these are the value vectors. Granite multiplies its MLP's output by a constant, and these are
        multiplied by it too. Where a norm stands behind that output (Gemma 2 and 3) or behind its sum with the stream
        (OPT of 350 million parameters), they are multiplied by the norm's gain. The norm also divides by each token's
        own scale, which changes no direction and is left out.
        """
        vectors, constant = self._tl_backend.write_vectors(self._check_layer(layer)), self.mlp_multipliers[layer]
        return vectors if constant is None or constant == 1 else vectors * constant

    def _project_down(self, layer: int, activations: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """Return the output of `layer`'s down-projection for activations, without its bias."""
        if self._hf_backend is None:
            return activations @ self.value_vectors(layer)
        down = self._hf_backend.downs[layer]
        output: Tensor = down.forward(activations) - down.forward(torch.zeros_like(activations))
        return output

    @checked
    def key_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the key vector of each neuron of `layer`: the direction in the MLP's input that it responds to.

        In a gated MLP these are the rows of the gate. A view of the weights.
        """
        gate = self._tl_backend.gate_projection(self._check_layer(layer))
        return (self._tl_backend.up_projection(layer) if gate is None else gate).T

    @property
    def gated(self) -> bool:
        """Return whether a neuron's activation is a product: its key vector's answer times its up vector's."""
        return self._tl_backend.gate_projection(0) is not None

    @checked
    def up_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the up vector of each neuron of `layer` in a gated MLP: its answer multiplies the gate's.

        A view of the weights.

        Raises:
            ValueError: the MLP has no gate.
        """
        if self._tl_backend.gate_projection(self._check_layer(layer)) is None:
            raise ValueError(f"{self.name} has no gated MLP: its neurons have a key and a value vector only")
        return self._tl_backend.up_projection(layer).T

    @torch.no_grad()
    @checked
    def after_final_norm(self, states: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """Return the residual stream after the last block as the unembedding reads it: after the final norm, if any."""
        return self._tl_backend.after_final_norm(states)

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """Return the rows of the output embedding: the direction in the residual stream that promotes each token."""
        return self._tl_backend.unembedding().T
