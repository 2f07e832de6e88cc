"""HookedLM: a TransformerLens model with its tokenizer and its neurons.

The only file that knows TransformerLens, and where a family of models keeps its MLP.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

Hook = Callable[[Tensor], Tensor | None]
"""Gets an activation, `[batch, pos, width]`; returns its replacement, or None to leave it as it is."""


class HookNeverFired(RuntimeError):
    """A hook was asked for and the model never reached it."""


def mini_checkpoint() -> Path:
    """The folder of the shipped miniature: inside an installed package, or `assets/mini` of a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "mini" / "checkpoint", here.parent / "assets" / "mini"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError("the miniature's checkpoint is missing: reinstall xlingtox, or run from a whole checkout")


@contextlib.contextmanager
def no_weight_bars() -> Iterator[None]:
    """Without transformers' own bars, as for reading and writing weights; those of downloads stay."""

    def silent(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **{**options, "disable": True})

    before = transformers.utils.logging.set_tqdm_hook(silent)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


class HookedLM:
    """A causal language model whose MLP neurons can be read and edited while it runs.

    Attributes:
        tl: the TransformerLens model itself (`TransformerBridge`, or a `HookedTransformer` that was given).
        tokenizer: the Hugging Face tokenizer; its padding side is left.
        name: where the model came from.
        n_layers, d_model, d_mlp: depth, width of the residual stream, neurons per layer.
        n_positions: the longest sequence in tokens, prompt and continuation together.
    """

    def __init__(
        self, tl: Any, tokenizer: PreTrainedTokenizerBase, name: str, origin: Callable[[], Any] | None = None
    ) -> None:
        self.tl = tl
        self.name = name
        self.tokenizer = _checked_tokenizer(tokenizer)
        self._origin = origin
        self._bridged = hasattr(tl, "original_model")
        self.tl.eval()
        self.n_layers = int(tl.cfg.n_layers)
        self.d_model = int(tl.cfg.d_model)
        self.d_mlp = self._checked_neurons()
        self.n_positions = self._positions()
        self._check_causal()

    # --- ways in

    @classmethod
    def load(
        cls,
        source: Any,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> HookedLM:
        """Wrap a model for reading and editing its neurons.

        Args:
            source: `"mini"`, a checkpoint folder, a hub name, a Hugging Face model (copied, left as it is), a
                `TransformerBridge`, or a `HookedTransformer` of TransformerLens 3.9 with unprocessed weights.
            tokenizer: needed for a model given in memory without one; else loaded from beside the checkpoint.
            dtype: weights are cast to it (default: as stored).
            device: weights are moved to it (default: the GPU if there is one; a model in memory stays where it is).
            revision: of a hub name.

        Raises:
            FileNotFoundError: a folder that is no checkpoint.
            ValueError: not a decoder with a dense MLP; a tokenizer is missing or has no end-of-sequence token.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, str | Path):
            return cls._from_checkpoint(str(source), tokenizer, dtype, device, revision)
        if revision is not None:
            raise ValueError("revision is for a hub name; the model was given in memory")
        if isinstance(source, transformers.PreTrainedModel):
            if tokenizer is None:
                raise ValueError(f"a {type(source).__name__} in memory needs its tokenizer: load(model, tokenizer=...)")
            _check_architecture(source.config, type(source).__name__)
            name = getattr(source.config, "_name_or_path", "") or type(source).__name__

            def copied() -> Any:
                twin: Any = copy.deepcopy(source)
                return twin.to(device=device or source.device, dtype=dtype or source.dtype)

            return cls._from_fresh(copied, tokenizer, name)
        if hasattr(source, "cfg") and hasattr(source, "blocks"):
            given = tokenizer or getattr(source, "tokenizer", None)
            if given is None:
                raise ValueError("the TransformerLens model has no tokenizer: load(model, tokenizer=...)")
            if dtype is not None or device is not None:
                raise ValueError("move or cast a TransformerLens model before it is given, not with dtype or device")
            return cls(source, given, str(getattr(source.cfg, "model_name", "TransformerLens model")))
        raise ValueError(
            f"cannot load a {type(source).__name__}: expected 'mini', a checkpoint folder, a hub name, a Hugging Face "
            "model, or a TransformerLens model"
        )

    @classmethod
    def _from_checkpoint(
        cls,
        source: str,
        tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype | None,
        device: str | torch.device | None,
        revision: str | None,
    ) -> HookedLM:
        path = str(mini_checkpoint()) if source == "mini" else source
        folder = Path(path)
        if folder.exists() and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{path} is no checkpoint: it has no config.json")
        if not folder.exists() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
            raise FileNotFoundError(f"{path} is no checkpoint: there is no such folder")
        where = {"local_files_only": True} if folder.exists() else {"revision": revision}
        try:
            _check_architecture(AutoConfig.from_pretrained(path, **where))
            own = tokenizer or AutoTokenizer.from_pretrained(path, **where)
        except OSError as error:
            what = "checkpoint folder" if folder.exists() else "folder, nor a model that the hub gives us"
            raise FileNotFoundError(f"{source} is no {what}: {str(error).splitlines()[0]}") from error
        if len(own) <= len(own.all_special_ids):
            raise FileNotFoundError(f"{path} has no tokenizer: give one with tokenizer=...")
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")

        def fresh() -> Any:
            with no_weight_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", **where)
            return model.to(target)

        return cls._from_fresh(fresh, own, source)

    @classmethod
    def _from_fresh(cls, fresh: Callable[[], Any], tokenizer: PreTrainedTokenizerBase, name: str) -> HookedLM:
        model = fresh()
        # Bridging rewires the model in place, so `unwrapped` needs it anew, and must know it for the same.
        sums = _checksum(model)

        def again() -> Any:
            twin = fresh()
            if _checksum(twin) != sums:
                raise ValueError(f"the source of {name} was changed after it was loaded: load it again")
            return twin

        return cls(_bridge(model), tokenizer, name, again)

    def unwrapped(self) -> Any:
        """A plain Hugging Face model with this model's weights, for training or saving.

        Raises:
            ValueError: the model was given as a TransformerLens model, or its source has changed since.
        """
        self.check_unwrappable()
        assert self._origin is not None
        return self._origin()

    def check_unwrappable(self) -> None:
        """Raise ValueError if the model was given as a TransformerLens model: no plain one stands behind it."""
        if self._origin is None:
            raise ValueError(
                f"{self.name} was given as a TransformerLens model, which cannot be unwrapped: "
                "load it from a folder or from a Hugging Face model"
            )

    # --- what it is

    def _checked_neurons(self) -> int:
        shapes: set[tuple[int, ...]] = set()
        for layer in range(self.n_layers):
            mlp = getattr(self.tl.blocks[layer], "mlp", None)
            weight = getattr(mlp, "W_out", None)
            dense = getattr(mlp, "hook_post", None) is not None and not hasattr(mlp, "experts")
            if not dense or not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != self.d_model:
                raise ValueError(
                    f"{self.name}: layer {layer} has no dense MLP with a down-projection "
                    "(mixture-of-experts and state-space layers have no neurons to read)"
                )
            shapes.add(tuple(weight.shape))
        if len(shapes) != 1:
            raise ValueError(f"{self.name}: layers differ in their number of neurons, or there are none")
        return shapes.pop()[0]

    def _positions(self) -> int:
        config = self.tl.original_model.config if self._bridged else self.tl.cfg
        for name in ("n_positions", "max_position_embeddings", "n_ctx", "seq_length"):
            value = getattr(config, name, None)
            if isinstance(value, int) and value > 0:
                return value
        return int(self.tl.cfg.n_ctx)

    def _check_causal(self) -> None:
        """A decoder's logits at a position do not depend on what follows it."""
        vocabulary = self.unembedding().shape[0]
        ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=self.device) % vocabulary
        logits = self.logits(ids, torch.ones_like(ids, dtype=torch.bool))
        if vocabulary > 3 and not torch.allclose(logits[0, :2], logits[1, :2], atol=1e-3, rtol=1e-3):
            raise ValueError(f"{self.name} is not a decoder: its logits depend on later tokens")

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.tl.blocks[0].mlp.W_out
        return weight.device

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.tl.blocks[0].mlp.W_out
        return weight.dtype

    @property
    def n_neurons(self) -> int:
        """All MLP neurons: `n_layers * d_mlp`."""
        return self.n_layers * self.d_mlp

    def __repr__(self) -> str:
        return f"HookedLM({self.name!r}: {self.n_layers} layers x {self.d_mlp} neurons, d_model {self.d_model})"

    def fingerprint(self) -> str:
        """Twelve hex digits of all weights as they are now: two models that differ in any of them differ here."""
        # Sorted, because TransformerLens names and orders the parameters as it likes.
        digests = sorted(_digest(weight) for weight in self.tl.parameters())
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]

    # --- neurons

    def value_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron of `layer` adds to the residual stream per unit of activation (a view of the weights)."""
        weight: Tensor = self.tl.blocks[self._checked_layer(layer)].mlp.W_out
        return weight.detach()

    def key_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron of `layer` responds to; for gated MLPs the gate's rows (a view of the weights)."""
        mlp = self.tl.blocks[self._checked_layer(layer)].mlp
        gate = getattr(mlp, "W_gate", None)
        weight: Tensor = gate if isinstance(gate, Tensor) else mlp.W_in
        return weight.detach().T

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """Rows of the output embedding: the direction in the residual stream that promotes each token."""
        weight: Tensor = self.tl.W_U
        return weight.detach().T

    def _checked_layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"no layer {layer}: {self.name} has layers 0 to {self.n_layers - 1}")
        return layer

    # --- running

    @torch.no_grad()
    def logits(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits at every position; `attention_mask` is False (0) on padding, positions follow from it."""
        return self._run(input_ids, attention_mask, None)[0]

    @torch.no_grad()
    def extend(
        self, input_ids: Int[Tensor, "batch new"], attention_mask: Bool[Tensor, "batch all"], cache: Any = None
    ) -> tuple[Float[Tensor, "batch new vocab"], Any]:
        """Logits of new tokens after a key-value cache (None: from the start), and the cache that holds them too."""
        if self._bridged:
            return self._run(input_ids, attention_mask, cache if cache is not None else transformers.DynamicCache())
        if cache is None:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            cache = TransformerLensKeyValueCache.init_cache(self.tl.cfg, self.device, len(input_ids))
        return self._run(input_ids, attention_mask, cache)

    def _run(self, input_ids: Tensor, attention_mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        input_ids = input_ids.to(self.device)
        mask = attention_mask.to(self.device, torch.long)
        if not self._bridged:
            seen = 0 if cache is None else cache[0].past_keys.shape[1]
            now = mask[:, seen:] if cache is not None else mask
            return self.tl(input_ids, attention_mask=now, past_kv_cache=cache), cache
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        accepts = self._accepts_positions()
        extra = {"position_ids": positions} if accepts else {}
        out = self.tl.original_model(
            input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **extra
        )
        return out.logits, out.past_key_values

    def _accepts_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.tl.original_model.forward).parameters

    def repeated(self, cache: Any, times: int) -> Any:
        """A copy of a cache with every row `times` times in a row: one prefill serves many samples."""
        again = copy.deepcopy(cache)
        if self._bridged:
            again.batch_repeat_interleave(times)
            return again
        for entry in again.entries:
            entry.past_keys = entry.past_keys.repeat_interleave(times, 0)
            entry.past_values = entry.past_values.repeat_interleave(times, 0)
        if getattr(again, "previous_attention_mask", None) is not None:
            again.previous_attention_mask = again.previous_attention_mask.repeat_interleave(times, 0)
        return again

    @contextlib.contextmanager
    def hooks(
        self, post: Mapping[int, Hook] | None = None, residual: Mapping[int, Hook] | None = None
    ) -> Iterator[None]:
        """Run with hooks on post-activations and on the residual stream; only these are removed again.

        Args:
            post: layer to hook on the input of that layer's down-projection, `[batch, pos, d_mlp]`.
            residual: layer to hook on the residual stream, `[batch, pos, d_model]`: 0 is the embedding's output, n
                that of the n-th block (before the final norm).

        Raises:
            HookNeverFired: the block ended without an exception, and some hook never ran.
        """
        wanted: list[tuple[str, Any, Hook]] = []
        for layer, hook in (post or {}).items():
            wanted.append((f"post-activation of layer {layer}", self._post_point(layer), hook))
        for layer, hook in (residual or {}).items():
            wanted.append((f"residual stream {layer}", self._residual_point(layer), hook))
        fired = [False] * len(wanted)
        handles: list[tuple[Any, Any]] = []
        try:
            for i, (_, point, fn) in enumerate(wanted):

                def run(value: Tensor, hook: Any, i: int = i, fn: Hook = fn) -> Tensor | None:
                    fired[i] = True
                    return fn(value)

                point.add_hook(run)
                handles.append((point, point.fwd_hooks[-1]))
            yield
        finally:
            for point, handle in reversed(handles):
                handle.hook.remove()
                if handle in point.fwd_hooks:
                    point.fwd_hooks.remove(handle)
        silent = [what for (what, _, _), done in zip(wanted, fired, strict=True) if not done]
        if silent:
            raise HookNeverFired(f"{self.name}: hooked but never reached: {', '.join(silent)}; did the model run?")

    def _post_point(self, layer: int) -> Any:
        return self.tl.blocks[self._checked_layer(layer)].mlp.hook_post

    def _residual_point(self, layer: int) -> Any:
        if layer == 0:
            return self.tl.blocks[0].hook_resid_pre
        return self.tl.blocks[self._checked_layer(layer - 1)].hook_resid_post

    # --- text

    def encode(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Token ids, padded on the left, with their mask; no special token is added but the tokenizer's own.

        Args:
            max_length: of a longer text only the first tokens are kept, whatever its neighbours' lengths.
        """
        # Cut before padding: a slice of a padded batch would cut its short texts too.
        rows = [torch.tensor(ids[:max_length], dtype=torch.long) for ids in self.tokenizer(list(texts))["input_ids"]]
        padding = int(self.tokenizer.pad_token_id)
        ids = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        return ids.to(self.device), mask.to(self.device, torch.bool)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of token ids, special tokens left out."""
        return list(self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True))


def _checked_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token first")
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_architecture(config: Any, otherwise: str = "") -> None:
    names = list(getattr(config, "architectures", None) or filter(None, [otherwise]))
    what = names[0] if names else type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{what} is an encoder-decoder: expected a decoder-only causal language model")
    if names and not what.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(f"{what} is not a causal language model: expected a decoder with a language-model head")


def _bridge(model: Any) -> Any:
    """Wrap a Hugging Face model that nobody else holds, raw: weights stay what they are."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    names = getattr(model.config, "architectures", None)
    if not names:
        model.config.architectures = names = [type(model).__name__]
    model.eval()
    try:
        return build_bridge_from_module(model, names[0], hf_config=model.config)
    except Exception as error:
        raise ValueError(f"TransformerLens cannot hook {names[0]} as a decoder with dense MLPs: {error}") from error


def _checksum(model: Any) -> dict[str, float]:
    """A sum for every parameter: cheap next to loading, and any training step changes it."""
    return {name: float(torch.sum(weight.detach(), dtype=torch.float64)) for name, weight in model.named_parameters()}


def _digest(weight: Tensor) -> str:
    data = weight.detach().to("cpu").reshape(-1).contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()
