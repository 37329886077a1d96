"""Adapter files in the layout of the PEFT library, both ways: adapter_config.json and adapter_model.safetensors, with the trained head inside.

What each way to adapt writes and reads of it is in `peft_lora.py` and `peft_kinds.py`; here is what they share: the head, the checks, the files.
"""
from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..families.rules import Rule, Tied
from ..nn.heads import VocabularyHead
from ..nn.model import Model
from ..weights.files import read_json, replace_files, write_json
from ..weights.save import family_of
from ..weights.sources import PATTERNS, resolve
from ..weights.tensors import check_finite
from .beside import give, keep_only, leave
from .fingerprint import differs, fingerprint
from .groups import TrainableReport, fresh_names, set_trainable, trainable_report
from .named import DEFAULT, adapter_list, check_name, named_linears, remove_adapter, set_adapter
from .peft_kinds import BOTTLENECK, IA3, PREFIX, SOFT_PROMPT
from .peft_lora import LORA
from .peft_sites import Kind, Reading, file_name, rules, sites

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {"LORA": LORA, "IA3": IA3, "PREFIX_TUNING": PREFIX, "PROMPT_TUNING": SOFT_PROMPT, "BOTTLENECK": BOTTLENECK}
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "causal": "CAUSAL_LM", "span": "QUESTION_ANS"}


def remove_adapters(model: Model) -> None:
    """Take out whatever a way to adapt put in; the body is then what it was before, bit for bit. The head stays as trained."""
    for kind in KINDS.values():
        kind.remove(model)
    leave(model)


def carried(model: Model) -> dict[str, Kind]:
    """The kinds of adapter in the model, by their names in the file."""
    return {name: kind for name, kind in KINDS.items() if kind.carried(model)}


def head_tensors(model: Model, names: set[str], root: str) -> tuple[dict[str, Tensor], list[str]]:
    """The parameters `names` under their names in the file, and the modules PEFT has to restore for them."""
    parameters = dict(model.named_parameters())
    found = [(theirs, rule, ours) for theirs, rule, ours in rules(model) if set(ours) <= names]
    modules = list(dict.fromkeys(theirs.split(".")[0] for theirs, _, _ in found))
    tensors = {root + file_name(model, theirs, ours[0]): rule.op.write([parameters[one].detach() for one in ours]) for theirs, rule, ours in found}
    ours_of = {theirs: ours[0] for theirs, _, ours in rules(model)}
    for tie in family_of(model).weights(model.config):      # PEFT restores a module as a whole: what is tied inside it goes along
        if isinstance(tie, Tied) and tie.theirs.split(".")[0] in modules and tie.to in ours_of:
            tensors[root + tie.theirs] = parameters[ours_of[tie.to]].detach().clone()
    return tensors, modules


def base_of(model: Model) -> str | None:
    """Where the model came from, if it is saved anywhere; a local folder as its full path, so that the adapter finds it from anywhere."""
    source = "" if model.load_report is None else model.load_report.source
    if not source:
        return None
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def check_adapter(model: Model) -> tuple[str, Kind, set[str]]:
    """The one kind of adapter that a file of this model would hold, by its name in the file, and the parameters that would stand beside it.

    Raises: see `save_adapter`.
    """
    found = carried(model)
    if len(found) != 1:
        what = "without LoRA or another adapter" if not found else f"with {' and '.join(kind.called for kind in found.values())}"
        raise ValueError(f"save_adapter on a model {what}; a file holds one kind of adapter: "
                         + ("call add_lora first, or save the whole model with save_pretrained" if not found else "take one of them out"))
    (peft_type, kind), = found.items()
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ValueError("save_adapter on a merged model; it writes what each layer learned: "
                         "unmerge it first, or keep the merged model with save_pretrained")
    names = {name for name, p in model.named_parameters() if p.requires_grad} - set(kind.names(model))
    if strangers := sorted(n for n in names if not n.startswith(("head.", "pooler."))):
        raise ValueError(f"{', '.join(strangers[:3])} ({len(strangers)} in all) train beside the {kind.called}; an adapter file holds the {kind.called} "
                         "and the head only: freeze them, or merge what can be merged and save the whole model")
    return peft_type, kind, names


