"""Which parts of a model train: layer groups, freezing by address, and the table that says what is left.

An address is a name the model itself uses: `embed`, `blocks.3`, `blocks.0-7`, `blocks.3.attn.q_proj`, `norm`, `pooler`, `head`.
"""
from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from torch import nn

from ..nn.groups import layer_groups
from ..nn.model import Model
from ..ops.quantized_weight import QuantizedWeight
from ..report import Table
from .wrapped import WrappedLinear, own_names

TASK_HEADS = ("sequence", "token", "span")      # heads that a task brings; the others are part of what was pretrained
JUDGE = "discriminator"        # the module of `adversarial`, in the model while the run lasts
BLOCK_RANGE = re.compile(r"(?<![\w.])((?:(?:encoder|decoder)\.)?blocks)\.(\d+)-(\d+)(?![\w-])")


def expand_range(address: str) -> list[str]:
    """`blocks.0-2.attn` -> `blocks.0.attn`, `blocks.1.attn`, `blocks.2.attn`; any other address stands for itself."""
    match = BLOCK_RANGE.search(address)
    if match is None:
        return [address]
    first, last = int(match[2]), int(match[3])
    if first > last:
        raise ValueError(f"the range {match[0]!r} runs backwards; a range is first-last, both included: write {match[1]}.{last}-{first}")
    return [f"{address[: match.start()]}{match[1]}.{i}{address[match.end() :]}" for i in range(first, last + 1)]


def split_addresses(addresses: str | list[str] | tuple[str, ...]) -> list[str]:
    """The single addresses of `"embed, blocks.0-7"` or of a list of such strings, ranges written out."""
    texts = [addresses] if isinstance(addresses, str) else list(addresses)
    return [one for text in texts for part in text.split(",") if part.strip() for one in expand_range(part.strip())]


def parameters_at(model: nn.Module, addresses: str | list[str] | tuple[str, ...]) -> list[str]:
    """The names of the parameters that the addresses cover, in the model's order.

    Raises: ValueError for an address that covers nothing, with the nearest one that does.
    """
    names = [name for name, _ in model.named_parameters()]
    wanted: set[str] = set()
    for address in split_addresses(addresses):
        found = [n for n in names if n == address or n.startswith(address + ".")]
        if not found:
            known = list(layer_groups(model)) + sorted({n.rpartition(".")[0] for n in names})
            near = difflib.get_close_matches(address, known, 1)
            raise ValueError(f"the address {address!r} names nothing in this model; its layer groups are {short_list(list(layer_groups(model)))}: "
                             + (f"did you mean {near[0]!r}?" if near else "use one of these, or a module inside one"))
        wanted.update(found)
    return [n for n in names if n in wanted]


def short_list(groups: list[str]) -> str:
    """`embed, blocks.0, blocks.1, blocks.2, head` as `embed, blocks.0-2, head`."""
    out: list[str] = []
    for group in groups:
        stem, _, number = group.rpartition(".")
        if stem.endswith("blocks") and out and re.fullmatch(re.escape(stem) + r"\.\d+(-\d+)?", out[-1]):
            out[-1] = f"{stem}.{re.split(r'[.-]', out[-1].removeprefix(stem + '.'))[0]}-{number}"
        else:
            out.append(group)
    return ", ".join(out)


@dataclass(frozen=True)
class ReportRow:
    group: str
    parameters: int
    trainable: int

    @property
    def percent(self) -> float:
        return 100 * self.trainable / max(1, self.parameters)


@dataclass(frozen=True, repr=False)
class TrainableReport(Table):
    """How many parameters each layer group has and how many of them train. Shared parameters count once. Prints as a table.

    `note`, of a run: the sentence about what was to train and never did.
    """

    rows: tuple[ReportRow, ...]
    note: str = ""

    @property
    def total(self) -> ReportRow:
        return ReportRow("total", sum(r.parameters for r in self.rows), sum(r.trainable for r in self.rows))

    @property
    def trainable(self) -> int:
        return self.total.trainable

    def cells(self) -> list[tuple[str, ...]]:
        body = [(r.group, f"{r.parameters:,}", f"{r.trainable:,}", f"{r.percent:.3f}") for r in (*self.rows, self.total)]
        return [("group", "parameters", "trainable", "%"), *body]


@dataclass(frozen=True, repr=False)
class Explanation(Table):
    """The parts of a model: name, layer groups, parameters, what is usually done with it, what is done now. Prints as a table."""

    rows: tuple[tuple[str, str, int, str, str], ...]

    def cells(self) -> list[tuple[str, ...]]:
        return [("part", "groups", "parameters", "usually", "now"), *((part, groups, f"{n:,}", usually, now) for part, groups, n, usually, now in self.rows)]


