"""What is in a checkpoint, from its descriptions and the heads of its files: no weight is read, so it is quick for any size."""
from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..config import ModelConfig, RecurrentConfig
from ..families import FAMILIES, class_name, find, read_config
from ..nn.fresh import Room
from ..nn.heads import CLASSIFIES
from ..tasks.predict import tuned_folder
from ..text import Tokenizer
from ..transfer.groups import layer_groups
from ..transfer.peft_files import TENSORS
from ..weights.files import read_json
from ..weights.load import labels_of, unfilled
from ..weights.sources import resolve
from ..weights.tensors import INDEX, heads_of, numbers_in, shards

ADAPTER = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "size", "placement", "hypercomplex", "rank",
           "num_virtual_tokens", "target_modules", "modules_to_save")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


@dataclass(frozen=True)
class Inspection:
    """What was found, by subject: one that is not there is left out, one that cannot be read holds the reason as "problem". Prints as a list."""

    source: str
    folder: Path
    found: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return self.listed()

    def listed(self, everything: bool = False) -> str:
        """The list; of the config what is not as usual, and the tree of tensors of an adapter only, unless `everything` is wanted."""
        lines = [f"{self.source} ({self.folder})"]
        for subject, values in self.found.items():
            if subject == "tensors" and "problem" not in values:
                lines += [subject, *tree(values)] if everything or "adapter" in self.found else []
                continue
            given = values if everything or subject != "config" else unusual(values)
            left_out = f" ({len(values) - len(given)} more are as usual: --all shows them)" if len(given) < len(values) else ""
            width = max(map(len, given), default=0)
            lines += [subject + left_out, *(f"  {name:<{width}}  {shown(value)}" for name, value in given.items())]
        return "\n".join(lines)