def save_adapter(model: Model, folder: str | Path) -> None:
    """Write the adapter of `model` (of several: the chosen one) and every other parameter that trains, which is the head.

    `peft.PeftModel.from_pretrained(base, folder)` reads it, except for bottleneck adapters, which PEFT does not have.

    Raises: ValueError if the model carries no adapter, two kinds of them, or is merged, if something trains that this layout cannot hold,
            or the disk is full.
    """
    peft_type, kind, names = check_adapter(model)
    written = kind.write(model)
    tensors, modules = head_tensors(model, names, kind.root)
    config = {"peft_type": peft_type, "task_type": TASKS.get(model.head_name, "FEATURE_EXTRACTION" if kind.prompts else None),
              "base_model_name_or_path": base_of(model), "revision": None, "inference_mode": True, "modules_to_save": modules or None, **written.config}
    try:
        with replace_files(folder) as aside:
            write_json(aside / CONFIG, config)
            save_file({name: t.detach().cpu().contiguous() for name, t in {**tensors, **written.tensors}.items()}, aside / TENSORS,
                      metadata={"format": "pt", "base": json.dumps(fingerprint(model))} | ({"separate": json.dumps(written.note)} if written.note else {}))
    except OSError as e:
        raise ValueError(f"{folder} could not be written ({e}); what was there before is unchanged: "
                         "free some space, or choose another folder") from e


def read_adapter(folder: Path) -> tuple[Kind, dict, dict[str, Tensor], dict[str, list[int]], dict[str, str]]:
    """The kind, the config, the tensors, the note about Linears with an A each, and the fingerprint of the base (empty in files of PEFT's own).

    Raises: ValueError for a config of another method, an option that is not read, or a file that is damaged or no safetensors file.
    """
    config = read_json(folder / CONFIG)
    kind = KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise ValueError(f"{folder / CONFIG} has peft_type={config.get('peft_type')!r}; read are {', '.join(KINDS)}: give the folder of one of these")
    if used := [f"{name}={config[name]!r}" for name, fine in kind.unread.items() if config.get(name) not in (None, *fine)]:
        raise ValueError(f"{folder / CONFIG} uses {', '.join(used)}; {kind.called} is read without: "
                         "merge this adapter into its model with PEFT, and load the merged model")
    if not (folder / TENSORS).is_file():
        raise ValueError(f"{folder} has no {TENSORS}; adapters are read from safetensors only: "
                         "fetch the folder again, or save a .bin anew with a current PEFT")
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            note, base = (json.loads((file.metadata() or {}).get(key, "{}")) for key in ("separate", "base"))
    except (SafetensorError, OSError, json.JSONDecodeError) as e:
        raise ValueError(f"{folder / TENSORS} cannot be read as safetensors ({e}); it is cut off, damaged or another kind of file: "
                         "fetch it again") from None
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    return kind, config, tensors, note, base


