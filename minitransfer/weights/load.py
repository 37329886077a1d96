"""Total loading: every key of the file is used by exactly one rule, every parameter of the model is filled exactly once."""
from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig, RecurrentConfig, choose
from ..families import Family, class_name, read_config
from ..families.rules import Ignored, Rule, Tied, pattern
from ..nn.encoder_decoder import make_model
from ..nn.feedforward import FeedForward
from ..nn.fresh import Room, initialise
from ..nn.heads import CLASSIFIES, HEAD_NAMES, ONE_CLASS, REGRESSION, SequenceHead
from ..nn.model import Model
from ..nn.recurrent import RecurrentModel
from .files import read_json
from .report import LoadReport
from .sentences import pooling_of, read_sentences
from .sources import resolve
from .tensors import DTYPES, check_finite, numbers_in, read_tensors

WRAPPERS = ("_orig_mod.", "module.")                # torch.compile and DistributedDataParallel put these before every name
MAPPED = 1024 * 1024                                # bytes from which on a tensor stays in its file
MOST_LABELS = 1_000_000
SHARED = {"masked", "masked+next"}                  # heads whose common parameters mean the same


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
    if isinstance(hf.get("vision_config"), dict):
        raise ValueError(f"{source} holds a text model and an image model; from_pretrained reads one: use load_two_towers, whose .text and .image are models as this one")
    family, config = read_config(hf)
    file_head = family.heads.get(class_name(hf), "none")
    head = automatic(file_head, folder) if head == "auto" else head
    choose("head", head, ("auto", *HEAD_NAMES))
    config = family.needed(told_by_file(family, config, folder), head)
    classes = labels_of(hf) if head in CLASSIFIES and labels is None else labels
    same_head = (head == file_head or {head, file_head} == SHARED) and (head not in CLASSIFIES or classes == labels_of(hf))
    with Room(numbers_in(folder), folder, fresh=config.d_model * len(labels or ())):
        model = unfilled(config, head, classes, **(pooling_of(folder) if head == "embedding" else {}))
    if isinstance(model.head, SequenceHead) and same_head:
        model.head.use(hf.get("problem_type") or (REGRESSION if len(classes or ()) == 1 else ONE_CLASS))      # what transformers takes it for
    model.source_config = hf
    model.load_report = LoadReport(str(source))
    Filling(model, family, file_head, same_head, same_head and head == file_head, seed).run(read_tensors(folder))
    if head == "embedding":
        read_sentences(model, folder)
    return cast(model, dtype).eval()


def unfilled(config: ModelConfig, head: str, labels: list[str] | None = None, **pooling: Any) -> Model:
    """The model of this architecture without values, for a loader to fill."""
    make = RecurrentModel if isinstance(config, RecurrentConfig) else make_model
    return make(config, head, labels, **pooling, seed=None)


def told_by_file(family: Family, c: ModelConfig, folder: Path) -> ModelConfig:
    """The architecture with what the config.json of some families leaves open: whether the output matrix is the token table."""
    names = getattr(family.page, "OUTPUT", ())
    output, table = (dict(read_tensors(folder, names)).get(name) for name in names) if names else (None, None)
    return c if table is None else replace(c, tied=output is None or torch.equal(output, table))


def cast(model: Model, dtype: torch.dtype) -> Model:
    """The model in another precision. Where the stream is too wide for float16, the matrices that write the largest numbers into it stay as they are."""
    wide = [m.down_proj for m in model.modules() if isinstance(m, FeedForward) and m.wide and dtype == torch.float16]
    kept = [m.weight.data for m in wide]
    model.to(dtype)
    for module, weight in zip(wide, kept, strict=True):
        module.weight.data = weight
    return model


def labels_of(hf: dict) -> list[str]:
    """The classes a config.json names, in order; what transformers leaves out is two classes without names."""
    n = hf.get("num_labels", 2)
    if not isinstance(n, int) or not 0 <= n <= MOST_LABELS:
        raise ValueError(f"num_labels={n!r} in config.json; needed is a number of classes, at most {MOST_LABELS:,}: correct the file, or pass labels=[...]")
    names = hf.get("id2label") or {str(i): f"LABEL_{i}" for i in range(n)}
    if not isinstance(names, dict) or not all(str(i).isdecimal() for i in names):
        raise ValueError(f"id2label={names!r} in config.json; needed is a table from numbers to names: correct the file, or pass labels=[...]")
    return [str(names[i]) for i in sorted(names, key=int)]


