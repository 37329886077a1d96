"""The same tables backwards: a model of ours becomes a standard checkpoint that transformers reads."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..families import FAMILIES, Family, find, written_as
from ..families.rules import spelled
from ..nn.heads import ONE_CLASS, EmbeddingHead, SequenceHead
from ..nn.model import Model
from ..ops.quantized_weight import plain
from .files import replace_files, write_json
from .sentences import write_sentences
from .tensors import INDEX, SINGLE

STALE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


def family_of(model: Model) -> Family:
    """The family a model is saved as: the one it came from, else the one whose files can describe it."""
    return find(model.source_config["model_type"]) if model.source_config else written_as(model.config)


def save_pretrained(model: Model, folder: str | Path, dtype: torch.dtype | None = None, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write config.json and the weights under the names the model's family uses; transformers reads them with its own from_pretrained.

    Args:   dtype: of the saved tensors (default: the model's own); max_shard_bytes: larger checkpoints are split, with an index.
    Raises: ValueError if no family can describe the model or its head, if an adapter is still in it, or if the disk is full (what was in `folder` is kept).
    """
    write_checkpoint(folder, config_json(model, dtype), sharded(named_tensors(model), dtype, max_shard_bytes), model, dtype)


def write_checkpoint(folder: str | Path, config: dict, parts: list[dict[str, Tensor]], model: Model | None = None,
                     dtype: torch.dtype | None = None) -> None:
    """Put the files in their places together. Raises: ValueError if they cannot be written."""
    try:
        with replace_files(folder, STALE) as aside:
            write_json(aside / "config.json", config)
            if len(parts) == 1:
                save_file(parts[0], aside / SINGLE, metadata={"format": "pt"})
            else:
                write_shards(parts, aside)
            if model is not None and isinstance(model.head, EmbeddingHead):
                write_sentences(model.head, model.config.d_model, dtype, aside)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{folder} could not be written ({e}); what was there before is unchanged: free some space, or choose another folder") from e


def config_json(model: Model, dtype: torch.dtype | None) -> dict:
    """The config.json: what the file had before, with what the model is now."""
    family = family_of(model)
    head = "none" if model.head_name == "embedding" else model.head_name
    architecture = family.class_of(model.config, head)
    if architecture is None:
        known = [model_type for model_type, other in FAMILIES.items() if head in other.heads.values()]
        raise ValueError(f'a {family.model_type} with head="{head}"; its files know {", ".join(dict.fromkeys(family.heads.values()))}: '
                         f'put one of these on with set_head, or use a family whose files have it ({", ".join(known) or "none"})')
    config = {**model.source_config, **family.write(model.config), "architectures": [architecture]}
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    config["dtype"] = str(dtype or model.embed.tokens.weight.dtype).removeprefix("torch.")
    if model.labels:
        config["id2label"] = {str(i): label for i, label in enumerate(model.labels)}
        config["label2id"] = {label: i for i, label in enumerate(model.labels)}
    config.pop("problem_type", None)
    if isinstance(model.head, SequenceHead) and (model.head.problem != ONE_CLASS or len(model.labels or ()) == 1):    # of one output transformers assumes a regression
        config["problem_type"] = model.head.problem
    return config


def named_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under the name its family gives it; tied tensors once, but a block that stands in several places in each of them.

    Raises: ValueError if a parameter has no name in the family's table.
    """
    family, used = family_of(model), set()
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    parameters |= {name: p.clone() for name, p in model.named_parameters(remove_duplicate=False) if "blocks." in name and name not in parameters}
    bare = model.head_name in ("none", "embedding")
    for theirs, rule, ours in spelled(family.weights(model.config), model.head_name, model.config):
        if all(one in parameters for one in ours):
            used.update(ours)
            yield ("" if bare or ours[0].startswith("head.") else family.prefix(model.head_name)) + theirs, rule.op.write([plain(parameters[one].detach()) for one in ours])
    if strangers := sorted(name for name in set(parameters) - used if not name.startswith("head.projections.")):       # those have files of their own
        raise ValueError(f"{', '.join(strangers[:3])} ({len(strangers)} in all) have no name in {family.model_type} files; only the architecture's own "
                         "parameters can be saved: merge or remove adapters first, or save them with save_adapter")


def check_names(model: Model) -> None:
    """Raises: ValueError, as saving would, if a parameter has no name in the family's table."""
    for _ in named_tensors(model):
        pass


def sharded(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, max_bytes: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors:
        tensor = tensor.to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        if parts[-1] and size + tensor.nbytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


def write_shards(parts: list[dict[str, Tensor]], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for part in parts for tensor in part.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
