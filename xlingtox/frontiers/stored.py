"""Keep a frontier in one safetensors file: for each measure and language a table with a row for each point."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlingtox import files
from xlingtox.evaluation.halves import Halves
from xlingtox.frontiers.point import Curve, Point
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import ScorerIdentity

_OF_CURVE = ("name", "citation", "dial", "fit_seconds", "token_seconds", "baked", "control")
_OF_RESULT = ("judges", "budgets", "source_language", "n_samples")


def write(path: str | Path, frontier: Mapping[str, Any]) -> None:
    """Write one safetensors file. Its tensors have a row for each point: the unedited model's first.

    Args:
        frontier: the fields of a frontier, by name.
    """
    unedited, curves, meanings = (frontier[name] for name in ("unedited", "curves", "meanings"))
    points = [unedited, *(point for curve in curves for point in curve.points)]
    rows = [dict(_arrays(point, frontier["judges"])) for point in points]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for kind, sides in zip(Halves._fields, frontier["halves"], strict=True):
        arrays |= {f"halves.{kind}.{code}": np.asarray(numbers) for code, numbers in sides.items()}
    about = {name: frontier[name] for name in _OF_RESULT} | {
        "strength": unedited.strength,
        "curves": [
            {name: getattr(curve, name) for name in _OF_CURVE} | {"strengths": [one.strength for one in curve.points]}
            for curve in curves
        ],
        "scorers": {name: dataclasses.asdict(scorer) for name, scorer in frontier["scorers"].items()},
        "meanings": meanings and {code: [_plain(meaning) for meaning in ids] for code, ids in meanings.items()},
        "model": frontier["model"] and dataclasses.asdict(frontier["model"]),
    }
    files.write_tensors(path, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, about)


def fields(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the frontier that a file holds."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    halves = {kind: _below(arrays, f"halves.{kind}.") for kind in Halves._fields}
    strengths = [about["strength"], *(one for curve in about["curves"] for one in curve["strengths"])]
    unedited, *points = (_point(arrays, row, strength, about["judges"]) for row, strength in enumerate(strengths))
    following = iter(points)
    curves = tuple(
        Curve(points=tuple(next(following) for _ in curve["strengths"]), **{name: curve[name] for name in _OF_CURVE})
        for curve in about["curves"]
    )
    return {
        "unedited": unedited,
        "curves": curves,
        "judges": tuple(about["judges"]),
        "scorers": {name: ScorerIdentity(**scorer) for name, scorer in about["scorers"].items()},
        "budgets": tuple(about["budgets"]),
        "source_language": about["source_language"],
        "meanings": about["meanings"],
        "halves": Halves(**halves),
        "n_samples": about["n_samples"],
        "model": about["model"] and Identity.of(about["model"]),
    }


def _arrays(point: Point, judges: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each array of a point with its name in the file. Judges are numbered, because they may have any name."""
    tables = {f"toxicity.{number}": point.toxicity[judge] for number, judge in enumerate(judges)}
    tables |= {f"kinds.{kind}": values for kind, values in point.kinds.items()}
    tables |= {"degenerate": point.degenerate, "distinct": point.distinct, "knowledge": point.knowledge}
    for side, name in enumerate(("losses", "tokens")):
        tables[name] = {code: pair[side] for code, pair in point.losses.items()}
    for name, values in tables.items():
        for code, numbers in values.items():
            yield f"{name}.{code}", numbers


def _point(arrays: Mapping[str, np.ndarray], row: int, strength: float, judges: Sequence[str]) -> Point:
    def table(name: str) -> dict[str, np.ndarray]:
        return {code: values[row] for code, values in _below(arrays, f"{name}.").items()}

    kinds = dict.fromkeys(
        name.removeprefix("kinds.").rpartition(".")[0] for name in arrays if name.startswith("kinds.")
    )
    losses, tokens = table("losses"), table("tokens")
    return Point(
        strength,
        {judge: table(f"toxicity.{number}") for number, judge in enumerate(judges)},
        degenerate=table("degenerate"),
        kinds={kind: table(f"kinds.{kind}") for kind in kinds},
        distinct=table("distinct"),
        losses={code: (losses[code], tokens[code]) for code in losses},
        knowledge=table("knowledge"),
    )


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _plain(meaning: Hashable) -> Hashable:
    """Return an id as JSON has it: numpy's numbers as Python's."""
    return meaning.item() if isinstance(meaning, np.generic) else meaning
