"""ForwardPasses a model: pass by pass, with hooks on its neurons, alone or beside another model."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xlingtox.checking import checked
from xlingtox.models.backend import Backend, Hook, HuggingFaceBackend
from xlingtox.models.tl_backend import TransformerLensBackend


class HookNeverFired(RuntimeError):
    """A hook was asked for and the model never reached it."""


@dataclass(frozen=True)
class Pass:
    """What hooks may ask of the pass that they see.

    Attributes:
        continuing: whether it goes on from a cache.
        languages: of its rows, where they are known.
    """

    continuing: bool
    languages: tuple[str, ...] | None


@dataclass
class BatchCache:
    """What is held of a batch between its passes.

    Attributes:
        key_values: keys and values.
        languages: of the rows, where they are known.
        alongside: the same of the models that run beside this one.
    """

    key_values: Any
    languages: tuple[str, ...] | None = None
    alongside: dict[ForwardPasses, BatchCache] = field(default_factory=dict)

    def of(self, other: ForwardPasses) -> BatchCache:
        """Raises ValueError where the other model has not read what came before."""
        if other not in self.alongside:
            raise ValueError(f"{other.name} has not read the batch from its start: set the patch before the first pass")
        return self.alongside[other]


class ForwardPasses:
    """What runs; `HookedLM` is this and knows what it is.

    Attributes:
        name: of the model, for messages.
        tokenizer: the Hugging Face tokenizer.
        n_layers, d_model, d_mlp: depth, width of the residual stream, neurons per layer.
        current_pass: the pass at hand, for hooks; None between passes.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    d_mlp: int

    def __init__(self, side: TransformerLensBackend, plain: HuggingFaceBackend | None) -> None:
        self._tl_backend, self._hf_backend = side, plain
        engines = (plain, None if side.unbridged else side)
        self._backends: tuple[Backend, ...] = tuple(engine for engine in engines if engine is not None)
        self._faithful = True
        self.current_pass: Pass | None = None
        self._companions: dict[object, tuple[ForwardPasses, dict[int, Tensor]]] = {}
        self._beside: dict[object, ForwardPasses] = {}
        self._standing: list[list[object]] = []
        self.n_layers, self.d_model = side.n_layers, side.d_model

    @property
    def device(self) -> torch.device:
        return self._tl_backend.device_of(0)

    @property
    def exact(self) -> bool:
        """Whether weights are held in 32 bits or more, so that two ways to the same number differ little."""
        return self._tl_backend.packed is None and self._tl_backend.unembedding().dtype.itemsize >= 4

    @property
    def hooked(self) -> bool:
        """Whether hooks stand on the model now, edits among them, so that its answers may not be its own."""
        return any(self._standing) or self._tl_backend.hooked_by_hand()

    @property
    def standing_edit(self) -> str | None:
        """What stands on the model and may change its answers, in the order in which it was set; None for nothing."""
        said = [str(live[0]) for live in self._standing if live and live[0] is not None]
        said += ["hooks on .tl"] if self._tl_backend.hooked_by_hand() else []
        return ", then ".join(said) or None

    def check_unedited(self, why: str) -> None:
        """Raise ValueError if an edit or another hook that may change answers stands on the model.

        Args:
            why: why that must not be; it follows "which".
        """
        if (edit := self.standing_edit) is not None:
            raise ValueError(
                f"{self.name} stands under {edit}, which {why}: leave the block of edit.on(lm), or take the model that "
                "edit.bake(lm) gives"
            )

    @checked
    @torch.no_grad()
    def logits(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"],
        *,
        languages: Sequence[str] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits at every position; `attention_mask` is False (0) on padding, positions follow from it.

        Args:
            languages: of the rows, for edits that differ by language.
            last_only: work out those of the last position alone, as where hooks are what the pass is for.
        """
        with self._passing(Pass(False, _as_rows(languages))):
            for other in self._others():
                other.logits(input_ids, attention_mask, languages=languages, last_only=True)
            return self._backend().run(input_ids, attention_mask, last_only=last_only)[0]

    @torch.no_grad()
    def extend(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Bool[Tensor, "batch all"] | Int[Tensor, "batch all"],
        *,
        cache: BatchCache | None = None,
        languages: Sequence[str] | None = None,
    ) -> tuple[Float[Tensor, "batch vocab"], BatchCache]:
        """Logits of the last position, and what is held of the batch for its next tokens.

        Args:
            cache: what the pass before gave (None: from the start); it may not be used again.
            languages: of the rows, in their first pass, for edits that differ by language.
        """
        engine, continuing = self._backend(), cache is not None
        own = BatchCache(engine.empty_cache(len(input_ids)), _as_rows(languages)) if cache is None else cache
        with self._passing(Pass(continuing, own.languages)):
            for other in self._others():
                beside = own.of(other) if continuing else None
                _, own.alongside[other] = other.extend(input_ids, attention_mask, cache=beside, languages=own.languages)
            logits, own.key_values = engine.run(input_ids, attention_mask, own.key_values, last_only=True)
        return logits[:, -1], own

    def repeated(self, held: BatchCache, times: int) -> BatchCache:
        """A copy with every row `times` times in a row: one prefill serves many samples."""
        rows = None if held.languages is None else tuple(each for each in held.languages for _ in range(times))
        beside = {other: other.repeated(its, times) for other, its in held.alongside.items()}
        return BatchCache(self._backend().repeated(held.key_values, times), rows, beside)

    def selected(self, held: BatchCache, rows: Int[Tensor, "row"]) -> BatchCache:
        """What is held of these rows alone; the one given may not be used again."""
        kept = None if held.languages is None else tuple(held.languages[i] for i in rows.tolist())
        beside = {other: other.selected(its, rows.to(other.device)) for other, its in held.alongside.items()}
        return BatchCache(self._backend().selected(held.key_values, rows), kept, beside)

    def _others(self) -> Collection[ForwardPasses]:
        """The models that run beside this one, each once."""
        return dict.fromkeys(other for other, _ in self._companions.values()).keys()

    @contextlib.contextmanager
    def _passing(self, now: Pass) -> Iterator[None]:
        if self.current_pass is not None:
            raise ValueError(
                f"{self.name} is running already: it cannot be called from its own hooks or another thread"
            )
        try:
            self.current_pass = now
            yield
        finally:
            self.current_pass = None
            for _, seen in self._companions.values():
                seen.clear()

    @contextlib.contextmanager
    def run_alongside(
        self, other: ForwardPasses, layers: Collection[int]
    ) -> Iterator[dict[int, Float[Tensor, "batch pos d_mlp"]]]:
        """While this model runs, let another run on the same tokens, just before it.

        Yields:
            by layer, the other's post-activations in the pass at hand; empty between passes.

        Raises:
            ValueError: it is this model itself, or differs in shape or vocabulary.
            HookNeverFired: the block ended without an exception, and the other model never ran.
        """
        if other is self:
            raise ValueError(f"{self.name} cannot run alongside itself: load it twice")
        self.check_alike(other)
        seen: dict[int, Tensor] = {}
        key = object()

        def keep(layer: int) -> Hook:
            def kept(value: Tensor) -> None:
                # A pass of the other alone is of other tokens.
                if self.current_pass is not None:
                    seen[layer] = value

            return kept

        # In and out without a call, where an interrupt could come between.
        self._companions[key] = other, seen
        other._beside[key] = self
        try:
            with other.hooks(post={layer: keep(layer) for layer in layers}, edit=None):
                yield seen
        finally:
            del self._companions[key], other._beside[key]

    def check_alone(self) -> None:
        """Raise ValueError while another model is patched from this one: an edit set now would reach the patch in part,
        at the neurons behind it and not at its own, which are taken before it."""
        for other in self._beside.values():
            raise ValueError(
                f"{self.name} is the source of a patch on {other.name}, which an edit set now would reach in part: "
                "enter the edit's block before the patch's"
            )

    def check_alike(self, other: ForwardPasses) -> None:
        """Raise ValueError unless both models have the same shape and vocabulary, so that neurons and tokens match."""
        if (self.n_layers, self.d_mlp, self.d_model) != (other.n_layers, other.d_mlp, other.d_model):
            raise ValueError(f"the models differ in shape: {self!r} and {other!r}")
        gated = [each for each in (self, other) if each._tl_backend.gate_projection(0) is not None]
        if len(gated) == 1:
            raise ValueError(f"the models differ in shape: only the MLPs of {gated[0]!r} are gated")
        if self.tokenizer.get_vocab() != other.tokenizer.get_vocab():
            raise ValueError("the models differ in their tokenizers' vocabularies")

    def _backend(self) -> Backend:
        """The plain model, unless someone set a hook on the TransformerLens model by hand."""
        if self._hf_backend is None or not self._tl_backend.hooked_by_hand():
            return self._hf_backend or self._tl_backend
        if not self._faithful:
            raise RuntimeError(
                f"{self.name}: a hook was set on .tl by hand, where TransformerLens gives other logits than Hugging "
                "Face: use HookedLM.hooks, or another release of TransformerLens"
            )
        return self._tl_backend

    @checked
    @contextlib.contextmanager
    def hooks(
        self,
        post: Mapping[int, Hook] | None = None,
        residual: Mapping[int, Hook] | None = None,
        edit: object = "hooks",
    ) -> Iterator[None]:
        """Run with hooks on post-activations and on the residual stream; only these are removed again.

        Args:
            post: layer to hook on the input of that layer's down-projection, `[batch, pos, d_mlp]`.
            residual: layer to hook on the residual stream, `[batch, pos, d_model]`: 0 is the embedding's output, n
                that of the n-th block (before the final norm).
            edit: what results that are computed meanwhile call these hooks, by its `str`; None for hooks that only
                read, which results need not tell.

        Raises:
            ValueError: no such layer.
            HookNeverFired: the block ended without an exception, and some hook never ran.
        """
        wanted = [("post", self._check_layer(layer), hook) for layer, hook in (post or {}).items()]
        wanted += [("residual", self._check_residual(layer), hook) for layer, hook in (residual or {}).items()]
        fired, live = [False] * len(wanted), [edit]
        # An interrupt can come between any two lines: a hook that it leaves behind must do nothing.
        try:
            with contextlib.ExitStack() as undo:
                self._standing = [*filter(None, self._standing), live]
                for i, (kind, layer, hook) in enumerate(wanted):

                    def run(value: Tensor, i: int = i, hook: Hook = hook) -> Tensor | None:
                        if not live:
                            return None
                        fired[i] = True
                        return hook(value)

                    for engine in self._backends:
                        undo.callback((engine.on_post if kind == "post" else engine.on_residual)(layer, run))
                yield
        finally:
            live.clear()
        silent = [f"{kind} {layer}" for (kind, layer, _), done in zip(wanted, fired, strict=True) if not done]
        if silent:
            raise HookNeverFired(f"{self.name}: hooked but never reached: {', '.join(silent)}; did the model run?")

    def _check_layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"no layer {layer}: {self.name} has layers 0 to {self.n_layers - 1}")
        return layer

    def _check_residual(self, layer: int) -> int:
        return layer if layer == 0 else self._check_layer(layer - 1) + 1


def _as_rows(languages: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if languages is None else tuple(languages)
