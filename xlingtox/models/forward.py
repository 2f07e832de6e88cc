"""Forward passes with hooks: of one model alone, or of two models that read the same tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xlingtox.checking import checked
from xlingtox.models.backend import Backend, Hook, HuggingFaceBackend
from xlingtox.models.passes import BatchCache, HookBlock, Pass
from xlingtox.models.prefix import PrefixTokens
from xlingtox.models.shape import Shape
from xlingtox.models.sites import Place, Site
from xlingtox.models.tl_backend import TransformerLensBackend


class HookNeverFired(RuntimeError):
    """A hook was asked for and the model never reached it.

    A hook that silently does nothing would make an edit look harmless, so it is an error.

    Example:
        >>> with lm.hooks(post={0: lambda activations: None}):
        ...     pass  # the model does not run
        Traceback (most recent call last):
        ...
        xlingtox.models.forward.HookNeverFired: mini: hooked but never reached: post 0; did the model run?
    """


class ForwardPasses:
    """Forward passes with hooks. `HookedLM` adds the vectors of the neurons and the tokens of texts.

    Attributes:
        name: the model's name, for messages.
        tokenizer: the Hugging Face tokenizer.
        n_layers, d_model, d_mlp: the number of layers, the width of the residual stream, the neurons per layer.
        current_pass: the pass that is running, for hooks; None between passes.
        prefix: what the model reads before every text; None where it reads texts alone.

    Example:
        >>> ids, mask = lm.encode(["the cat", "la casa"])
        >>> with lm.hooks(post={0: lambda activations: 0 * activations}, edit="no first layer"):
        ...     lm.standing_edit, lm.logits(ids, mask, last=1).shape[:2]
        ('no first layer', torch.Size([2, 1]))
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    d_mlp: int
    prefix: PrefixTokens | None = None

    def __init__(self, tl_backend: TransformerLensBackend, hf_backend: HuggingFaceBackend | None) -> None:
        self._tl_backend, self._hf_backend = tl_backend, hf_backend
        backends = (hf_backend, None if tl_backend.no_bridge_because else tl_backend)
        self._backends: tuple[Backend, ...] = tuple(backend for backend in backends if backend is not None)
        self._tl_agrees = True
        self._is_differentiable = False
        self.current_pass: Pass | None = None
        # The models that run alongside this one, each with its activations in the pass that is running.
        self._companions: dict[object, tuple[ForwardPasses, dict[Place, Tensor]]] = {}
        # The models that this one runs alongside: it is a companion of each.
        self._companion_of: dict[object, ForwardPasses] = {}
        # The blocks of `hooks` in the order in which they were entered. Those that were left stay until the next one.
        self._open_blocks: list[HookBlock] = []
        self.n_layers, self.d_model = tl_backend.n_layers, tl_backend.d_model

    @property
    def device(self) -> torch.device:
        """The device of the first layer's neurons."""
        return self._tl_backend.device_of(0)

    @property
    def exact(self) -> bool:
        """Return whether weights are held in 32 bits or more, so that rounding changes results very little."""
        return self._tl_backend.packed is None and self._tl_backend.unembedding().dtype.itemsize >= 4

    @property
    def hooked(self) -> bool:
        """Return whether any hook is set on the model now. Edits are hooks too, and may change its answers."""
        return any(block.is_open for block in self._open_blocks) or self._tl_backend.hooked_by_hand()

    @property
    def standing_edit(self) -> str | None:
        """The edits and hooks that may change the model's answers now, in the order in which they were set.

        None if there are none.
        """
        edits = [] if self.prefix is None else [str(self.prefix)]
        edits += [str(edit) for edit in self.open_edits if edit is not None]
        edits += ["hooks on .tl"] if self._tl_backend.hooked_by_hand() else []
        return ", then ".join(edits) or None

    @property
    def open_edits(self) -> tuple[object, ...]:
        """The edit of each block of hooks that is open now, in their order; None for hooks that only read."""
        return tuple(block.edit for block in self._open_blocks if block.is_open)

    def edits_by_digest(self) -> tuple[str, ...] | None:
        """Return a digest of all that each edit on the model does, in the order in which they were set.

        None if a hook is on the model of which no digest tells everything: one that was set by hand, one that only
        reads, and so must see each pass, or an edit whose effect depends on another model.

        Example:
            >>> with xt.Offset(sources, -1.0).on(lm):
            ...     digests = lm.edits_by_digest()
            ...     logits = lm.logits(*lm.encode(["the cat"]))
            >>> len(digests), lm.edits_by_digest()
            (1, ())
        """
        if self._tl_backend.hooked_by_hand() or self._companions:
            return None
        digests = [getattr(edit, "digest", None) for edit in self.open_edits]
        digests = digests if self.prefix is None else [self.prefix.digest, *digests]
        return None if None in digests else tuple(map(str, digests))

    def spare_hooks(self) -> None:
        """Say that a pass of this model was computed before, so that it is no error if its hooks never fire."""
        for block in self._open_blocks:
            block.is_spared = True

    def check_unedited(self, why: str) -> None:
        """Raise ValueError if an edit, or another hook that may change its answers, is on the model.

        Args:
            why: the reason, which follows "which" in the message, such as "is not in its weights".
        """
        if self.prefix is not None:
            raise ValueError(f"{self.name} stands under {self.prefix}, which {why}: take the model without the prefix")
        if (edit := self.standing_edit) is not None:
            raise ValueError(
                f"{self.name} stands under {edit}, which {why}: leave the block of edit.on(lm), or take the model that "
                "edit.bake(lm) gives"
            )

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let the passes of `logits` in the block be differentiated with respect to activations.

        Weights get no gradient, so that a backward pass costs no more than a forward pass. A hook on the residual
        stream at 0 should return a tensor that requires a gradient, for the graph to begin there.

        Example:
            >>> import torch
            >>> starts = []
            >>> def begin(state):
            ...     starts.append(state.detach().requires_grad_())
            ...     return starts[0]
            >>> with lm.differentiable(), lm.hooks(residual={0: begin}, edit=None):
            ...     logits = lm.logits(*lm.encode(["the cat"]), last=1)
            >>> torch.autograd.grad(logits.sum(), starts)[0].shape == starts[0].shape
            True
        """
        model: Any = self._tl_backend.tl if self._hf_backend is None else self._hf_backend.model
        frozen = [weight for weight in model.parameters() if weight.requires_grad]
        was_differentiable = self._is_differentiable
        unembed = None if self._hf_backend is None else self._hf_backend.modules.unembed
        # The states of the last positions are a slice. With a graph, torch multiplies a slice row by row.
        handle = None if unembed is None else unembed.register_forward_pre_hook(_contiguous)
        try:
            for weight in frozen:
                weight.requires_grad_(False)
            self._is_differentiable = True
            yield
        finally:
            self._is_differentiable = was_differentiable
            if handle is not None:
                handle.remove()
            for weight in frozen:
                weight.requires_grad_(True)

    @checked
    def logits(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"],
        *,
        languages: Sequence[str] | None = None,
        edits: Sequence[int] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Return the logits at every position, or at the last ones.

        Args:
            attention_mask: False (0) on padding. Tokens are numbered by it, so padding takes no position.
            languages: the rows' languages, for edits that differ by language.
            edits: the number of each row's edit, in a block of `edits.Together`.
            last: compute the logits of so many positions at the end only (default: of all). This saves time.
        """
        with (
            torch.set_grad_enabled(self._is_differentiable),
            self._passing(Pass(False, _as_rows(languages), _as_numbers(edits))),
        ):
            for companion in self._others():
                companion.logits(input_ids, attention_mask, languages=languages, last=1)
            return self._backend().run(input_ids, attention_mask, last=last)[0]

    @torch.no_grad()
    def extend(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Bool[Tensor, "batch all"] | Int[Tensor, "batch all"],
        *,
        cache: BatchCache | None = None,
        languages: Sequence[str] | None = None,
        edits: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "batch vocab"], BatchCache]:
        """Read new tokens of a batch. Return the logits of the last position, and the cache for the next tokens.

        Args:
            attention_mask: the mask of the tokens read before and of the new ones.
            cache: the cache that the previous pass returned; None to begin. It must not be used again.
            languages: the rows' languages, for edits that differ by language. Only the first pass needs them.
            edits: the number of each row's edit, in a block of `edits.Together`. Only the first pass needs them.
        """
        backend, continuing = self._backend(), cache is not None
        if cache is None:
            cache = BatchCache(backend.empty_cache(len(input_ids)), _as_rows(languages), _as_numbers(edits))
        with self._passing(Pass(continuing, cache.languages, cache.edits)):
            for companion in self._others():
                _, cache.alongside[companion] = companion.extend(
                    input_ids,
                    attention_mask,
                    cache=cache.of(companion) if continuing else None,
                    languages=cache.languages,
                )
            logits, cache.key_values = backend.run(input_ids, attention_mask, cache.key_values, last=1)
        return logits[:, -1], cache

    def repeated(self, cache: BatchCache, times: int) -> BatchCache:
        """Return a copy of a cache with `times` copies of every row, so that a prompt is read once for many samples."""
        languages = None if cache.languages is None else tuple(code for code in cache.languages for _ in range(times))
        edits = None if cache.edits is None else cache.edits.repeat_interleave(times)
        alongside = {companion: companion.repeated(theirs, times) for companion, theirs in cache.alongside.items()}
        return BatchCache(self._backend().repeated(cache.key_values, times), languages, edits, alongside)

    def selected(self, cache: BatchCache, rows: Int[Tensor, "row"]) -> BatchCache:
        """Return the cache of these rows alone. The cache that was passed in must not be used again."""
        languages = None if cache.languages is None else tuple(cache.languages[i] for i in rows.tolist())
        edits = None if cache.edits is None else cache.edits[rows.to(cache.edits.device)]
        alongside = {
            companion: companion.selected(theirs, rows.to(companion.device))
            for companion, theirs in cache.alongside.items()
        }
        return BatchCache(self._backend().selected(cache.key_values, rows), languages, edits, alongside)

    def _others(self) -> Collection[ForwardPasses]:
        """Return the models that run alongside this one, without repetition."""
        return dict.fromkeys(companion for companion, _ in self._companions.values()).keys()

    @contextlib.contextmanager
    def _passing(self, forward_pass: Pass) -> Iterator[None]:
        """Let hooks see this pass while it runs.

        Raises:
            ValueError: another pass of this model is running.
        """
        if self.current_pass is not None:
            raise ValueError(
                f"{self.name} is running already: it cannot be called from its own hooks or another thread"
            )
        try:
            self.current_pass = forward_pass
            yield
        finally:
            self.current_pass = None
            for _, activations in self._companions.values():
                activations.clear()

    @contextlib.contextmanager
    def run_alongside(
        self, companion: ForwardPasses, places: Collection[Place]
    ) -> Iterator[dict[Place, Float[Tensor, "batch pos column"]]]:
        """Let another model read the same tokens in each pass of this one, just before it.

        Yields:
            the other model's activations in the pass that is running, by place. Empty between passes.

        Raises:
            ValueError: the other model is this model itself, or differs in shape or vocabulary.
            HookNeverFired: the block ended without an exception, and the other model never ran.
        """
        if companion is self:
            raise ValueError(f"{self.name} cannot run alongside itself: load it twice")
        self.check_alike(companion)
        activations: dict[Place, Tensor] = {}
        key = object()

        def recorder(place: Place) -> Hook:
            def record(value: Tensor) -> None:
                # A pass of the other model alone reads other tokens, so it is not recorded.
                if self.current_pass is not None:
                    activations[place] = value

            return record

        # These lines call no function, because an interrupt could come between a call and what follows it.
        self._companions[key] = companion, activations
        companion._companion_of[key] = self
        try:
            with companion.hooks(at={place: recorder(place) for place in places}, edit=None):
                yield activations
        finally:
            del self._companions[key], companion._companion_of[key]

    def check_alone(self) -> None:
        """Raise ValueError while another model is patched from this one.

        A patch reads each neuron before an edit that is set later changes it. But such an edit changes the states of
        later layers, which the patch reads too. So the edit would reach the patch only in part.
        """
        for patched in self._companion_of.values():
            raise ValueError(
                f"{self.name} is the source of a patch on {patched.name}, which an edit set now would reach in part: "
                "enter the edit's block before the patch's"
            )

    def check_alike(self, other: ForwardPasses) -> None:
        """Raise ValueError unless both models have the same shape and vocabulary, so that neurons and tokens match."""
        self.shape().check_alike(other.shape())

    def shape(self) -> Shape:
        """Return the sizes and the vocabulary of the model."""
        gated = self._tl_backend.gate_projection(0) is not None
        return Shape((self.n_layers, self.d_mlp, self.d_model), gated, self.tokenizer.get_vocab(), repr(self))

    def _backend(self) -> Backend:
        """Return the plain model, unless someone set a hook on the TransformerLens model by hand."""
        if self._hf_backend is None or not self._tl_backend.hooked_by_hand():
            return self._hf_backend or self._tl_backend
        if not self._tl_agrees:
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
        heads: Mapping[int, Hook] | None = None,
        at: Mapping[Place, Hook] | None = None,
        edit: object = "hooks",
    ) -> Iterator[None]:
        """Set hooks on post-activations, on the residual stream, on attention heads or at any site while a block runs.

        Other hooks on the model stay where they are.

        Args:
            post: a hook for each layer number, on the input of that layer's down-projection, `[batch, pos, d_mlp]`.
            residual: a hook for each layer number, on the residual stream, `[batch, pos, d_model]`. 0 is the
                embedding's output, n the output of the n-th block (before the final norm).
            heads: a hook for each layer number, on the outputs of its attention heads, one after the other,
                `[batch, pos, n_heads * d_head]`: the input of the output projection.
            at: a hook for each place, which is a site and a layer, such as `("ln2", 0)`. `models.sites.Site` lists the
                sites. Layers are those of blocks: `("residual", 0)` is the residual stream after the first block.
            edit: a name for these hooks, or an object whose `str` is one. Results computed in the block carry it. None
                for hooks that only read, which results need not mention.

        Raises:
            ValueError: the model has no such layer, or the layer lacks the site: no attention heads that can be hooked,
                or no norm there.
            HookNeverFired: the block ended without an exception, and some hook never ran.

        Example:
            >>> ids, mask = lm.encode(["the cat"])
            >>> with lm.hooks(post={0: lambda activations: print(tuple(activations.shape))}, edit=None):
            ...     logits = lm.logits(ids, mask)
            (1, ..., 512)
        """
        wanted: list[tuple[str, Place | None, Hook]] = []
        wanted += [(f"post {layer}", ("neurons", layer), hook) for layer, hook in (post or {}).items()]
        wanted += [(f"heads {layer}", ("heads", layer), hook) for layer, hook in (heads or {}).items()]
        for layer, hook in (residual or {}).items():
            state = self._check_residual(layer)
            wanted.append((f"residual {layer}", ("residual", state - 1) if state else None, hook))
        wanted += [(f"{site} {layer}", (site, layer), hook) for (site, layer), hook in (at or {}).items()]
        self._check_places(place for _, place, _ in wanted if place is not None)
        fired, block = [False] * len(wanted), HookBlock(edit)
        # An interrupt can come between any two lines. A hook that it leaves behind must do nothing.
        try:
            with contextlib.ExitStack() as undo:
                self._open_blocks = [*(earlier for earlier in self._open_blocks if earlier.is_open), block]
                for i, (_, place, hook) in enumerate(wanted):

                    def run(value: Tensor, i: int = i, hook: Hook = hook) -> Tensor | None:
                        if not block.is_open:
                            return None
                        fired[i] = True
                        return hook(value)

                    for backend in self._backends:
                        undo.callback(backend.on_embedding(run) if place is None else backend.on(place, run))
                yield
        finally:
            block.is_open = False
        if block.is_spared:
            return
        unreached = [name for (name, _, _), ran in zip(wanted, fired, strict=True) if not ran]
        if unreached:
            raise HookNeverFired(f"{self.name}: hooked but never reached: {', '.join(unreached)}; did the model run?")

    def _check_layer(self, layer: int) -> int:
        """Return the layer, or raise ValueError if there is none of this number."""
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"no layer {layer}: {self.name} has layers 0 to {self.n_layers - 1}")
        return layer

    def _check_places(self, places: Iterable[Place]) -> None:
        """Raise ValueError unless the model has all these places."""
        layers_of: dict[Site, list[int]] = {}
        for site, layer in places:
            self._check_layer(layer)
            if layer not in layers_of.setdefault(site, self.layers_of(site)):
                raise ValueError(f"{self.name} has no {site} in layer {layer}: {_in_words(layers_of[site])}")

    @checked
    def layers_of(self, site: Site) -> list[int]:
        """Return the layers that have a site, such as a norm behind the MLP.

        Raises:
            ValueError: the site is "heads", and the layers have no attention heads of one width.

        Example:
            >>> lm.layers_of("ln2"), lm.layers_of("ln2_post"), lm.layers_of("ln_final")
            ([0, 1, 2, 3], [], [3])
        """
        try:
            return self._tl_backend.layers_of(site)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _check_residual(self, layer: int) -> int:
        """Return the layer of the residual stream, from 0 to `n_layers`, or raise ValueError if there is none."""
        return layer if layer == 0 else self._check_layer(layer - 1) + 1


def _in_words(layers: list[int]) -> str:
    return f"expected {', '.join(map(str, layers))}" if layers else "no layer has one"


def _contiguous(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].contiguous(), *args[1:])


def _as_rows(languages: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if languages is None else tuple(languages)


def _as_numbers(edits: Sequence[int] | None) -> Int[Tensor, "row"] | None:
    return None if edits is None else torch.tensor(edits, dtype=torch.long)
