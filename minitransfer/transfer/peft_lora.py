"""LoRA and DoRA in PEFT's layout.

A file that was read is written back unchanged. Linears of ours that share a matrix in the file but have an A each (LoRA on GPT-2's q and v) are
written as one adapter of the summed rank, with zeros that PEFT would train; a note in the file's metadata lets us take them apart again, bit for bit.
An A that Linears of several matrices share is written once for each; read again, each has its own.
Differs from PEFT: dropout is drawn for each of q, k and v, where PEFT draws once for the fused input.
"""
from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from ..nn.model import Model
from .lora import LoRALinear, LowRank, insert_lora, lora_layers, low_ranks
from .named import adapter_names, need_chosen
from .peft_sites import ROOT, Kind, Pair, Reading, Site, Written, block_structured, file_name, joined, magnitude_of, parted, shortest_targets, sites
from .wrapped import remove_wrapped

UNREAD: dict[str, tuple] = {
    "bias": ("none",), "lora_bias": (False,), "layer_replication": (), "trainable_token_indices": (), "target_parameters": (), "alora_invocation_tokens": (),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),         # the others start from a base that they changed
    "use_qalora": (False,), "use_bdlora": (False,), "arrow_config": (), "kasa_config": (), "monteclora_config": (), "velora_config": ()}
PLAIN = re.compile(r"\^?(?:[\w-]|\\?\.|\\d\+|\.\*)*\$?")           # of a rank_pattern: an expression that cannot take long
PART = re.compile(r"(.+)\.lora_(?:([AB])\.weight|(magnitude)_vector(?:\.weight)?)")


def lora_config(model: Model, layer: LowRank, pairs: dict[str, Pair]) -> dict:
    """The config's part about LoRA. r and alpha are those of most matrices; the others are listed by name."""
    every = sites(model)
    (r, alpha), _ = Counter((pair.r, pair.alpha) for pair in pairs.values()).most_common(1)[0]
    odd = {file_name(model, name, every[name].ours[0]): pair for name, pair in pairs.items() if (pair.r, pair.alpha) != (r, alpha)}
    return {
        "r": r, "lora_alpha": alpha, "lora_dropout": layer.dropout, "bias": "none", "use_rslora": layer.rslora,
        "use_dora": layer.dora, "init_lora_weights": True, "fan_in_fan_out": any(every[name].transposed for name in pairs),
        "target_modules": shortest_targets(list(pairs), list(every)),
        "rank_pattern": {name: pair.r for name, pair in odd.items()}, "alpha_pattern": {name: pair.alpha for name, pair in odd.items()}}


def write_lora(model: Model) -> Written:
    """The chosen LoRA. Raises: ValueError if none is, or its layers differ in what a file has one value for."""
    layers = low_ranks(model, need_chosen(model, "save_adapter"))
    if len({(layer.dropout, layer.rslora, layer.dora) for layer in layers.values()}) > 1:
        raise ValueError("the LoRAs of this model differ in dropout or rslora, or some are DoRA; an adapter file has one value for all: "
                         "use the same in every add_lora")
    every = sites(model)
    tensors: dict[str, Tensor] = {}
    pairs = {name: pair for name, site in every.items() if (pair := joined(site, layers, model)) is not None}
    for name, pair in pairs.items():
        whole = ROOT + file_name(model, name, every[name].ours[0])
        tensors |= {f"{whole}.lora_A.weight": pair.A.clone(), f"{whole}.lora_B.weight": pair.B}
        if pair.magnitude is not None:
            tensors[f"{whole}.lora_magnitude_vector"] = pair.magnitude
    return Written(lora_config(model, next(iter(layers.values())), pairs), tensors, {name: pair.ranks for name, pair in pairs.items() if pair.ranks is not None})


def pattern_value(config: dict, field: str, name: str, default: int | float) -> int | float:
    """The entry of a rank_pattern or alpha_pattern that matches the end of `name`, as PEFT matches it.

    Raises: ValueError for an expression with more than names, numbers and two gaps: foreign ones can take forever.
    """
    patterns = config.get(field) or {}
    if bad := next((key for key in patterns if not PLAIN.fullmatch(key) or key.count(".*") > 2), None):
        raise ValueError(f"{field} in adapter_config.json has {bad!r}; read are names of modules, with ^, $, \\., \\d+ and at most two .*: write out the modules it means")
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)), default)