def automatic(file_head: str, folder: Path) -> str:
    """A body saved by sentence-transformers (modules.json beside it) is meant to give embeddings."""
    return "embedding" if file_head == "none" and (folder / "modules.json").is_file() else file_head


def place(parameter: torch.nn.Parameter, value: Tensor, tensor: Tensor) -> None:
    """Give a parameter its value, which is `tensor` of the file or a part of it.

    A large tensor stays mapped, a private copy page by page of what is written to; a small one is copied: that costs nothing, and lies in memory like any
    other (what is mapped lies less evenly, and a product may add it up in another order).
    """
    alone = value.is_contiguous() and value.untyped_storage().nbytes() == tensor.nbytes      # and no view of the whole file
    if alone and value.dtype == parameter.dtype and value.nbytes >= MAPPED:
        parameter.data = value
    else:
        parameter.data.copy_(value)


@dataclass
class Filling:
    """One loading: what was filled so far, and everything that did not fit."""

    model: Model
    family: Family
    file_head: str
    same_head: bool                 # parameters of the file's head are loaded
    whole_head: bool                # and it has every one that is wanted
    seed: int
    filled: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    ties: list[tuple[str, Tensor, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = self.family.weights(self.model.config)

    def run(self, tensors) -> None:
        parameters = dict(self.model.named_parameters())
        for key, tensor in tensors:
            self.take(key, tensor, parameters)
        self.compare_ties(parameters)
        self.start_fresh(parameters)
        self.faults += [f"missing: {name} (in a file: {self.name_in_file(name)})" for name in parameters if name not in self.filled]
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
        return self.family.current(key.removeprefix(self.family.prefix(self.file_head)))

    def name_in_file(self, ours: str) -> str:
        i = next((part for part in ours.split(".") if part.isdecimal()), None)
        return next((r.names(i)[0] for r in self.table if isinstance(r, Rule) and ours in r.names(i)[1]), "nowhere")

    def take(self, key: str, tensor: Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
        name = self.name_of(key)
        found = [(r, m.groupdict().get("i")) for r in self.table if (m := pattern(r.theirs).match(name))]
        rule, i = next(((r, i) for r, i in found if isinstance(r, Rule) and self.file_head in r.heads), found[0] if found else (None, None))
        if rule is None:
            known = [r.theirs for r in self.table]
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
        if any(one not in parameters for one in ours):
            self.faults.append(f"unexpected: {key} (the config has no {', '.join(ours)})")
            return
        usable = tensor.dtype in DTYPES and tensor.ndim == parameters[ours[0]].ndim + rule.op.folds
        values = list(rule.op.read(tensor, len(ours))) if usable else []
        if len(values) != len(ours):
            self.faults.append(f"shape: {key} is {tuple(tensor.shape)} of {tensor.dtype}, needed is {' + '.join(ours)} in a floating-point type")
            self.filled.update(ours)
            return
        for one, value in zip(ours, values, strict=True):
            if one in self.filled:
                self.faults.append(f"twice: {key} fills {one} again")
            elif parameters[one].shape != value.shape:
                self.faults.append(f"shape: {key} is {tuple(value.shape)}, {one} is {tuple(parameters[one].shape)}")
            else:
                check_finite(key, value)
                place(parameters[one], value, tensor)
                self.report.loaded.append(one)
            self.filled.add(one)

    def compare_ties(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        for key, tensor, to in self.ties:
            rule = next(r for r in self.table if isinstance(r, Rule) and r.theirs == to)
            ours = rule.ours
            if ours.startswith("head.") and not (self.same_head and ours in parameters):
                self.report.dropped.append(key)
            elif ours not in self.filled:                        # some files keep the tied copy only
                self.apply(rule, None, key, tensor, parameters)
            elif not torch.equal(parameters[ours].data, tensor.to(parameters[ours].dtype)):
                self.faults.append(f"tied: {key} differs from {to}, but this family uses one tensor for both")
            else:
                self.report.ignored[key] = f"the same tensor as {to}"

    def start_fresh(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """A head the file does not have is new, with the pooler it reads; a pooler that nothing reads is left out. Half of one is an error."""
        generator = torch.Generator().manual_seed(self.seed)
        for part in ("head", "head.next_sentence", "pooler"):
            names = [name for name in parameters if name.startswith(part + ".")]
            if not names or not self.filled.isdisjoint(names):
                continue
            if part == "pooler" and self.model.head_name in ("none", "embedding"):
                self.model.pooler = None
            elif self.whole_head:
                continue                                         # a file that says it has this head has to have all of it
            else:
                initialise(self.model.get_submodule(part), self.model.config, generator)
                self.report.new += names
            self.filled.update(names)