def trainable_report(model: nn.Module, trained: set[str] | None = None, note: str = "") -> TrainableReport:
    """The table of layer groups: parameters, how many train (or are among those that `trained`), and what share that is."""
    parameters = dict(model.named_parameters())
    trains = {name for name, p in parameters.items() if p.requires_grad} if trained is None else trained
    return TrainableReport(tuple(
        ReportRow(group, sum(parameters[n].numel() for n in names), sum(parameters[n].numel() for n in names if n in trains))
        for group, names in layer_groups(model).items()), note)


def explain(model: Model) -> Explanation:
    """The three parts of a model, what transfer learning usually does with each, and what trains now. Norm and pooler go with the head above them.

        part    groups        parameters  usually                      now
        embed   embed             11,720  frozen                       frozen
        blocks  blocks.0-2        19,071  frozen below, tuned on top   blocks.2 train
        head    pooler, head         899  replaced                     sequence; pooler, head train
    """
    parts: dict[str, list[ReportRow]] = {"embed": [], "blocks": [], "head": []}
    for row in trainable_report(model).rows:
        parts["embed" if row.group == "embed" else "blocks" if "blocks." in row.group or row.group == "relative" else "head"].append(row)

    def now(part: str, rows: list[ReportRow]) -> str:
        trains = short_list([row.group for row in rows if row.trainable])
        return (f"{model.head_name}; " if part == "head" else "") + (f"{trains} train" if trains else "frozen")
    usually = {"embed": "frozen", "blocks": "frozen below, tuned on top", "head": "replaced"}
    return Explanation(tuple((part, short_list([row.group for row in rows]) or "none", sum(row.parameters for row in rows), usually[part], now(part, rows))
                             for part, rows in parts.items()))


def set_trainable(model: nn.Module, names: list[str] | set[str]) -> None:
    """Exactly the parameters `names` train; every other one is frozen and loses its gradient."""
    names = set(names)
    if codes := [name for name, p in model.named_parameters() if name in names and isinstance(p, QuantizedWeight)]:
        raise ValueError(f"{', '.join(codes[:2])} ({len(codes)} in all) are held as codes of a few bits and were asked to train; a quantised base stays frozen: add LoRA or "
                         "another adapter and train that, or call dequantize(model) first")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None


def fresh_names(model: Model) -> list[str]:
    """The parameters that have to train whatever else is frozen: the task's head, a pooler under it or another head that no checkpoint filled, a discriminator."""
    inserted = set(own_names(model, WrappedLinear))
    loaded, task = None if model.load_report is None else set(model.load_report.loaded), model.head_name in TASK_HEADS

    def fresh(name: str) -> bool:
        if name.startswith("head."):
            return task or (loaded is not None and name not in loaded)
        return name.startswith(JUDGE + ".") or (task and name.startswith("pooler.") and (loaded is None or name not in loaded))
    return [name for name, _ in model.named_parameters() if fresh(name) and name not in inserted]


def freeze(model: nn.Module, addresses: str | list[str] | tuple[str, ...]) -> TrainableReport:
    """Stop training what the addresses cover; the rest stays as it is.

    Args:    addresses: `"embed, blocks.0-7"`; ranges include both ends.
    Returns: the report of what still trains.
    Raises:  ValueError for an address that names nothing.
    """
    gone = set(parameters_at(model, addresses))
    set_trainable(model, [n for n, p in model.named_parameters() if p.requires_grad and n not in gone])
    return trainable_report(model)


def freeze_to(model: nn.Module, n: int) -> TrainableReport:
    """Freeze the first `n` layer groups and train the others; a negative `n` counts from the top, so -1 leaves the head alone to train.

    Raises: ValueError if the model has fewer groups.
    Source: the verb of fastai (Howard & Gugger 2020, section 3.5).
    """
    groups = layer_groups(model)
    if not -len(groups) <= n <= len(groups):
        raise ValueError(f"freeze_to({n}) on a model of {len(groups)} layer groups ({short_list(list(groups))}): "
                         f"give a number from {-len(groups)} to {len(groups)}")
    set_trainable(model, [name for group in list(groups)[n:] for name in groups[group]])
    return trainable_report(model)


def unfreeze(model: nn.Module) -> TrainableReport:
    """Let every parameter train."""
    set_trainable(model, [name for name, _ in model.named_parameters()])
    return trainable_report(model)