@dataclass
class Rest:
    """What a file holds beside the adapter, against one model: the head, the pooler, and what belongs to nothing."""

    model: Model
    ties: bool = False                                                      # whether what was trained was tied to it, where that is no part of the file
    values: dict[str, Tensor] = field(default_factory=dict)                 # parameter of ours -> its value
    faults: list[str] = field(default_factory=list)

    def check(self, tensors: dict[str, tuple[str, Tensor]]) -> None:
        """`tensors`: name in the family's files -> key in this file, value."""
        named, every = {theirs: (rule, ours) for theirs, rule, ours in rules(self.model)}, sites(self.model)
        tied = {tie.theirs: tie.to for tie in family_of(self.model).weights(self.model.config) if isinstance(tie, Tied)}
        shared = {to: theirs for theirs, to in tied.items() if isinstance(self.model.head, VocabularyHead) and not self.ties and theirs not in tensors}
        for name, (key, tensor) in tensors.items():
            if name in shared and named[name][1][0].startswith("embed."):
                self.faults.append(f"tied: {key} was trained alone, but this family uses one tensor for it and {shared[name]}: merge it with PEFT, and load the merged model")
            elif name in named:
                self.take(key, tensor, *named[name])
            elif name not in tied:
                near = difflib.get_close_matches(name.removesuffix(".weight").rpartition(".lora_")[0] or name, [*every, *named], 1)
                self.faults.append(f"unexpected: {key}" + (f" (nearest: {near[0]})" if near else ""))
        for name, (key, tensor) in tensors.items():
            if name in tied and name not in named:
                self.check_tied(key, tensor, tied[name], named[tied[name]][1][0])

    def take(self, key: str, tensor: Tensor, rule: Rule, ours: list[str]) -> None:
        parameters = dict(self.model.named_parameters())
        for one, value in zip(ours, rule.op.read(tensor, len(ours)), strict=True):
            if one not in parameters:
                self.faults.append(f"head: {key} belongs to a head or pooler this model has not; its head is {self.model.head_name!r}: use set_head")
            elif parameters[one].shape != value.shape:
                self.faults.append(f"shape: {key} is {tuple(value.shape)}, {one} is {tuple(parameters[one].shape)}")
            else:
                self.values[one] = value

    def check_tied(self, key: str, tensor: Tensor, to: str, ours: str) -> None:
        held = self.values.get(ours, dict(self.model.named_parameters()).get(ours))
        if held is None or not torch.equal(held.detach().cpu(), tensor.to(held.dtype)):
            self.faults.append(f"tied: {key} differs from {to}, but this family uses one tensor for both")


def load_adapter(model: Model, folder: str | Path, name: str | None = None, any_base: bool = False) -> TrainableReport:
    """Put an adapter (and the head, if it is in the file) into `model`, in the place of any it carries; training can go on.

    LoRA and bottleneck adapters join those of their kind that are there, under their name, which is chosen; one of the same name is replaced.
    What was merged is unmerged.

    Args:    folder: of the adapter, or its id on the hub. name: to choose it by; by default the one a bottleneck adapter was saved with, and "default" for LoRA.
             any_base: load it also into a base whose weights are not those it was trained on.
    Returns: the report of what trains now: the adapter, the head, and what else the file held.
    Raises:  ValueError that lists everything in which the file and the model do not fit; the model is then as it was.
    """
    folder = resolve(folder, patterns=(*PATTERNS, CONFIG, TENSORS))
    kind, config, tensors, note, base = read_adapter(folder)
    if name is not None and not kind.named:
        raise ValueError(f"load_adapter(name={name!r}) for {kind.called}; a model carries one of these, without a name: leave name out")
    name = name or config.get("name") or DEFAULT
    check_name(name)
    family = family_of(model)
    bare = {family.current(key.removeprefix(kind.root).removeprefix(family.prefix(model.head_name))): (key, tensor) for key, tensor in tensors.items()}
    reading: Reading = kind.read(model, {**config, "name": name}, {one: tensor for one, (_, tensor) in bare.items()}, note)
    rest = Rest(model, bool(config.get("ensure_weight_tying")))
    rest.check({one: both for one, both in bare.items() if one not in reading.used})
    faults = [*rest.faults, *reading.faults] or ([] if reading.used else [f"empty: it holds no {kind.holds}"])
    if not any_base and (difference := differs(model, base)):
        faults.append(f"base: it was trained on other weights ({difference}); any_base=True loads it all the same")
    if faults:
        raise ValueError(f"the adapter in {folder} (made for {config.get('base_model_name_or_path')}) does not fit this model ({base_of(model)}):\n  "
                         + "\n  ".join(faults) + "\nload it into the base it was made for")
    make_room(model, kind, name)
    reading.insert()
    give(model, name, rest.values)
    if kind.named:
        set_adapter(model, name)
    set_trainable(model, {*kind.names(model), *fresh_names(model), *rest.values})
    return trainable_report(model)


def make_room(model: Model, kind: Kind, name: str) -> None:
    """Take out what an adapter of this kind and name replaces: all of other kinds, and of its own kind the one of this name, or any without names."""
    for other in KINDS.values():
        if other is not kind or not kind.named:
            other.remove(model)
    for layer in named_linears(model).values():
        layer.unmerge()
    if name in adapter_list(model):
        remove_adapter(model, name)
    keep_only(model, adapter_list(model))
