"""Adapter files in the layout of the PEFT library, both ways: adapter_config.json and adapter_model.safetensors, with the trained head inside.

A file that was read is written back unchanged. Linears of ours that share a matrix in the file but have an A each (LoRA on GPT-2's q and v) are
written as one adapter of the summed rank, with zeros that PEFT would train; a note in the file's metadata lets us take them apart again, bit for bit.
Differs from PEFT: dropout is drawn for each of q, k and v, where PEFT draws once for the fused input.
"""
from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..families.rules import Tied
from ..nn.model import Model
from ..weights.files import read_json, replace_files, write_json
from ..weights.save import family_of
from ..weights.sources import PATTERNS, resolve
from ..weights.tensors import check_finite
from .groups import TrainableReport, fresh_names, set_trainable, trainable_report
from .lora import insert_lora, lora_layers, lora_names, remove_adapters
from .peft_sites import ROOT, Pair, Site, block_structured, file_name, joined, parted, rules, shortest_targets, sites

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "causal": "CAUSAL_LM", "span": "QUESTION_ANS"}
UNREAD = {"use_dora": False, "bias": "none", "lora_bias": False, "layer_replication": None, "trainable_token_indices": None,
          "target_parameters": None, "alora_invocation_tokens": None}      # options that change the maths, and the value that leaves them off


def head_tensors(model: Model, names: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The parameters `names` under their names in the file, and the modules PEFT has to restore for them."""
    parameters = dict(model.named_parameters())
    found = [(theirs, rule, ours) for theirs, rule, ours in rules(model) if set(ours) <= names]
    modules = list(dict.fromkeys(theirs.split(".")[0] for theirs, _, _ in found))
    tensors = {ROOT + file_name(model, theirs, ours[0]): rule.op.write([parameters[one].detach() for one in ours]) for theirs, rule, ours in found}
    ours_of = {theirs: ours[0] for theirs, _, ours in rules(model)}
    for tie in family_of(model).WEIGHTS:      # PEFT restores a module as a whole: what is tied inside it goes along
        if isinstance(tie, Tied) and tie.theirs.split(".")[0] in modules and tie.to in ours_of:
            tensors[ROOT + tie.theirs] = parameters[ours_of[tie.to]].detach().clone()
    return tensors, modules


def base_of(model: Model) -> str | None:
    """Where the model came from; a local folder as its full path, so that the adapter finds it from anywhere."""
    if model.load_report is None:
        return None
    source = model.load_report.source
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def adapter_config(model: Model, pairs: dict[str, Pair], modules: list[str]) -> dict:
    """adapter_config.json. r and alpha are those of most matrices; the others are listed by name."""
    layer, every = next(iter(lora_layers(model).values())), sites(model)
    (r, alpha), _ = Counter((pair.r, pair.alpha) for pair in pairs.values()).most_common(1)[0]
    odd = {file_name(model, name, every[name].ours[0]): pair for name, pair in pairs.items() if (pair.r, pair.alpha) != (r, alpha)}
    return {
        "peft_type": "LORA", "task_type": TASKS.get(model.head_name), "base_model_name_or_path": base_of(model), "revision": None,
        "inference_mode": True, "r": r, "lora_alpha": alpha, "lora_dropout": layer.dropout.rate, "bias": "none", "use_rslora": layer.rslora,
        "use_dora": False, "init_lora_weights": True, "fan_in_fan_out": any(every[name].transposed for name in pairs),
        "target_modules": shortest_targets(list(pairs), list(every)), "modules_to_save": modules or None,
        "rank_pattern": {name: pair.r for name, pair in odd.items()}, "alpha_pattern": {name: pair.alpha for name, pair in odd.items()}}


def save_adapter(model: Model, folder: str | Path) -> None:
    """Write the LoRA of `model` and every other parameter that trains (the head); `peft.PeftModel.from_pretrained(base, folder)` reads it.

    Raises: ValueError if the model carries no LoRA or is merged, if something trains that this layout cannot hold, or the disk is full.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("save_adapter on a model without LoRA; it writes the A and B of each layer: "
                         "call add_lora first, or save the whole model with save_pretrained")
    if any(layer.merged for layer in layers.values()):
        raise ValueError("save_adapter on a merged model; it writes the A and B of each layer: "
                         "call unmerge_lora first, or keep the merged model with save_pretrained")
    if len({(layer.dropout.rate, layer.rslora) for layer in layers.values()}) > 1:
        raise ValueError("the LoRAs of this model differ in dropout or rslora; an adapter file has one value for all: use the same in every add_lora")
    names = {name for name, p in model.named_parameters() if p.requires_grad} - set(lora_names(model))
    if strangers := sorted(n for n in names if not n.startswith(("head.", "pooler."))):
        raise ValueError(f"{', '.join(strangers[:3])} ({len(strangers)} in all) train beside the LoRA; an adapter file holds the LoRA and the head "
                         "only: freeze them, or merge_lora and save the whole model")
    every = sites(model)
    pairs = {name: pair for name, site in every.items() if (pair := joined(site, layers, model)) is not None}
    tensors, modules = head_tensors(model, names)
    for name, pair in pairs.items():
        whole = ROOT + file_name(model, name, every[name].ours[0])
        tensors |= {f"{whole}.lora_A.weight": pair.A, f"{whole}.lora_B.weight": pair.B}
    separate = {name: pair.ranks for name, pair in pairs.items() if pair.ranks is not None}
    try:
        with replace_files(folder) as aside:
            write_json(aside / CONFIG, adapter_config(model, pairs, modules))
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, aside / TENSORS,
                      metadata={"format": "pt"} | ({"separate": json.dumps(separate)} if separate else {}))
    except OSError as e:
        raise ValueError(f"{folder} could not be written ({e}); what was there before is unchanged: "
                         "free some space, or choose another folder") from e