@dataclass
class Fit:
    """The LoRAs of one file against one model: what goes where, and everything that does not fit."""

    model: Model
    config: dict
    note: dict[str, list[int]]
    pairs: dict[str, Pair] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def pair(self, site: Site, parts: dict[str, Tensor]) -> None:
        """An A and a B, with the rank and alpha the config gives them; for DoRA with the magnitudes."""
        wanted = {"A", "B", "magnitude"} if self.config.get("use_dora") else {"A", "B"}
        if set(parts) != wanted:
            has, lacks = (" and ".join(f"lora_{one}" for one in sorted(names)) or "nothing more" for names in (set(parts), wanted - set(parts)))
            self.faults.append(f"half: {site.theirs} has {has} and not {lacks}: use_dora={bool(self.config.get('use_dora'))} needs all of "
                               f"{', '.join(sorted(wanted))} and no other")
            return
        A, B, magnitude = parts["A"], parts["B"], parts.get("magnitude")
        rows = sum(self.model.get_parameter(name + ".weight").shape[0] for name in site.ours)
        width = self.model.get_parameter(site.ours[0] + ".weight").shape[1]
        whole = file_name(self.model, site.theirs, site.ours[0])
        r = int(pattern_value(self.config, "rank_pattern", whole, self.config.get("r", 0)))
        if A.shape != (r, width) or B.shape != (rows, r):
            self.faults.append(f"shape: {site.theirs} has A {tuple(A.shape)} and B {tuple(B.shape)}; rank {r} (adapter_config.json) on this base "
                               f"needs {(r, width)} and {(rows, r)}")
            return
        if magnitude is not None and magnitude.shape != (rows,):
            self.faults.append(f"shape: {site.theirs} has a magnitude {tuple(magnitude.shape)}; on this base it needs {(rows,)}")
            return
        alpha = pattern_value(self.config, "alpha_pattern", whole, self.config.get("lora_alpha", r))
        parted_pair = Pair(A, B, alpha, tuple(self.note[site.theirs]) if site.theirs in self.note else None, magnitude)
        self.pairs[site.theirs] = parted_pair if block_structured(site, parted_pair) else Pair(A, B, alpha, None, magnitude)


def read_lora(model: Model, config: dict, tensors: dict[str, Tensor], note: dict) -> Reading:
    every, fit = sites(model), Fit(model, config, note)
    found: dict[str, dict[str, Tensor]] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        if (match := PART.fullmatch(name)) and match[1] in every:
            used.add(name)
            found.setdefault(match[1], {})[match[2] or match[3]] = tensor
    for theirs, parts in found.items():
        fit.pair(every[theirs], parts)

    def insert() -> None:
        for theirs, pair in fit.pairs.items():
            magnitudes = magnitude_of(every[theirs], pair)
            for group, r, alpha, A, Bs in parted(every[theirs], pair):
                made = insert_lora(model, group, config["name"], r, alpha, config.get("lora_dropout") or 0.0, bool(config.get("use_rslora")),
                                   bool(config.get("use_dora")))
                for at, one, B in zip(group, made, Bs, strict=True):
                    fill(one, A, B, magnitudes.get(at))
    return Reading(used, fit.faults, insert)


def fill(one: LowRank, A: Tensor, B: Tensor, magnitude: Tensor | None) -> None:
    one.A.data.copy_(A)
    one.B.data.copy_(B)
    if one.magnitude is not None and magnitude is not None:
        one.magnitude.data.copy_(magnitude)


LORA = Kind(called="LoRA", holds="lora_A and lora_B", carried=lambda model: bool(lora_layers(model)), names=adapter_names, write=write_lora, read=read_lora,
            remove=lambda model: remove_wrapped(model, LoRALinear), unread=UNREAD, named=True)
