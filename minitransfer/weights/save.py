"""The same tables backwards: a model of ours becomes a standard checkpoint that transformers reads."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..families import Family, find, written_as
from ..families.rules import spelled
from ..nn.heads import ONE_CLASS, EmbeddingHead, SequenceHead
from ..nn.model import Model
from .files import replace_files, write_json
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
    config, parts = config_json(model, dtype), sharded(model, dtype, max_shard_bytes)
    try:
        with replace_files(folder, STALE) as aside:
            write_json(aside / "config.json", config)
            if len(parts) == 1:
                save_file(parts[0], aside / SINGLE, metadata={"format": "pt"})
            else:
                write_shards(parts, aside)
            if isinstance(model.head, EmbeddingHead):
                write_pooling(model.head, model.config.d_model, aside)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{folder} could not be written ({e}); what was there before is unchanged: free some space, or choose another folder") from e


def config_json(model: Model, dtype: torch.dtype | None) -> dict:
    """The config.json: what the file had before, with what the model is now."""
    family = family_of(model)
    head = "none" if model.head_name == "embedding" else model.head_name
    architecture = family.class_of(model.config, head)
    if architecture is None:
        raise ValueError(f'a {family.model_type} with head="{head}"; its files know {", ".join(dict.fromkeys(family.heads.values()))}: put one of these on with set_head')
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
    """Every tensor under the name its family gives it; tied tensors once.

    Raises: ValueError if a parameter has no name in the family's table.
    """
    family, parameters, used = family_of(model), dict(model.named_parameters()), set()
    bare = model.head_name in ("none", "embedding")
    for theirs, rule, ours in spelled(family.weights(model.config), model.head_name, model.config):
        if all(one in parameters for one in ours):
            used.update(ours)
            yield ("" if bare or ours[0].startswith("head.") else family.prefix(model.head_name)) + theirs, rule.op.write([parameters[one].detach() for one in ours])
    if strangers := sorted(set(parameters) - used):
        raise ValueError(f"{', '.join(strangers[:3])} ({len(strangers)} in all) have no name in {family.model_type} files; only the architecture's own "
                         "parameters can be saved: merge or remove adapters first, or save them with save_adapter")


def check_names(model: Model) -> None:
    """Raises: ValueError, as saving would, if a parameter has no name in the family's table."""
    for _ in named_tensors(model):
        pass


def sharded(model: Model, dtype: torch.dtype | None, max_bytes: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named_tensors(model):
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


def write_pooling(head: EmbeddingHead, width: int, folder: Path) -> None:
    """The files sentence-transformers reads: which pooling, and whether to normalise."""
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if head.normalise else [])
    rows = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | {flag: mode == head.pooling for mode, flag in modes.items()})
