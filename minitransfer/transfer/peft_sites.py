"""What an adapter file says of a model: matrices under the family's names, each standing for one or several Linears of ours.

A file's `<module>.lora_A.weight` belongs to the Linears that `<module>.weight` is read into by the family's table of weights. Where a file fuses
several of them (GPT-2's c_attn is q, k and v in one matrix), its one A is shared by all, and the rows of B are cut as those of the weight are.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..families.rules import Op, Rule, spelled
from ..nn.model import Model
from ..weights.save import family_of
from .lora import LowRank, row_lengths
from .wrapped import linear_names

ROOT = "base_model.model."


@dataclass(frozen=True)
class Written:
    """An adapter as it goes into a file: its part of the config, its tensors, a note about how they were put together."""

    config: dict
    tensors: dict[str, Tensor]
    note: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """A file against a model, which is unchanged until `insert` is called: the tensors that are the adapter's, and all that does not fit."""

    used: set[str]
    faults: list[str]
    insert: Callable[[], None]


@dataclass(frozen=True)
class Kind:
    """What the files ask of a way to adapt.

    Args: called: its name in messages; holds: what its file must have some of. names: the parameters it trains. carried: whether a model has it.
          read: (model, config, tensors by their names in the family's files, note) -> Reading. unread: options that change the maths, and the
          values that leave it as it is. root: what stands before the family's names. prompts: whether PEFT needs a task. named: whether a model
          carries several.
    """

    called: str
    holds: str
    carried: Callable[[Model], bool]
    names: Callable[[Model], list[str]]
    write: Callable[[Model], Written]
    read: Callable[[Model, dict, dict[str, Tensor], dict], Reading]
    remove: Callable[[Model], None]
    unread: Mapping[str, Any] = field(default_factory=dict)
    root: str = ROOT
    prompts: bool = False
    named: bool = False


@dataclass(frozen=True)
class Site:
    """One matrix of the file and the Linears of ours it stands for."""

    theirs: str                     # its name in the file, without prefixes and without .weight
    ours: tuple[str, ...]
    op: Op

    @property
    def transposed(self) -> bool:
        """Whether the file keeps the matrix as (in, out): what PEFT calls fan_in_fan_out."""
        return self.op.transposed

    def cut(self, B: Float[Tensor, "rows R"]) -> list[Tensor]:
        """B of the whole matrix as one (out, R) per Linear."""
        return [part.contiguous() for part in self.op.read(B.T if self.transposed else B, len(self.ours))]

    def join(self, parts: list[Tensor]) -> Float[Tensor, "rows R"]:
        whole = self.op.write(parts)
        return (whole.T if self.transposed else whole).contiguous()


def rules(model: Model) -> Iterator[tuple[str, Rule, list[str]]]:
    """Every parameter the model's family has a name for: their name, the rule, our names."""
    return spelled(family_of(model).weights(model.config), model.head_name, model.config)


def sites(model: Model) -> dict[str, Site]:
    """Every Linear, or fused group of Linears, of the model, by its name in the file."""
    linears, found = set(linear_names(model)), {}
    for theirs, rule, ours in rules(model):
        name, modules = theirs.removesuffix(".weight"), tuple(one.removesuffix(".weight") for one in ours)
        if linears.issuperset(modules):
            found[name] = Site(name, modules, rule.op)
    return found


def file_name(model: Model, theirs: str, ours: str) -> str:
    """The name in the whole model that PEFT wraps: with a head, the body stands under a name of its own."""
    bare = model.head_name in ("none", "embedding") or ours.startswith("head.")
    return ("" if bare else family_of(model).prefix(model.head_name)) + theirs


@dataclass(frozen=True)
class Pair:
    """One LoRA of a file: y += scale (x A^T) B^T. `ranks`: how A is shared out if the Linears of its site have one each (0: has none);
    `magnitude`: of DoRA."""

    A: Float[Tensor, "R in"]
    B: Float[Tensor, "rows R"]
    alpha: int | float
    ranks: tuple[int, ...] | None = None
    magnitude: Float[Tensor, "rows"] | None = None

    @property
    def r(self) -> int:
        return len(self.A)


