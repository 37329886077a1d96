"""The other adapters in files: (IA)^3, prefixes and soft prompts in PEFT's layout; bottleneck adapters, which PEFT does not have, in the same two
files under our own names.

Where a file fuses q, k and v, its one vector of (IA)^3 holds ones for those that are not scaled; a part that is all ones is read as not scaled.
"""
from __future__ import annotations

from dataclasses import asdict, fields

import torch
from torch import Tensor, nn

from ..nn.model import Model
from .adapter import (
    AdaptedLinear,
    Design,
    adapted_layers,
    bottlenecks,
    insert_adapter,
)
from .ia3 import IA3Linear, ia3_layers, ia3_names, insert_ia3
from .named import adapter_names, need_chosen
from .peft_sites import ROOT, Kind, Reading, Site, Written, file_name, shortest_targets, sites
from .prefix import insert_prefix, prefix_names, prefixes, remove_prefix
from .soft_prompt import insert_soft_prompt, remove_soft_prompt, soft_prompt_names
from .wrapped import remove_wrapped

EMBEDDINGS = "prompt_embeddings"        # PEFT's one tensor of a prefix or soft prompt
OWN = "adapter."                        # before our names of a bottleneck's tensors

# ---- (IA)^3 ---------------------------------------------------------------------------------------------------------------------------------------


def write_ia3(model: Model) -> Written:
    """Raises: ValueError for a scaled input of Linears that are one matrix in the file."""
    layers, every, tensors = ia3_layers(model), sites(model), {}
    scaled: dict[bool, list[str]] = {False: [], True: []}
    for theirs, site in every.items():
        carriers = [layers.get(name) for name in site.ours]
        present = [layer for layer in carriers if layer is not None]
        if not present:
            continue
        on_input = present[0].on_input
        if len(carriers) > 1 and any(layer.on_input for layer in present):
            raise ValueError(f"{', '.join(site.ours)} are one matrix ({theirs}) in the file, with one vector for its input; "
                             "scale their outputs, or leave them out")
        parts = [torch.ones(model.get_parameter(name + ".weight").shape[0]) if layer is None else layer.ia3.detach().cpu()
                 for name, layer in zip(site.ours, carriers, strict=True)]
        tensors[ROOT + file_name(model, theirs, site.ours[0]) + ".ia3_l"] = parts[0][None] if on_input else torch.cat(parts)[:, None]
        scaled[on_input].append(theirs)
    inputs, outputs = (shortest_targets(scaled[side], list(every)) for side in (True, False))
    config = {"target_modules": outputs + inputs, "feedforward_modules": inputs, "init_ia3_weights": True,
              "fan_in_fan_out": any(every[name].transposed for names in scaled.values() for name in names)}
    return Written(config, tensors)


def parts_of(site: Site, vector: Tensor, rows: list[int], width: int) -> dict[str, tuple[bool, Tensor]] | str:
    """Linear -> whether its input is scaled, and the vector; or what is wrong."""
    if vector.shape == (1, width) and len(site.ours) == 1:
        return {site.ours[0]: (True, vector[0])}
    if vector.shape != (sum(rows), 1):
        return f"shape: {site.theirs} has ia3_l {tuple(vector.shape)}; on this base it needs {(sum(rows), 1)}" + (f" or {(1, width)}" if len(rows) == 1 else "")
    found = {name: (False, part[:, 0]) for name, part in zip(site.ours, vector.split(rows), strict=True)}
    trained = {name: both for name, both in found.items() if not bool((both[1] == 1).all())}
    return trained or found


def read_ia3(model: Model, config: dict, tensors: dict[str, Tensor], note: dict) -> Reading:
    every, used, faults = sites(model), set(), []
    found: dict[str, tuple[bool, Tensor]] = {}
    for name, tensor in tensors.items():
        theirs, _, last = name.rpartition(".")
        if last != "ia3_l" or theirs not in every:
            continue
        used.add(name)
        shapes = [model.get_parameter(one + ".weight").shape for one in every[theirs].ours]
        parts = parts_of(every[theirs], tensor, [shape[0] for shape in shapes], shapes[0][1])
        if isinstance(parts, str):
            faults.append(parts)
        else:
            found |= parts

    def insert() -> None:
        for linear, (on_input, vector) in found.items():
            insert_ia3(model, linear, on_input)
            model.get_parameter(linear + ".ia3").data.copy_(vector)
    return Reading(used, faults, insert)


# ---- prefix, soft prompt --------------------------------------------------------------------------------------------------------------------------


def prompt_config(model: Model, length: int, width: int) -> dict:
    c = model.config
    return {"num_virtual_tokens": length, "token_dim": width, "num_layers": c.n_layers, "num_attention_heads": c.kv_heads, "num_transformer_submodules": 1}


def write_prefix(model: Model) -> Written:
    """The file's one matrix: a row per position; in it, layer after layer, the key and the value. Those of a shared block stand there for each layer."""
    every = list(prefixes(model).values()) * (model.config.n_layers if model.config.shared_blocks else 1)
    whole = torch.cat([part.detach() for prefix in every for part in (prefix.keys, prefix.values)], dim=1)      # (P, L 2 K Dh)
    width = every[0].keys.shape[1]
    return Written({**prompt_config(model, every[0].length, width), "encoder_hidden_size": width, "prefix_projection": False}, {EMBEDDINGS: whole})


