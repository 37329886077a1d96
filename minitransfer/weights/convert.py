"""Old checkpoints, once: pytorch_model.bin becomes model.safetensors. The engine reads safetensors only: opening a pickle can run code.

Files of llama2.c (see llama2c.py) become the standard layout.
"""
from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .files import read_json, replace_files, write_json
from .llama2c import convert_llama2c, model_file
from .sentences import modules_of
from .sources import HUB_ID, PATTERNS, resolve
from .tensors import INDEX, SINGLE, check_finite

OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                "vocab.txt", "vocab.json", "merges.txt", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote. `tied`: copies that were dropped, each with the name its tensor is kept under."""

    folder: Path
    files: tuple[str, ...]
    tensors: int
    bytes: int
    tied: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.tensors} tensors, {self.bytes / 1e6:.1f} MB, in {', '.join(self.files)}"]
        return "\n".join(lines + [f"  {name} is the same tensor as {kept}: written once" for name, kept in self.tied.items()])


def convert(source: str | Path, out: str | Path | None = None) -> Converted:
    """Write the weights of an old checkpoint as safetensors: every tensor, bit for bit, under its own name; one that has several names once.

    Args:    source: a folder with pytorch_model.bin, or with its shards and their index; one .bin or .pt file that holds a table of tensors; the id
             on the hub of an old repository; or weights of llama2.c, a file or a folder with one: its tokenizer is taken along if it is beside it.
             out: the folder to write to (default: the one of `source`). The old file stays; the configuration and the tokenizer are copied along.
    Raises:  ValueError if there is nothing to convert, if safetensors are already there, or for a file that holds more than tensors: what
             `torch.load(weights_only=True)` refuses could run code, and is not opened. On any error `out` is as it was.
    """
    source = fetched(source, out)
    folder = source if source.is_dir() else source.parent
    target = folder if out is None else Path(out).expanduser()
    other = model_file(source)
    files = old_files(source) if other is None else []
    if existing := [name for name in (SINGLE, INDEX) if (target / name).is_file()]:
        raise ValueError(f"{target} already has {existing[0]}; a conversion would replace it: use it as it is, or give another folder to write to")
    tied: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    size = 0
    if other is not None:
        with replace_files(target) as aside:
            parameters = list(convert_llama2c(other, aside).parameters())
            written = tuple(sorted(path.name for path in aside.iterdir()))
        return Converted(target, written, len(parameters), sum(p.nbytes for p in parameters), tied)
    with replace_files(target) as aside:
        if target.resolve() != folder.resolve():
            copy_descriptions(folder, aside)
        for number, path in enumerate(files, 1):
            name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            tensors = dict(unique(read_pickled(path), tied))
            save_file(tensors, aside / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            size += sum(t.nbytes for t in tensors.values())
        if len(files) > 1:
            write_json(aside / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    return Converted(target, tuple(dict.fromkeys(weight_map.values())), len(weight_map), size, tied)


def fetched(source: str | Path, out: str | Path | None) -> Path:
    """Where the source lies on this machine. Raises: ValueError for an id without a folder to write to: the hub's cache is not ours to write in."""
    path = Path(source).expanduser()
    if path.exists() or "/" not in str(source) or not HUB_ID.fullmatch(str(source)):
        return path
    if out is None:
        raise ValueError(f"no folder {source}; for a repository of the hub a folder to write to is needed: minitransfer convert {source} FOLDER")
    return resolve(source, patterns=(*PATTERNS, "pytorch_model*.bin", "*/pytorch_model.bin"))


def old_files(source: Path) -> list[Path]:
    """The pickled files of a checkpoint, in order.

    Raises: ValueError if there are none, or an index names a file outside the folder or one that is missing.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source} does not exist; needed is a folder with {OLD_SINGLE}, or such a file: check the path")
    if (source / OLD_INDEX).is_file():
        names = sorted({str(name) for name in read_json(source / OLD_INDEX).get("weight_map", {}).values()})
        for name in names:
            if Path(name).name != name or not (source / name).is_file():
                raise ValueError(f"{OLD_INDEX} in {source} names {name!r}; a shard is a file in the same folder: fetch all of them again")
        if names:
            return [source / name for name in names]
    if (source / OLD_SINGLE).is_file():
        return [source / OLD_SINGLE]
    there = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
    done = (source / SINGLE).is_file() or (source / INDEX).is_file()
    raise ValueError(f"{source} has no {OLD_SINGLE}; it has {there}: " + ("it is in safetensors already, there is nothing to convert" if done else
                                                                        "give the folder of an old checkpoint, or the .bin or .pt file itself"))


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a pickled file, opened so that nothing in it can run.

    Raises: ValueError for a file that is no such table, is cut off, or holds values that are NaN or infinite.
    """
    with path.open("rb") as file:
        if not (start := file.read(40)).startswith((b"PK", b"\x80")):          # a zip archive or a pickle: the two forms torch.save has had
            raise ValueError(f"{path} was not written by torch.save (it starts with {start!r}); it is damaged, a failed download or a pointer to "
                             "the file: fetch it again")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ValueError(f"{path} holds more than tensors ({reason(e)}); opening it could run code, so it was not opened: take the safetensors of "
                         "this model, or ask whoever wrote it for a file with only a state_dict") from None
    except (RuntimeError, EOFError, OSError, KeyError, AttributeError, IndexError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} cannot be read ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no reason given'}); "
                         "it is cut off, damaged or another kind of file: fetch it again") from None
    if not isinstance(found, dict):
        odd = [f"it is a {type(found).__name__}"]
    else:
        odd = [f"{name!r} is a {type(value).__name__}" for name, value in found.items() if not isinstance(value, Tensor)]
    if odd or not found:
        raise ValueError(f"{path} is no table of tensors ({', '.join(odd[:3]) or 'it is empty'}); needed is a state_dict: "
                         "save the model's own, `torch.save(model.state_dict(), ...)`")
    for name, tensor in found.items():
        check_finite(name, tensor)
    return found


def reason(error: Exception) -> str:
    """What the refused file asked for, out of a message of many lines."""
    words = str(error).replace("\n", " ")
    start = words.find("Unsupported")
    return words[start if start >= 0 else 0:].split(". ")[0].split(" Please")[0][:160].strip()


def unique(tensors: dict[str, Tensor], tied: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor once. Those that share memory are one; safetensors has no way to say so, and the loader knows which are tied."""
    seen: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            tied[name] = seen[place]
            continue
        seen[place] = name
        yield name, tensor.contiguous().clone()


def copy_descriptions(folder: Path, aside: Path) -> None:
    """The configuration and the tokenizer belong to the weights, and so do the modules of sentence-transformers."""
    for name in DESCRIPTIONS:
        if (folder / name).is_file():
            (aside / name).write_bytes((folder / name).read_bytes())
    for place in (place for kind, place in modules_of(folder) if kind != "Transformer"):
        if place.is_dir():
            shutil.copytree(place, aside / place.name)