def joined(site: Site, layers: dict[str, LowRank], model: Model) -> Pair | None:
    """The LoRA of one matrix of the file, from those of its Linears. Several As become one, stacked, each with columns of B to itself:

        A = [A_q; A_v]      B = [B_q 0; 0 0; 0 B_v]

    Raises: ValueError for Linears of one matrix whose scales differ.
    """
    carriers = [layers.get(name) for name in site.ours]
    present = [layer for layer in carriers if layer is not None]
    if not present:
        return None
    first = present[0]
    if all(layer is not None and layer.A is first.A for layer in carriers):
        return Pair(first.A.detach(), site.join([layer.B.detach() for layer in present]), first.alpha, None, magnitudes(site, carriers, model))
    if first.rslora or len({layer.scale for layer in present}) > 1:
        raise ValueError(f"{', '.join(site.ours)} are one matrix ({site.theirs}) in the file and their LoRAs differ in scale, or use rslora; "
                         "one matrix has one scale: use the same alpha and r for them, without rslora, or let them share one A (targets=\"q+k+v\")")
    ranks = tuple(0 if layer is None else layer.r for layer in carriers)
    R, start, parts = sum(ranks), 0, []
    for name, layer, rank in zip(site.ours, carriers, ranks, strict=True):
        part = torch.zeros(model.get_parameter(name + ".weight").shape[0], R)
        if layer is not None:
            part[:, start : start + rank] = layer.B.detach().cpu()
        parts.append(part)
        start += rank
    return Pair(torch.cat([layer.A.detach() for layer in present]), site.join(parts), first.alpha * R / first.r, ranks, magnitudes(site, carriers, model))


def magnitudes(site: Site, carriers: list[LowRank | None], model: Model) -> Float[Tensor, "rows"] | None:
    """The lengths of all rows, for DoRA; rows of a Linear without one have the length they always had."""
    if not any(layer is not None and layer.dora for layer in carriers):
        return None
    lengths = [row_lengths(model.get_parameter(name + ".weight").detach().float()) if layer is None or layer.magnitude is None
               else layer.magnitude.detach() for name, layer in zip(site.ours, carriers, strict=True)]
    return site.join([one[:, None] for one in lengths])[:, 0].contiguous()


def magnitude_of(site: Site, pair: Pair) -> dict[str, Tensor]:
    """The inverse: for each Linear its own rows' lengths."""
    if pair.magnitude is None:
        return {}
    parts = site.cut(pair.magnitude[:, None])
    return {name: part[:, 0] for name, part in zip(site.ours, parts, strict=True)}


def parted(site: Site, pair: Pair) -> list[tuple[tuple[str, ...], int, int | float, Tensor, list[Tensor]]]:
    """The inverse of `joined`: for each A of ours, the Linears it serves, r, alpha, A, and a B for each of them."""
    parts = site.cut(pair.B)
    if pair.ranks is None:
        return [(site.ours, pair.r, pair.alpha, pair.A, parts)]
    found: list[tuple[tuple[str, ...], int, int | float, Tensor, list[Tensor]]] = []
    start = 0
    for name, part, rank in zip(site.ours, parts, pair.ranks, strict=True):
        if rank:
            mine = slice(start, start + rank)
            found.append(((name,), rank, pair.alpha * rank / pair.r, pair.A[mine], [part[:, mine]]))
        start += rank
    return found


def block_structured(site: Site, pair: Pair) -> bool:
    """Whether B really is zero outside the blocks that `ranks` promises, so that taking it apart loses nothing."""
    if pair.ranks is None or len(pair.ranks) != len(site.ours) or sum(pair.ranks) != pair.r or min(pair.ranks) < 0:
        return False
    start = 0
    for part, rank in zip(site.cut(pair.B), pair.ranks, strict=True):
        if part[:, :start].any() or part[:, start + rank :].any():
            return False
        start += rank
    return True


def shortest_targets(written: list[str], every: list[str]) -> list[str]:
    """The fewest endings of names that match every module of `written` and no other of `every`: what PEFT calls target_modules."""
    found: list[str] = []
    for name in written:
        parts = name.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        good = next(e for e in endings if all(one in written for one in every if one == e or one.endswith("." + e)))
        if good not in found:
            found.append(good)
    return found