def read_prompt(model: Model, tensors: dict[str, Tensor], width: int, per: str, insert) -> Reading:
    """Raises nothing: a matrix that does not fit is a fault."""
    whole = tensors.get(EMBEDDINGS)
    if whole is None:
        return Reading(set(), [], lambda: None)
    fault = whole.dim() != 2 or whole.shape[1] != width or not 0 < len(whole) < model.config.max_len
    faults = [f"shape: {EMBEDDINGS} is {tuple(whole.shape)}; this base needs 1 to {model.config.max_len - 1} rows of {width} ({per})"] if fault else []
    return Reading({EMBEDDINGS}, faults, lambda: insert(whole))


def read_prefix(model: Model, config: dict, tensors: dict[str, Tensor], note: dict) -> Reading:
    width = model.config.kv_heads * model.config.d_head
    if model.config.shared_blocks and (whole := tensors.get(EMBEDDINGS)) is not None and whole.dim() == 2 and whole.shape[1] == 2 * model.config.n_layers * width:
        each = whole.unflatten(1, (model.config.n_layers, -1))
        if not torch.equal(each, each[:, :1].expand_as(each)):
            return Reading({EMBEDDINGS}, [f"values: the layers of {EMBEDDINGS} differ; this base has one block and its layers share one prefix"], lambda: None)

    def insert(whole: Tensor) -> None:
        insert_prefix(model, len(whole))
        parts = whole.split(width, dim=1)
        for i, prefix in enumerate(prefixes(model).values()):
            prefix.keys.data.copy_(parts[2 * i])
            prefix.values.data.copy_(parts[2 * i + 1])
    return read_prompt(model, tensors, 2 * model.config.n_layers * width, "2 blocks kv_heads d_head", insert)


def write_soft_prompt(model: Model) -> Written:
    vectors = model.get_parameter("embed.prompt.vectors")
    return Written({**prompt_config(model, *vectors.shape), "prompt_tuning_init": "RANDOM"}, {EMBEDDINGS: vectors})


def read_soft_prompt(model: Model, config: dict, tensors: dict[str, Tensor], note: dict) -> Reading:
    def insert(whole: Tensor) -> None:
        insert_soft_prompt(model, len(whole))
        model.get_parameter("embed.prompt.vectors").data.copy_(whole)
    return read_prompt(model, tensors, model.config.embed_width, "embedding width", insert)


# ---- bottleneck adapters --------------------------------------------------------------------------------------------------------------------------


def own_name(parameter: str, name: str) -> str:
    """What a parameter of the adapter `name` is called in the file, which does not say the adapter's name."""
    return OWN + parameter.replace(f".adapters.{name}.", ".")


def write_bottleneck(model: Model) -> Written:
    """The chosen adapter. Raises: ValueError if none is."""
    name = need_chosen(model, "save_adapter")
    design = next(iter(bottlenecks(model, name).values())).design
    return Written({"name": name, **asdict(design)}, {own_name(one, name): model.get_parameter(one) for one in adapter_names(model, name)})


def read_bottleneck(model: Model, config: dict, tensors: dict[str, Tensor], note: dict) -> Reading:
    given, name = {key: tensor for key, tensor in tensors.items() if key.startswith(OWN)}, str(config.get("name"))
    said = {one.name: config[one.name] for one in fields(Design) if one.name in config}
    try:
        design = Design(**said)
        built = design.build(model, torch.device("meta"))
    except (TypeError, ValueError):
        return Reading(set(given), [f"config: {', '.join(f'{key}={value!r}' for key, value in said.items())}, name={name!r} describe no adapter"], lambda: None)
    first: dict[nn.Parameter, str] = {}                                          # what the layers share is in the file once
    for at, bottleneck in built.items():
        for part, p in bottleneck.named_parameters():
            first.setdefault(p, f"{OWN}{at}.{part}")
    shapes = {one: tuple(p.shape) for p, one in first.items()}
    faults = [f"missing: {one}" for one in shapes if one not in given] + [f"unexpected: {one}" for one in given if one not in shapes]
    faults += [f"shape: {one} is {tuple(tensor.shape)}, this base needs {shapes[one]}" for one, tensor in given.items()
               if one in shapes and tuple(tensor.shape) != shapes[one]]

    def insert() -> None:
        insert_adapter(model, design, name)
        for one in adapter_names(model, name):
            model.get_parameter(one).data.copy_(given[own_name(one, name)])
    return Reading(set(given), faults, insert)


IA3 = Kind("(IA)^3", "ia3_l", lambda model: bool(ia3_layers(model)), ia3_names, write_ia3, read_ia3, lambda model: remove_wrapped(model, IA3Linear))
PREFIX = Kind("prefix", EMBEDDINGS, lambda model: bool(prefixes(model)), prefix_names, write_prefix, read_prefix, remove_prefix,
              root="base_model.", prompts=True)
SOFT_PROMPT = Kind("soft prompt", EMBEDDINGS, lambda model: bool(soft_prompt_names(model)), soft_prompt_names, write_soft_prompt, read_soft_prompt,
                   remove_soft_prompt, root="base_model.", prompts=True)
BOTTLENECK = Kind("adapter", f"{OWN}* tensors", lambda model: bool(adapted_layers(model)), adapter_names, write_bottleneck, read_bottleneck,
                  lambda model: remove_wrapped(model, AdaptedLinear), named=True)
