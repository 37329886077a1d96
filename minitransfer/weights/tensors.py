"""Tensors from safetensors files, one at a time: a single file, or shards with an index. Nothing is trusted before it was checked."""
from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)     # of weights; integers and 8-bit floats are codes that need a scale


def shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files that hold a checkpoint's tensors, each with the names the index promises (None without an index).

    Raises: ValueError if there are none, or the index names a file outside the folder or one that is missing.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        advice = (f"convert {', '.join(pickled)} once with `minitransfer convert {folder}`" if pickled else
                  "give a folder that has them, or convert an old repository of the hub once with `minitransfer convert ID FOLDER`")
        raise ValueError(f"{folder} has no {SINGLE} and no {INDEX}; weights are read from safetensors only: {advice}")
    promised: dict[Path, set[str] | None] = {}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX} has no weight_map; needed is a table of tensor names and files: fetch the index again")
    for name, file in weight_map.items():
        path = folder / str(file)
        if Path(str(file)).name != file or not str(file).endswith(".safetensors"):
            raise ValueError(f"{INDEX} in {folder} points {name} to {file!r}; a shard is a .safetensors file in the same folder: do not load this checkpoint")
        if not path.is_file():
            raise ValueError(f"{INDEX} in {folder} names {file}, which is missing: fetch all shards again")
        promised.setdefault(path, set()).add(name)      # type: ignore[union-attr]
    return promised


def heads_of(files: Iterable[Path]) -> Iterator[tuple[Path, str, str, list[int]]]:
    """File, name, dtype (as safetensors spells it) and shape of every tensor of safetensors files; no tensor is read. Raises: as `read_tensors`."""
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    one = file.get_slice(name)
                    yield path, name, one.get_dtype(), one.get_shape()
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{path} cannot be read as safetensors ({e}); it is cut off, damaged or another kind of file: fetch it again") from None


def numbers_in(folder: Path) -> int:
    """How many numbers the files hold."""
    return sum(math.prod(shape) for *_, shape in heads_of(shards(folder)))


def read_tensors(folder: Path, only: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint in `folder`, or `only` those of these names, mapped from the file and not yet copied.

    Raises: ValueError for a file that is cut off, is not safetensors, or does not hold what the index promises.
    """
    for path, promised in shards(folder).items():
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                if promised is not None and names != promised:
                    wrong = sorted(names ^ promised)
                    raise ValueError(f"{path.name} and {INDEX} in {folder} disagree about {', '.join(wrong[:5])}: fetch the checkpoint again")
                for name in sorted(names):
                    if only is None or name in only:
                        yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{path} cannot be read as safetensors ({e}); it is cut off, damaged or another kind of file: fetch it again") from None


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises: ValueError for NaN or infinity: every number computed from such weights would be wrong. (A sum takes a twentieth of the time of the exact question.)"""
    if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))) and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} has {bad} values that are NaN or infinite out of {tensor.numel()}; weights are finite numbers: "
                         "the training that wrote them diverged or the file is damaged, take an earlier checkpoint")
