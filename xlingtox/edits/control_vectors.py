"""ControlVectors: offsets as one constant vector for each block, which other engines can add."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.edits.affine import Affine, logits_of_random_tokens, tolerance
from xlingtox.equality import equal
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import fingerprint
from xlingtox.models.sites import UNITS_OF, Place, Site

_AT_THE_END: tuple[Site, ...] = ("neurons", "mlp_output", "residual")
"""The sites at which a constant comes to a constant at the end of the block."""

_LARGEST_STRENGTH = 1e6
"""The check stops enlarging an edit that is this many times as large and still shows no effect."""


@checked
@dataclass(frozen=True, eq=False)
class ControlVectors:
    """Constant vectors that are added to the outputs of a model's blocks.

    Moving neurons by a constant moves their MLP's output by a constant. So an offset of neurons can be carried to an
    engine that knows no neurons, such as llama.cpp.

    Attributes:
        vectors: layer (0 is the first block) to the vector that is added to that block's output.

    Example:
        >>> edit = xt.Offset(sources, -1.0)
        >>> vectors = edit.control_vectors(lm)
        >>> vectors.save(tmp_path / "vectors.safetensors")
        >>> with xt.ControlVectors.load(tmp_path / "vectors.safetensors").on(lm):
        ...     texts = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    vectors: Mapping[int, Float[Tensor, "d_model"]]

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    @checked
    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run the model with the vectors added to its blocks' outputs; afterwards it is as before.

        Raises:
            ValueError: a vector has another width than the model, or belongs to a layer that the model does not have.
        """
        for layer, vector in self.vectors.items():
            if not 0 <= layer < lm.n_layers:
                raise ValueError(f"there is a vector of layer {layer}: {lm.name} has layers 0 to {lm.n_layers - 1}")
            if vector.shape != (lm.d_model,):
                raise ValueError(
                    f"layer {layer} has a vector of {list(vector.shape)}: {lm.name} has d_model {lm.d_model}"
                )

        def adding(vector: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda state: state + vector.to(state)

        digest = fingerprint({str(layer): vector for layer, vector in self.vectors.items()})
        hooks = {layer + 1: adding(vector) for layer, vector in self.vectors.items()}
        with lm.hooks(residual=hooks, edit=f"control vectors ({digest})"):
            yield

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, in which `layer.N` is the vector of block N."""
        files.write_tensors(path, {f"layer.{layer}": vector for layer, vector in self.vectors.items()})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> ControlVectors:
        """Read vectors that `save` wrote; raise ValueError, with the path, where the file holds none."""
        tensors, _ = files.read_tensors(path)
        with files.understood(path, "control vectors"):
            return cls({int(name.removeprefix("layer.")): vector for name, vector in tensors.items()})

    @checked
    def save_gguf(self, path: str | Path, architecture: str) -> None:
        """Write a control vector for llama.cpp, which steers every block but the first.

        Args:
            architecture: llama.cpp's name of the model's family, such as `llama` or `gpt2`.

        Raises:
            ValueError: the first block has a vector.
            ImportError: the package gguf is missing.
        """
        if 0 in self.vectors:
            raise ValueError("llama.cpp cannot steer the first block, and this edit does: use save(), or try edit.bake")
        try:
            import gguf
        except ImportError as error:
            raise ImportError("a GGUF file needs the package gguf: pip install 'xlingtox[gguf]'") from error
        with (
            files.replacing(path) as partial,
            contextlib.closing(gguf.GGUFWriter(str(partial), "controlvector")) as writer,
        ):
            writer.add_string("controlvector.model_hint", architecture)
            writer.add_uint32("controlvector.layer_count", len(self.vectors))
            for layer, vector in sorted(self.vectors.items()):
                writer.add_tensor(f"direction.{layer}", vector.float().cpu().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()


def control_vectors(lm: HookedLM, affine: Affine) -> ControlVectors:
    """Return the shifts of each layer as one vector at its block's output.

    Raises:
        ValueError: the edit adds no constant there: it scales or sets, the offsets cancel, a norm follows the MLP, the
            site is inside a block, or the model rounds too coarsely.
    """
    if inside := [site for site, _ in affine.gains if site not in _AT_THE_END]:
        raise ValueError(
            "only offsets of neurons, of the MLP's output and of the residual stream are constant vectors: these are "
            f"added at the end of a block, and {UNITS_OF[inside[0]]} act inside it, where its other parts may read "
            "them. bake(lm) may write such offsets into weights"
        )
    if affine.scales:
        raise ValueError("only offsets are constant vectors: what scaled or set activations write depends on the token")
    shifts = {place: shift for place, shift in affine.shifts.items() if bool(shift.any())}
    vectors: dict[int, Tensor] = {}
    for (site, layer), shift in sorted(shifts.items()):
        pushed, multiplier = shift, 1.0
        if site != "residual":
            if lm.mlp_multipliers[layer] is None:
                raise ValueError(
                    f"{lm.name} has a norm after its MLP: no constant fits (in layer {layer}, what an offset adds "
                    "depends on the token)"
                )
            multiplier = lm.mlp_multipliers[layer] or 0.0
        if site == "neurons":
            pushed = shift @ lm.value_vectors(layer).double().cpu()
        vectors[layer] = vectors.get(layer, 0) + pushed * multiplier
    vectors = {layer: vector.float() for layer, vector in vectors.items() if bool(vector.any())}
    if not vectors:
        raise ValueError("the offsets cancel: no vector is left")
    _check_constant(lm, shifts, vectors)
    return ControlVectors(vectors)


def _check_constant(lm: HookedLM, shifts: Mapping[Place, Tensor], vectors: Mapping[int, Tensor]) -> None:
    """Raise ValueError unless the vectors do what the shifts do.

    Both are made so large that a difference shows in any precision.
    """
    plain, strength = logits_of_random_tokens(lm), 1.0

    def shifted(shift: Tensor) -> Hook:
        return lambda value: value + strength * shift.to(value)

    while True:
        with lm.hooks(at={place: shifted(shift) for place, shift in shifts.items()}):
            hooked = logits_of_random_tokens(lm)
        if float((hooked - plain).abs().max()) > 0.5 * float(plain.abs().max()) or strength > _LARGEST_STRENGTH:
            break
        strength *= 4
    with ControlVectors({layer: strength * vector for layer, vector in vectors.items()}).on(lm):
        gap = float((hooked - logits_of_random_tokens(lm)).abs().max())
    if not gap <= tolerance(lm) * float(hooked.abs().max()):
        precision = "packed weights" if lm.quantised else str(lm.dtype).removeprefix("torch.")
        raise ValueError(
            f"{lm.name} rounds too much: in {precision}, the vector differs from the offset (logits by {gap:.2g}). "
            + ("Load it without bits=" if lm.quantised else "Load it with dtype=torch.float32")
        )