def unusual(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config that are not the default of their kind of body."""
    usual = {f.name: f.default for f in fields(RecurrentConfig if "d_hidden" in values else ModelConfig)}
    return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


def shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={shown(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def tree(values: dict[str, Any], indent: str = "  ") -> list[str]:
    """Names in names, indented; siblings that hold the same stand in one line, `0-11`, and what has one child stands before it, `a.b`."""
    lines: list[str] = []
    alike: dict[str, list[str]] = {}
    for name, inside in values.items():
        alike.setdefault(json.dumps(inside), []).append(name)
    for names in alike.values():
        inside, name = values[names[0]], joined_names(names)
        while isinstance(inside, dict) and len(inside) == 1:
            (child, inside), = inside.items()
            name = f"{name}.{child}"
        lines += [f"{indent}{name}", *tree(inside, indent + "  ")] if isinstance(inside, dict) else [f"{indent}{name:<{40 - len(indent)}}  {inside}"]
    return lines


def joined_names(names: list[str]) -> str:
    """`0-6, 8-11` for numbers, which follow one another, else names with commas."""
    runs: list[list[str]] = []
    for name in names:
        if runs and name.isdecimal() and runs[-1][-1].isdecimal() and int(name) == int(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def inspect(source: str | Path, revision: str | None = None) -> Inspection:
    """Describe a checkpoint: family, architecture, parameters by layer group, files and dtypes, head, labels, tokenizer, adapter and task.

    Args:    source: a folder, a name under checkpoints/ or a hub id.
    Raises:  ValueError if there is no such source, or nothing in its folder describes a model.
    """
    folder = tuned_folder(source) if revision is None else resolve(source, revision)
    parts: dict[str, tuple[bool, Callable[[Path], dict[str, Any]]]] = {
        "model": ((folder / "config.json").is_file(), model_facts),
        "config": (known(folder), config_facts),
        "parameters": (known(folder), parameter_facts),
        "files": (any(path.suffix in (".safetensors", ".bin") or path.name == INDEX for path in folder.iterdir()), file_facts),
        "tokenizer": (any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")), tokenizer_facts),
        "adapter": ((folder / "adapter_config.json").is_file(), adapter_facts),
        "tensors": (weighed(folder) or (folder / TENSORS).is_file(), tensor_facts),
        "task": ((folder / "task.json").is_file(), lambda f: read_json(f / "task.json"))}
    found = {subject: attempted(read, folder) for subject, (there, read) in parts.items() if there}
    if "problem" in found.get("files", {}):
        found.pop("tensors", None)                                               # they are of these files
    if not found:
        raise ValueError(f"{folder} holds no config.json, adapter_config.json, tokenizer or weights; needed is the folder of a model, an adapter "
                         "or a run: check the path")
    return Inspection(str(source), folder, found)


def attempted(read: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What `read` finds, or why it cannot: one broken file does not hide the others."""
    try:
        return read(folder)
    except (ValueError, KeyError, OSError, RuntimeError) as e:
        return {"problem": str(e.args[0] if isinstance(e, KeyError) else e).splitlines()[0]}


def known(folder: Path) -> bool:
    """Whether there is a config.json that names a family."""
    try:
        return str(read_json(folder / "config.json").get("model_type")) in FAMILIES
    except ValueError:
        return False


def head_of(hf: dict) -> str:
    return find(hf.get("model_type")).heads.get(class_name(hf), "none")


def model_facts(folder: Path) -> dict[str, Any]:
    hf = read_json(folder / "config.json")
    facts = {"family": str(hf.get("model_type")), "architecture": class_name(hf) or "not given"}
    if isinstance(hf.get("vision_config"), dict):
        return facts | {"parts": "a text model and an image model: load_two_towers reads them, as .text and .image"}
    if not known(folder):
        return facts | {"problem": f"the family is not one of {', '.join(FAMILIES)}"}
    facts["head"] = head_of(hf)
    return facts | ({"labels": labels_of(hf)} if facts["head"] in ("sequence", "token") else {})


def config_facts(folder: Path) -> dict[str, Any]:
    """The architecture, as fields of ModelConfig."""
    return read_config(read_json(folder / "config.json"))[1].to_dict()


def parameter_facts(folder: Path) -> dict[str, Any]:
    """Parameters by layer group; memory is reserved for them and never touched."""
    hf = read_json(folder / "config.json")
    family, config = read_config(hf)
    head = head_of(hf)
    with Room(numbers_in(folder), folder) if weighed(folder) else nullcontext():
        model = unfilled(family.needed(config, head), head, labels_of(hf) if head in CLASSIFIES else None)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    groups = {group: sum(sizes[name] for name in names) for group, names in layer_groups(model).items()}
    return groups | {"total": sum(groups.values())}


def weighed(folder: Path) -> bool:
    """Whether there are weights that we read."""
    return any(re.fullmatch(r"model(-.*)?\.safetensors(\.index\.json)?", path.name) for path in folder.iterdir())


def file_facts(folder: Path) -> dict[str, Any]:
    """Every file of weights with its size, and how many numbers of which dtype they hold."""
    pickled = {path.name: f"{path.stat().st_size:,} bytes, pickled: convert it with `minitransfer convert`" for path in sorted(folder.glob("*.bin"))}
    if not weighed(folder):
        return {path.name: f"{path.stat().st_size:,} bytes" for path in sorted(folder.glob("*.safetensors"))} | pickled
    facts: dict[str, Any] = {}
    numbers: Counter[str] = Counter()
    tensors = 0
    for path, _, dtype, shape in heads_of(shards(folder)):
        numbers[DTYPES.get(dtype, dtype)] += math.prod(shape)
        tensors += 1
        facts[path.name] = f"{path.stat().st_size:,} bytes"
    return facts | {"tensors": tensors} | {f"{dtype} numbers": n for dtype, n in numbers.items()} | pickled


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    tok = Tokenizer.from_pretrained(folder)
    special = [f"{role} {tok.tokens([i])[0]} = {i}" for role in ROLES if (i := getattr(tok, f"{role}_id")) is not None]
    return {"kind": type(tok.backend.model).__name__, "tokens": tok.vocab_size, "longest input": tok.max_len or "not given",
            "special tokens": special, "fingerprint": tok.fingerprint[:16]}


def adapter_facts(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "adapter_config.json")
    return {name: config[name] for name in ADAPTER if config.get(name) is not None}


def tensor_facts(folder: Path) -> dict[str, Any]:
    """The tensors of the weights, or of the adapter, by the parts of their names: shape and dtype."""
    found: dict[str, Any] = {}
    for _, name, dtype, shape in sorted(heads_of(shards(folder) if weighed(folder) else [folder / TENSORS]), key=lambda one: order(one[1])):
        *path, last = name.split(".")
        place = found
        for part in path:
            if isinstance(place.get(part), str):                                 # a tensor with others below its name
                place[part] = {"": place[part]}
            place = place.setdefault(part, {})
        place[last] = f"{' x '.join(map(str, shape)) or 'one number'}  {DTYPES.get(dtype, dtype)}"
    return found


def order(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their size."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