def read_adapter(folder: Path) -> tuple[dict, dict[str, Tensor], dict[str, list[int]]]:
    """The config, the tensors, and the note about Linears with an A each.

    Raises: ValueError for a config of another method, an option that is not read, or a file that is damaged or no safetensors file.
    """
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG} has peft_type={config.get('peft_type')!r}; LoRA adapters are read here (LORA): give the folder of one")
    if used := [f"{name}={config[name]!r}" for name, off in UNREAD.items() if config.get(name) not in (off, None)]:
        raise ValueError(f"{folder / CONFIG} uses {', '.join(used)}; plain LoRA and rslora are read: "
                         "merge this adapter into its model with PEFT, and load the merged model")
    if not (folder / TENSORS).is_file():
        raise ValueError(f"{folder} has no {TENSORS}; adapters are read from safetensors only: "
                         "fetch the folder again, or save a .bin anew with a current PEFT")
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            note = json.loads((file.metadata() or {}).get("separate", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as e:
        raise ValueError(f"{folder / TENSORS} cannot be read as safetensors ({e}); it is cut off, damaged or another kind of file: "
                         "fetch it again") from None
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    return config, tensors, note


def pattern_value(patterns: dict | None, name: str, default: int | float) -> int | float:
    """The entry of a rank_pattern or alpha_pattern that matches the end of `name`, as PEFT matches it."""
    return next((value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", name)), default)


@dataclass
class Fit:
    """One file against one model: what goes where, and everything that does not fit. Nothing is changed until all of it does."""

    model: Model
    config: dict
    note: dict[str, list[int]]
    halves: dict[str, dict[str, Tensor]] = field(default_factory=dict)      # module -> {"A": ..., "B": ...}
    pairs: dict[str, Pair] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)                 # parameter of ours -> its value
    ties: list[tuple[str, Tensor, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self, tensors: dict[str, Tensor]) -> None:
        every, named = sites(self.model), {theirs: (rule, ours) for theirs, rule, ours in rules(self.model)}
        tied = {tie.theirs: tie.to for tie in family_of(self.model).WEIGHTS if isinstance(tie, Tied)}
        for key, tensor in tensors.items():
            name = key.removeprefix(ROOT).removeprefix(family_of(self.model).PREFIX)
            half = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
            if half and half[1] in every:
                self.halves.setdefault(half[1], {})[half[2]] = tensor
            elif name in named:
                self.take(key, tensor, *named[name])
            elif name in tied:
                self.ties.append((key, tensor, tied[name]))
            else:
                near = difflib.get_close_matches(half[1] if half else name, every if half else named, 1)
                self.faults.append(f"unexpected: {key}" + (f" (nearest: {near[0]})" if near else ""))
        for name, both in self.halves.items():
            self.pair(every[name], both)
        for key, tensor, to in self.ties:
            ours = named[to][1][0]
            held = self.values.get(ours, dict(self.model.named_parameters()).get(ours))
            if held is None or not torch.equal(held.detach().cpu(), tensor.to(held.dtype)):
                self.faults.append(f"tied: {key} differs from {to}, but this family uses one tensor for both")

    def take(self, key: str, tensor: Tensor, rule, ours: list[str]) -> None:
        """A parameter outside the LoRAs: the head, the pooler."""
        parameters = dict(self.model.named_parameters())
        for one, value in zip(ours, rule.op.read(tensor, len(ours)), strict=True):
            if one not in parameters:
                self.faults.append(f"head: {key} belongs to a head or pooler this model has not; its head is {self.model.head_name!r}: use set_head")
            elif parameters[one].shape != value.shape:
                self.faults.append(f"shape: {key} is {tuple(value.shape)}, {one} is {tuple(parameters[one].shape)}")
            else:
                self.values[one] = value

    def pair(self, site: Site, both: dict[str, Tensor]) -> None:
        """An A and a B, with the rank and alpha the config gives them."""
        if set(both) != {"A", "B"}:
            self.faults.append(f"half: {site.theirs} has lora_{next(iter(both))} and not the other: both are needed")
            return
        A, B = both["A"], both["B"]
        rows = sum(self.model.get_parameter(name + ".weight").shape[0] for name in site.ours)
        width = self.model.get_parameter(site.ours[0] + ".weight").shape[1]
        whole = file_name(self.model, site.theirs, site.ours[0])
        r = int(pattern_value(self.config.get("rank_pattern"), whole, self.config.get("r", 0)))
        if A.shape != (r, width) or B.shape != (rows, r):
            self.faults.append(f"shape: {site.theirs} has A {tuple(A.shape)} and B {tuple(B.shape)}; rank {r} (adapter_config.json) on this base "
                               f"needs {(r, width)} and {(rows, r)}")
            return
        pair = Pair(A, B, pattern_value(self.config.get("alpha_pattern"), whole, self.config.get("lora_alpha", r)))
        parted_pair = Pair(A, B, pair.alpha, tuple(self.note[site.theirs])) if site.theirs in self.note else pair
        self.pairs[site.theirs] = parted_pair if block_structured(site, parted_pair) else pair


def load_adapter(model: Model, folder: str | Path) -> TrainableReport:
    """Put the LoRA (and the head, if it is in the file) of a PEFT adapter into `model`, in the place of any LoRA it carries; training can go on.

    Args:    folder: of the adapter, or its id on the hub.
    Returns: the report of what trains now: the LoRA, the head, and what else the file held.
    Raises:  ValueError that lists everything in which the file and the model do not fit; the model is then as it was.
    """
    folder = resolve(folder, patterns=(*PATTERNS, CONFIG, TENSORS))
    config, tensors, note = read_adapter(folder)
    fit, every = Fit(model, config, note), sites(model)
    fit.check(tensors)
    if not fit.pairs and not fit.faults:
        fit.faults.append("empty: it holds no lora_A and lora_B")
    if fit.faults:
        raise ValueError(f"the adapter in {folder} (made for {config.get('base_model_name_or_path')}) does not fit this model ({base_of(model)}):\n  "
                         + "\n  ".join(fit.faults) + "\nload it into the base it was made for")
    remove_adapters(model)
    for name, pair in fit.pairs.items():
        for group, r, alpha, A, Bs in parted(every[name], pair):
            insert_lora(model, group, r, alpha, config.get("lora_dropout") or 0.0, bool(config.get("use_rslora")))
            for linear, B in zip(group, Bs, strict=True):
                model.get_parameter(linear + ".lora_A").data.copy_(A)
                model.get_parameter(linear + ".lora_B").data.copy_(B)
    for name, value in fit.values.items():
        model.get_parameter(name).data.copy_(value)
    set_trainable(model, {*lora_names(model), *fresh_names(model), *fit.values})
    return trainable_report(model)
