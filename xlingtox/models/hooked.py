"""HookedLM: a language model with its tokenizer and its neurons, on TransformerLens."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from xlingtox.checking import checked, shown
from xlingtox.models import loading
from xlingtox.models.adapters import check_merged, is_adapted
from xlingtox.models.backend import Backend, HuggingFaceBackend, alike
from xlingtox.models.devices import DeviceMap
from xlingtox.models.forward import ForwardPasses
from xlingtox.models.forward import HookNeverFired as HookNeverFired
from xlingtox.models.identity import Identity, fingerprint
from xlingtox.models.mlp_output import measure_mlp_multipliers
from xlingtox.models.quantised import Bits
from xlingtox.models.reload_check import first_changed_weight, stored_weights
from xlingtox.models.tl_backend import TransformerLensBackend, backend_of, bridge_over, without_bridge
from xlingtox.models.tokenizer import check_tokenizer, rows_without_text, token_ids, without_added_start
from xlingtox.text import first_line, in_line

_LOG = logging.getLogger(__name__)


class HookedLM(ForwardPasses):
    """A causal language model whose MLP neurons can be read and edited while it runs.

    The plain Hugging Face model does the work; `tl` is a TransformerLens model over the same weights. Edits and hooks
    of this class act in both, and a hook that was added to one of `tl`'s hook points by hand acts here too.

    Attributes:
        tl: the TransformerLens model (`TransformerBridge`, or a `HookedTransformer` that was given). A family with
            fused query, key and value matrices has none in 4 or 8 bits: all else works there, and `tl` says why.
        tokenizer: the Hugging Face tokenizer; padding is on the left.
        name, revision: where the model came from.
        stored_dtype: the dtype of the weights in the checkpoint that it came from, or the one that was asked for; on a
            processor, float16 (and bfloat16 where it is slow) is computed in float32, which is then `dtype`.
        n_layers, d_model, d_mlp: depth, width of the residual stream, neurons per layer.
        n_positions: the longest sequence in tokens, prompt and continuation together; of a model that turns positions
            otherwise from some length on (Phi-3 of 128k), that length.
        mlp_multipliers: by layer, the constant times which the residual stream gets what the MLP writes: 1 in most
            families, `residual_multiplier` in Granite, None where a norm stands between (Gemma 2).
    """

    def __init__(
        self,
        side: TransformerLensBackend,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        revision: str | None = None,
        plain: HuggingFaceBackend | None = None,
        stored: torch.dtype | None = None,
        unpacked_from: str | None = None,
    ) -> None:
        if not isinstance(side, TransformerLensBackend):
            raise TypeError(f"HookedLM of a {type(side).__name__}: wrap it, HookedLM.load(model, tokenizer=...)")
        super().__init__(side, plain)
        self.stored_dtype, self._unpacked_from = stored or self.dtype, unpacked_from
        self.name, self.revision = name, revision
        self.tokenizer = check_tokenizer(tokenizer, self.unembedding().shape[0])
        side.tl.eval()
        self._read: tuple[tuple[Any, ...], str] | None = None
        self.n_positions = side.n_positions
        try:
            self.d_mlp = side.d_mlp
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._check_runs()
        self.mlp_multipliers = measure_mlp_multipliers(self, self._written)

    # --- ways in

    @classmethod
    @checked
    def load(
        cls,
        source: Any,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        adapter: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: DeviceMap | None = None,
        bits: Bits | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> HookedLM:
        """Wrap a model for reading and editing its neurons.

        Args:
            source: `"mini"`, a checkpoint folder, a `.gguf` file (or a folder that holds nothing else to load), a
                folder with a LoRA adapter, a hub name, a Hugging Face model (copied, left as it is), a
                `TransformerBridge`, or a `HookedTransformer` of TransformerLens 3.9; the last two with unprocessed
                weights. Weights of a GGUF file are unpacked while they are read.
            tokenizer: needed for a model given in memory without one; else loaded from beside the checkpoint. That of a
                TransformerLens model, which puts a start before each text, is loaded anew, without the network.
            adapter: folder or hub name of a LoRA adapter, which is merged into the weights.
            dtype: weights are cast to it. Default: as stored; but on a processor float16, which is slow on all of them,
                and bfloat16 where it is slow, are held in float32, and a warning says so. From a GGUF file: float32.
            device: weights are moved to it (default: the GPU if there is one; a model in memory stays where it is).
            device_map: as in transformers, for a model that is spread over devices; needs accelerate.
            bits: 8 or 4, for weights quantised by bitsandbytes.
            revision: of a hub name; of an adapter's name, its own (its base's is the one that the adapter names).
            trust_remote_code: run the code that a checkpoint brings along.

        Raises:
            TypeError: no model, and no name of one.
            FileNotFoundError: a folder that is no checkpoint or no adapter.
            ValueError: not a decoder with a dense MLP; a tokenizer is missing or has no end-of-sequence token; an
                adapter for another base; processed weights; a device that is not there; a package that is missing;
                bits asked of weights that are stored in others; weights outside the folder, or pickled ones.
            ImportError: a GGUF file without the package gguf.
        """
        if isinstance(source, cls):
            asked = (tokenizer, adapter, dtype, device, device_map, bits, revision)
            if any(option is not None for option in asked):
                raise ValueError(f"{source.name} is loaded already: give these options with what it is loaded from")
            return source
        if isinstance(source, str | Path):
            loaded = loading.from_checkpoint(
                str(source),
                tokenizer=tokenizer,
                adapter=adapter,
                dtype=dtype,
                device=device,
                device_map=device_map,
                bits=bits,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
            return cls.over(loaded)
        for option, given in (("revision", revision), ("device_map", device_map), ("bits", bits)):
            if given is not None:
                raise ValueError(f"{option} is for a hub name or a folder; the model was given in memory")
        if isinstance(source, transformers.PreTrainedModel) or is_adapted(source):
            return cls.over(
                loading.from_memory(source, tokenizer=tokenizer, adapter=adapter, dtype=dtype, device=device)
            )
        if hasattr(source, "cfg") and hasattr(source, "blocks"):
            held: Any = getattr(source, "tokenizer", None)
            if tokenizer is None and held is None:
                raise ValueError("the TransformerLens model has no tokenizer: load(model, tokenizer=...)")
            if dtype is not None or device is not None or adapter is not None:
                raise ValueError("move, cast or merge a TransformerLens model before it is given, not while loading")
            check_merged(source)
            own = tokenizer or without_added_start(held, trust_remote_code)
            return cls(backend_of(source), own, str(getattr(source.cfg, "model_name", "TransformerLens model")))
        raise TypeError(
            f"HookedLM.load: source is {shown(source)}, expected 'mini', a checkpoint folder, a hub name, a "
            "Hugging Face model, or a TransformerLens model"
        )

    @classmethod
    def over(cls, loaded: loading.Loaded) -> HookedLM:
        """Wrap a plain model as it is, without a copy.

        Raises:
            ValueError: not a decoder with a dense MLP, or a tokenizer without an end.
        """
        return cls._around(loaded, bridge_over)

    @classmethod
    def unbridged(cls, loaded: loading.Loaded) -> HookedLM:
        """Wrap a plain model as it is, without a TransformerLens model: for tuning, which asks for none.

        Raises:
            ValueError: not a decoder with a dense MLP, or a tokenizer without an end.
        """
        return cls._around(loaded, lambda model: without_bridge(model, "it was loaded to be tuned"))

    @classmethod
    def _around(
        cls, loaded: loading.Loaded, sides: Callable[[Any], tuple[TransformerLensBackend, HuggingFaceBackend]]
    ) -> HookedLM:
        try:
            side, plain = sides(loaded.model)
        except ValueError as error:
            raise ValueError(f"{loaded.name}: {error}") from error
        return cls(side, loaded.tokenizer, loaded.name, loaded.revision, plain, loaded.stored, loaded.unpacked_from)

    @property
    def tl(self) -> Any:
        """The TransformerLens model over the same weights.

        Raises:
            ValueError: there is none, and why.
        """
        if self._tl_backend.unbridged is not None:
            raise ValueError(
                f"{self.name} has no .tl, since {self._tl_backend.unbridged}. Activations, edits, hooks and vectors of "
                "neurons need none"
            )
        return self._tl_backend.tl

    def unwrapped(self) -> Any:
        """A plain Hugging Face model with a copy of this model's weights and none of its hooks, to train or to save.

        Raises:
            ValueError: the model was given as a TransformerLens model.
        """
        self.check_unwrappable()
        assert self._hf_backend is not None
        model: Any = copy.deepcopy(self._hf_backend.model)
        loading.without_hooks(model)
        return model

    def altered(self, folder: Path) -> str | None:
        """The first weight that is not as in the files of `folder`, from which the model was read; None without one."""
        return (
            None if self._hf_backend is None else first_changed_weight(stored_weights(folder), self._hf_backend.model)
        )

    def check_unwrappable(self) -> None:
        """Raise ValueError if the model was given as a TransformerLens model: no plain one stands behind it."""
        if self._hf_backend is None:
            raise ValueError(
                f"{self.name} was given as a TransformerLens model, which cannot be unwrapped: "
                "load it from a folder or from a Hugging Face model"
            )

    def down_projections(self) -> list[str]:
        """By layer, the name of the down-projection in `unwrapped()`.

        Raises:
            ValueError: the model was given as a TransformerLens model.
        """
        self.check_unwrappable()
        assert self._hf_backend is not None
        names = {id(module): name for name, module in self._hf_backend.model.named_modules()}
        return [names[id(down)] for down in self._hf_backend.downs]

    # --- what it is

    def _check_runs(self) -> None:
        """Raise ValueError unless this is a decoder that goes on from a cache as if it had read all anew.

        The TransformerLens model must give the plain model's logits both ways: a new release of either may break it.
        """
        ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=self.device) % self.unembedding().shape[0]
        read = self._both_ways(self._backend(), ids)
        whole, step = read[:, :-1], read[:, -1:]
        if not bool(whole.isfinite().all()):
            raise ValueError(f"{self.name} gives logits that are no numbers: are its weights?")
        if ids[0, -1] != ids[1, -1] and not torch.allclose(whole[0, :-1], whole[1, :-1], atol=1e-3, rtol=1e-3):
            raise ValueError(f"{self.name} is not a decoder: its logits depend on later tokens")
        if not alike(torch.cat([whole[:, :-1], step], 1), whole, self._tl_backend.packed):
            raise ValueError(
                f"{self.name} has other logits from a cache than without one: expected attention in every layer, and a "
                "TransformerLens that knows this release of transformers"
            )
        if self._hf_backend is not None and self._tl_backend.unbridged is None:
            try:
                self._faithful = alike(self._both_ways(self._tl_backend, ids), read, self._tl_backend.packed)
            except ValueError:
                self._faithful = False
            if not self._faithful:
                name = in_line(self.name)
                _LOG.warning("%s: TransformerLens has other logits than Hugging Face: .tl is unreliable", name)

    @torch.no_grad()
    def _both_ways(self, engine: Backend, ids: Tensor) -> Float[Tensor, "batch pos+1 vocab"]:
        """Logits read at once, and behind them those of the last token read after the others."""
        mask, cache = torch.ones_like(ids), engine.empty_cache(len(ids))
        try:
            whole = engine.run(ids, mask)[0]
            engine.run(ids[:, :-1], mask[:, :-1], cache)
            return torch.cat([whole, engine.run(ids[:, -1:], mask, cache)[0]], 1)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.name} does not run token by token from a cache: {first_line(error)}") from error

    def device_of(self, layer: int) -> torch.device:
        """Where the neurons of `layer` are: a model may be spread over several devices."""
        return self._tl_backend.device_of(self._check_layer(layer))

    @property
    def dtype(self) -> torch.dtype:
        return self._tl_backend.unembedding().dtype

    @property
    def remote_code(self) -> bool:
        """Whether it runs code that came with its checkpoint, which was trusted when it was loaded."""
        return self._hf_backend is not None and type(self._hf_backend.model).__module__.startswith(
            "transformers_modules."
        )

    @property
    def quantised(self) -> bool:
        """Whether value vectors are stored as packed numbers, in 8 or 4 bits: they can be read, not written."""
        return self._tl_backend.packed is not None

    @property
    def n_neurons(self) -> int:
        """All MLP neurons: `n_layers * d_mlp`."""
        return self.n_layers * self.d_mlp

    def __repr__(self) -> str:
        return f"HookedLM({self.name!r}: {self.n_layers} layers x {self.d_mlp} neurons, d_model {self.d_model})"

    def fingerprint(self) -> str:
        """Twelve hex digits of all weights as they are now: two models that differ in any of them differ here.

        It goes by how the weights are held: one model given as a TransformerLens model has another than given plainly.
        Of a change that goes by a weight's `.data`, which torch does not count, nothing is seen.
        """
        model = self.tl if self._hf_backend is None else self._hf_backend.model
        weights: dict[str, Tensor] = model.state_dict()
        if any(weight.is_inference() for weight in weights.values()):
            return fingerprint(weights)
        # Torch counts the changes in place: what was read once is not read again.
        state = tuple((weight.data_ptr(), weight._version) for weight in weights.values())
        if self._read is None or self._read[0] != state:
            self._read = state, fingerprint(weights)
        return self._read[1]

    def identity(self) -> Identity:
        """Return which model this is, and under which edits it stands now; results carry it."""
        return Identity(self.name, self.revision, self._stored_as(), self.fingerprint(), self.standing_edit)

    def _stored_as(self) -> str:
        held = str(self._tl_backend.packed or self.dtype).removeprefix("torch.")
        return held if self._unpacked_from is None else f"{held}, dequantised from {self._unpacked_from}"

    def row_bytes(self, positions: int, *, predicted: int = 1) -> int:
        """About the most memory that one row of `positions` tokens takes, with logits at `predicted` of them."""
        item = self.unembedding().element_size()
        cache = 2 * self.n_layers * self.d_model
        passing = 4 * self.d_mlp + 8 * self.d_model
        return positions * (cache + passing) * item + 6 * 4 * predicted * self.unembedding().shape[0]

    # --- neurons

    @checked
    def value_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron of `layer` adds to the MLP's output per unit of activation.

        A view of the weights; of quantised ones, a copy of what they stand for.
        """
        return self._tl_backend.down_projection(self._check_layer(layer))

    @checked
    def write_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The direction in which each neuron of `layer` really writes to the residual stream.

        The value vectors themselves, times the constant that the block multiplies its MLP's output by (Granite). Where
        a norm stands behind that output (Gemma 2 and 3) or behind its sum with the stream (OPT of 350 million
        parameters), they are times the norm's gain. Its division by the token's own scale is left out, as it turns
        nothing.
        """
        vectors, constant = self._tl_backend.write_vectors(self._check_layer(layer)), self.mlp_multipliers[layer]
        return vectors if constant is None or constant == 1 else vectors * constant

    def _written(self, layer: int, activations: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """What the down-projection of `layer` makes of activations, without its bias."""
        if self._hf_backend is None:
            return activations @ self.value_vectors(layer)
        down = self._hf_backend.downs[layer]
        written: Tensor = down.forward(activations) - down.forward(torch.zeros_like(activations))
        return written

    @checked
    def key_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron of `layer` responds to; of a gated MLP the gate's rows (a view of the weights)."""
        gate = self._tl_backend.gate_projection(self._check_layer(layer))
        return (self._tl_backend.up_projection(layer) if gate is None else gate).T

    @property
    def gated(self) -> bool:
        """Whether a neuron multiplies what its key vector gives by what an up vector gives."""
        return self._tl_backend.gate_projection(0) is not None

    @checked
    def up_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Of a gated MLP, what each neuron of `layer` multiplies its gate by (a view of the weights).

        Raises:
            ValueError: the MLP has no gate.
        """
        if self._tl_backend.gate_projection(self._check_layer(layer)) is None:
            raise ValueError(f"{self.name} has no gated MLP: its neurons have a key and a value vector only")
        return self._tl_backend.up_projection(layer).T

    @torch.no_grad()
    @checked
    def after_final_norm(self, states: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The residual stream after the last block as the unembedding reads it: through the final norm, if any."""
        return self._tl_backend.after_final_norm(states)

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """Rows of the output embedding: the direction in the residual stream that promotes each token."""
        return self._tl_backend.unembedding().T

    @cached_property
    def without_text(self) -> Int[Tensor, "row"] | None:
        """Rows of the unembedding that are no token of the tokenizer, so that no text can hold them; None without any.

        Families pad their vocabulary to a round number (Qwen 2.5: 152,064 rows, 151,665 tokens), or leave holes in it.
        What ends a text is not among them.
        """
        rows = rows_without_text(self.tokenizer, self.unembedding().shape[0], self.ends)
        return torch.tensor(rows, device=self.unembedding().device) if rows else None

    def only_tokens(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Logits, changed in place to minus infinity at `without_text`."""
        rows = self.without_text
        return logits if rows is None else logits.index_fill_(-1, rows.to(logits.device), -torch.inf)

    # --- text

    @checked
    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens: one beginning where the tokenizer has one, and no end that it would add.

        Everything that reads texts with this model reads these tokens (`tokenizing.token_ids`).
        """
        return token_ids(self.tokenizer, texts)

    @checked
    def encode(
        self, texts: Sequence[str], *, max_length: int | None = None
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Return the `token_ids` of texts, padded on the left, with their mask.

        Args:
            max_length: of a longer text only the first tokens are kept, whatever its neighbours' lengths.
        """
        # Cut before padding: a slice of a padded batch would cut its short texts too.
        return self.pad([ids[:max_length] for ids in self.token_ids(texts)])

    @checked
    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Token ids, padded on the left, with their mask."""
        own = [torch.tensor(ids, dtype=torch.long) for ids in rows]
        padding = int(self.tokenizer.pad_token_id)
        ids = pad_sequence(own, batch_first=True, padding_value=padding, padding_side="left")
        if ids.numel() and int(ids.max()) >= self.unembedding().shape[0]:
            raise ValueError(
                f"the tokenizer gives token {int(ids.max())}, and {self.name} knows {self.unembedding().shape[0]}: "
                "model.resize_token_embeddings(len(tokenizer)), or give the model's own tokenizer"
            )
        mask = pad_sequence([torch.ones_like(row) for row in own], batch_first=True, padding_side="left")
        return ids.to(self.device), mask.to(self.device, torch.bool)

    @checked
    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of token ids, special tokens left out."""
        return list(self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True))

    @checked
    def decode_after(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of token ids that follow a prompt's: some tokenizers, as Llama 2's, leave out a text's first space."""
        before = self.decode(prompts)
        whole = self.decode([[*prompt, *row] for prompt, row in zip(prompts, rows, strict=True)])
        # A prompt that ends within a character reads otherwise alone.
        return [
            text[len(start) :] if text.startswith(start) else self.decode([row])[0]
            for start, text, row in zip(before, whole, rows, strict=True)
        ]

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text: the tokenizer's end of sequence, and others that the model's settings name."""
        model = getattr(self.tl, "original_model", None) if self._hf_backend is None else self._hf_backend.model
        told = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        named = [told] if isinstance(told, int) else told or []
        known = [token for token in named if token < self.unembedding().shape[0]]
        return tuple(dict.fromkeys([int(self.tokenizer.eos_token_id), *known]))
