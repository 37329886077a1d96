"""The folders of sentence-transformers, both ways: what stands after the body, one module a folder, and what is written before a text.

    modules.json                          the modules in order: Transformer, Pooling, any number of Dense, Normalize
    1_Pooling/config.json                 which pooling
    2_Dense/config.json + safetensors     in_features, out_features, bias, activation_function; linear.weight, linear.bias
    config_sentence_transformers.json     prompts, default_prompt_name
    sentence_bert_config.json             max_seq_length, do_lower_case: of the tokenizer, read with it
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..config import choose
from ..nn.fresh import Room
from ..nn.heads import POOLINGS, EmbeddingHead
from ..nn.model import Model
from ..nn.sentence import Projection
from .files import read_json, write_json
from .tensors import SINGLE, check_finite, numbers_in, read_tensors

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "last"}
ACTIVATIONS = {"Tanh": "tanh", "Identity": None, "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}


def modules_of(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in order; empty without a modules.json.

    Raises: ValueError for a list of modules that we do not compute: without one of them the vectors would be others.
    """
    if not (folder / MODULES).is_file():
        return []
    try:
        rows = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        found = [(str(row["type"]).rpartition(".")[2], str(row["path"])) for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise ValueError(f"{folder / MODULES} is no list of modules ({e}); each has a type and a path: fetch it again") from None
    kinds = [kind for kind, _ in found]
    if strangers := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"{folder / MODULES} has {', '.join(strangers)}; we compute {', '.join(KINDS)} only: "
                         'use another checkpoint, or head="none" for its states')
    order = sorted(kinds, key=KINDS.index)
    if kinds != order or any(kinds.count(kind) > 1 for kind in KINDS if kind != "Dense"):
        raise ValueError(f'{folder / MODULES} has {", ".join(kinds)}; they are computed in the order {", ".join(KINDS)}: use another checkpoint, or head="none" for its states')
    if outside := [path for _, path in found if Path(path).name != path or path == ".."]:
        raise ValueError(f"{folder / MODULES} names the folder {outside[0]!r}; a module's folder is in the same one: do not load this checkpoint")
    return [(kind, folder / path) for kind, path in found]


def pooling_of(folder: Path) -> dict[str, Any]:
    """The pooling and normalisation that the files ask for. Raises: ValueError for one that we do not have, and as `modules_of`."""
    modules = modules_of(folder)
    place = dict(modules).get("Pooling", folder / "1_Pooling")
    if not (place / "config.json").is_file():
        return {}
    wanted = read_json(place / "config.json")
    if wanted.get("include_prompt") is False:
        raise ValueError(f'include_prompt=False in {place / "config.json"}; we pool every token, those of the prompt too: use another checkpoint, or head="none" for its states')
    said = wanted.get("pooling_mode", [FLAGS.get(flag, flag.removeprefix("pooling_mode_")) for flag, on in wanted.items() if flag.startswith("pooling_mode_") and on is True])
    chosen = [said] if isinstance(said, str) else list(said) or ["mean"]
    pooling = "+".join(chosen).replace("lasttoken", "last")
    choose("pooling", pooling, POOLINGS)
    return {"pooling": pooling, "normalise": any(kind == "Normalize" for kind, _ in modules)}


def read_projection(place: Path) -> Projection:
    """A Dense module of its folder. Raises: ValueError for one whose maths we do not have, or whose tensors do not fit its config."""
    told = read_json(place / "config.json")
    activation = str(told.get("activation_function", "Tanh")).rpartition(".")[2].removesuffix("()")
    choose(f"activation_function in {place / 'config.json'}", activation, tuple(ACTIVATIONS))
    odd = {"use_residual": (False,), "module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding", None)}
    if other := [f"{name}={told[name]!r}" for name, values in odd.items() if name in told and told[name] not in values]:
        raise ValueError(f"{', '.join(other)} in {place / 'config.json'}; we compute f(x W^T + b) of the pooled vector only: use another checkpoint")
    with Room(numbers_in(place), place):
        made = Projection(told["in_features"], told["out_features"], told.get("bias", True), ACTIVATIONS[activation])
    tensors, needed = dict(read_tensors(place)), dict(made.named_parameters())
    if {name: t.shape for name, t in tensors.items()} != {name: p.shape for name, p in needed.items()}:
        raise ValueError(f"{place / SINGLE} holds { {name: tuple(t.shape) for name, t in tensors.items()} }; its config.json needs "
                         f"{ {name: tuple(p.shape) for name, p in needed.items()} }: fetch both again")
    for name, tensor in tensors.items():
        check_finite(name, tensor)
        needed[name].data.copy_(tensor)
    return made


def read_sentences(model: Model, folder: Path) -> None:
    """Give an embedding head what stands after the pooling and before the text."""
    for kind, place in modules_of(folder):
        if kind == "Dense":
            at = f"head.projections.{len(model.head.projections)}."
            model.head.projections.append(read_projection(place))
            assert model.load_report is not None
            model.load_report.loaded += [at + name for name, _ in model.head.projections[-1].named_parameters()]
    if (folder / PROMPTS).is_file():
        told = read_json(folder / PROMPTS)
        model.head.prompts.update({str(name): str(text) for name, text in (told.get("prompts") or {}).items()})
        model.head.prompts.default = told.get("default_prompt_name")
        model.head.prompts.before(None)                                          # a default that is none of them is said now


def write_sentences(head: EmbeddingHead, width: int, dtype: torch.dtype | None, folder: Path) -> None:
    """The files sentence-transformers reads."""
    kinds = ["Transformer", "Pooling", *("Dense" for _ in head.projections), *(["Normalize"] if head.normalise else [])]
    places = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    rows = [{"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"} for i, (place, kind) in enumerate(zip(places, kinds, strict=True))]
    (folder / MODULES).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for place in places[1:]:
        (folder / place).mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | {flag: mode == head.pooling for flag, mode in FLAGS.items()})
    for place, made in zip(places[2:], head.projections, strict=False):
        name = next(name for name, ours in ACTIVATIONS.items() if ours == made.activation)
        write_json(folder / place / "config.json", {
            "in_features": made.linear.in_features, "out_features": made.linear.out_features, "bias": made.linear.bias is not None,
            "activation_function": f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}"})
        save_file({part: p.detach().to(device="cpu", dtype=dtype or p.dtype).contiguous() for part, p in made.named_parameters()}, folder / place / SINGLE,
                  metadata={"format": "pt"})
    if head.prompts:
        write_json(folder / PROMPTS, {"prompts": head.prompts, "default_prompt_name": head.prompts.default})
