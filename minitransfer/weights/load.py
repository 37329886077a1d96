"""Total loading: every key of the file is used by exactly one rule, every parameter of the model is filled exactly once."""
from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..config import choose
from ..families import read_config
from ..families.rules import Ignored, Rule, Tied, pattern
from ..nn.heads import HEAD_NAMES, POOLINGS
from ..nn.model import Model
from .files import read_json
from .report import LoadReport
from .sources import resolve
from .tensors import check_finite, read_tensors

WRAPPERS = ("_orig_mod.", "module.")                # torch.compile and DistributedDataParallel put these before every name
SHARED = ({"masked", "masked+next"},)               # heads whose parameters mean the same under the same name


def from_pretrained(source: str | Path, head: str = "auto", labels: list[str] | None = None, dtype: torch.dtype = torch.float32,
                    revision: str | None = None, seed: int = 0) -> Model:
    """Build the model that `source` describes and fill it; it comes back in eval mode, with a `load_report`.

    Args:    source: a folder, a name under checkpoints/ or a hub id; head: "auto" takes the head the checkpoint was saved with, any other starts
             fresh on the loaded body unless the file has it; labels: names of the classes (default: the file's); seed: of a fresh head.
    Raises:  ValueError that lists every key without a rule, every parameter without a value and every shape that differs;
             KeyError for a family we do not have.
    """
    folder = resolve(source, revision)
    hf = read_json(folder / "config.json")
    family, config = read_config(hf)
    file_head = family.HEADS.get((hf.get("architectures") or [""])[0], "none")
    head = automatic(file_head, folder) if head == "auto" else head
    choose("head", head, ("auto", *HEAD_NAMES))
    file_labels = [name for _, name in sorted(((int(i), name) for i, name in hf.get("id2label", {}).items()))] or [f"LABEL_{i}" for i in range(2)]
    same_head = (head == file_head or {head, file_head} in SHARED) and labels in (None, file_labels)
    model = Model(config, head, (labels or file_labels) if head in ("sequence", "token") else None, **pooling_of(folder), seed=None)
    model.source_config = hf
    model.load_report = LoadReport(str(source))
    Filling(model, family, same_head, seed).run(read_tensors(folder))
    return model.to(dtype).eval()


def automatic(file_head: str, folder: Path) -> str:
    """A body saved by sentence-transformers (modules.json beside it) is meant to give embeddings."""
    return "embedding" if file_head == "none" and (folder / "modules.json").is_file() else file_head


def pooling_of(folder: Path) -> dict:
    """The pooling and normalisation that sentence-transformers' own files ask for."""
    if not (folder / "1_Pooling" / "config.json").is_file():
        return {}
    wanted = read_json(folder / "1_Pooling" / "config.json")
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [name for flag, name in flags.items() if wanted.get(flag)] or [str(wanted.get("pooling_mode", "mean"))]
    choose("pooling", chosen[0] if len(chosen) == 1 else "+".join(chosen), POOLINGS)
    modules = (folder / "modules.json").read_text(encoding="utf-8") if (folder / "modules.json").is_file() else ""
    return {"pooling": chosen[0], "normalise": "Normalize" in modules}


@dataclass
class Filling:
    """One loading: what was filled so far, and everything that did not fit."""

    model: Model
    family: ModuleType
    same_head: bool                 # the file's head is the one wanted: its parameters are loaded
    seed: int
    filled: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    ties: list[tuple[str, Tensor, str]] = field(default_factory=list)

    def run(self, tensors) -> None:
        parameters = dict(self.model.named_parameters())
        for key, tensor in tensors:
            self.take(key, tensor, parameters)
        self.compare_ties(parameters)
        self.start_fresh(parameters)
        self.faults += [f"missing: {name}" for name in parameters if name not in self.filled]
        if self.faults:
            raise ValueError(f"{self.report.source} does not fit the model its config.json describes:\n  " + "\n  ".join(self.faults)
                             + "\ntake the config.json that belongs to these weights, or fetch both again")

    @property
    def report(self) -> LoadReport:
        assert self.model.load_report is not None
        return self.model.load_report

    def name_of(self, key: str) -> str:
        while any(key.startswith(wrapper) for wrapper in WRAPPERS):
            key = key.split(".", 1)[1]
        name = key.removeprefix(self.family.PREFIX)
        for old, new in self.family.RENAMED.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name

    def take(self, key: str, tensor: Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
        name = self.name_of(key)
        rule, i = next(((r, m.groupdict().get("i")) for r in self.family.WEIGHTS if (m := pattern(r.theirs).match(name))), (None, None))
        if rule is None:
            known = [r.theirs for r in self.family.WEIGHTS]
            self.faults.append(f"unexpected: {key} (nearest known: {', '.join(difflib.get_close_matches(name, known, 1, 0.3)) or 'none'})")
        elif isinstance(rule, Ignored):
            self.report.ignored[key] = rule.why
        elif isinstance(rule, Tied):
            self.ties.append((key, tensor, rule.to))
        else:
            self.apply(rule, i, key, tensor, parameters)

    def apply(self, rule: Rule, i: str | None, key: str, tensor: Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
        ours = rule.names(i)[1]
        if ours[0].startswith("head.") and not (self.same_head and ours[0] in parameters):
            self.report.dropped.append(key)
            return
        if ours[0].startswith("pooler.") and self.model.pooler is None:
            self.report.dropped.append(key)
            return
        for one, value in zip(ours, rule.op.read(tensor, len(ours)), strict=True):
            if one not in parameters:
                self.faults.append(f"unexpected: {key} (the config has no {one})")
            elif one in self.filled:
                self.faults.append(f"twice: {key} fills {one} again")
            elif parameters[one].shape != value.shape:
                self.faults.append(f"shape: {key} is {tuple(value.shape)}, {one} is {tuple(parameters[one].shape)}")
            else:
                check_finite(key, value)
                parameters[one].data.copy_(value)
                self.report.loaded.append(one)
            self.filled.add(one)

    def compare_ties(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        for key, tensor, to in self.ties:
            ours = next(r for r in self.family.WEIGHTS if isinstance(r, Rule) and r.theirs == to).ours
            if ours.startswith("head.") and ours not in self.report.loaded:
                if ours in parameters and ours not in self.filled and self.same_head and parameters[ours].shape == tensor.shape:
                    parameters[ours].data.copy_(tensor)          # some files keep the tied copy only
                    self.filled.add(ours)
                    self.report.loaded.append(ours)
                else:
                    self.report.dropped.append(key)
            elif not torch.equal(parameters[ours].data, tensor.to(parameters[ours].dtype)):
                self.faults.append(f"tied: {key} differs from {to}, but this family uses one tensor for both")
            else:
                self.report.ignored[key] = f"the same tensor as {to}"

    def start_fresh(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """A head the file does not have is new; a pooler it does not have is left out, or new where the head reads it."""
        missing = [name for name in parameters if name not in self.filled and name.startswith(("head.", "pooler."))]
        if not missing or (self.same_head and any(name.startswith("head.") for name in missing)):
            return                                               # half a head is an error, not a reason to start over
        head, labels, model = self.model.head_name, self.model.labels, self.model
        if head in ("none", "embedding"):
            model.pooler = None
        else:
            kept = model.pooler if not any(name.startswith("pooler.") for name in missing) else None
            heads_own = model.head if not any(name.startswith("head.") for name in missing) else None
            model.pooler = kept
            model.set_head(head, labels, seed=self.seed)
            if heads_own is not None:
                model.head = heads_own
            self.report.new += missing
        self.filled.update(missing)
