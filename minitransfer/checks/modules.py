"""Which module of ours stands for which of theirs, and how far what each makes is apart, in the order in which they run.

The pairs come from the family's table of weights: `blocks.0.attn.q_proj.weight` <-> `encoder.layer.0.attention.self.query.weight`.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..families.rules import Op, copy, spelled
from ..nn.model import Model
from ..nn.norms import LayerNorm, RMSNorm
from ..weights.save import family_of
from .parity import Difference, difference


@dataclass(frozen=True)
class Pair:
    """A module of ours and the one it is compared with; of a fused one of theirs it is the part numbered `part` that `op` splits off."""

    ours: str
    theirs: str
    op: Op = copy
    part: int = 0
    parts: int = 1
    out_first: bool = True                  # the fused matrix is (out, in), as nn.Linear has it

    @property
    def in_file(self) -> str:
        return self.theirs + (f" (part {self.part + 1} of {self.parts})" if self.parts > 1 else "")

    def share(self, made: Tensor) -> Tensor:
        """What of their output belongs to ours."""
        if self.parts == 1:
            return made
        flat = made.flatten(0, -2)                                               # (N, out)
        piece = list(self.op.read(flat.T if self.out_first else flat, self.parts))[self.part]
        return piece.T.reshape(*made.shape[:-1], -1)


def module_pairs(reference: nn.Module, model: Model) -> list[Pair]:
    """A pair for each module with parameters of its own, and one for each block, found by what stands before its number."""
    family, known = family_of(model), dict(reference.named_modules())
    ours_by_name, theirs_by_name = dict(model.named_parameters()), dict(reference.named_parameters(remove_duplicate=False))
    found: dict[tuple[str, str], Pair] = {}

    def full(name: str) -> str:
        return family.prefix(model.head_name) + name if family.prefix(model.head_name) + name in known else name
    for theirs, rule, ours in spelled(family.weights(model.config), model.head_name, model.config):
        if any(one not in ours_by_name for one in ours):
            continue
        module = full(theirs.rpartition(".")[0])
        whole = theirs_by_name.get(f"{module}.{theirs.rpartition('.')[2]}")
        n_out = sum(len(ours_by_name[one]) for one in ours)
        if "relative" in ours[0].split("."):                                     # reads distances and not tokens: attention maps and gradients show what it does
            continue
        for part, one in enumerate(ours):
            name = one.rpartition(".")[0]
            found.setdefault((name, module), Pair(name, module, rule.op, part, len(ours), whole is None or len(whole) == n_out))
        if "{i}" in rule.theirs and "{i}" in rule.ours:
            i = rule.theirs.split("{i}")[0].count(".")
            block = ".".join(theirs.split(".")[: i + 1]), ".".join(ours[0].split(".")[: rule.ours.split("{i}")[0].count(".") + 1])
            found.setdefault((block[1], full(block[0])), Pair(block[1], full(block[0])))
    elsewhere = {".".join(one.split(".")[:2]) for _, rule, ours in spelled(family.weights(model.config), model.head_name, model.config)
                 for one in ours if "{i}" not in rule.theirs and one.startswith("blocks.")}     # a block of ours with a part that stands beside theirs
    return [pair for pair in found.values() if pair.ours not in elsewhere]


Masks = list[Bool[Tensor, "B _"]]                # which positions are tokens: of what is read, and of what is written where that is another text


@dataclass
class Heard:
    """Each module's calls, as (first argument, output), and the names in the order in which the modules first ended."""

    calls: dict[str, list[tuple[Tensor | None, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    masks: Masks = field(default_factory=list)              # of a second text, if the model was given one

    def given(self, module: nn.Module, _: tuple, words: dict[str, Any]) -> None:
        if isinstance(mask := words.get("decoder_attention_mask"), Tensor):
            self.masks = [mask]

    def hook(self, name: str) -> Any:
        def keep(module: nn.Module, given: tuple, made: Any) -> None:
            first = made[0] if isinstance(made, tuple) else made
            if isinstance(first, Tensor):
                adds = isinstance(module, LayerNorm | RMSNorm) and isinstance(made, tuple)      # such a norm reads the sum it makes first
                given = (made[1],) if adds else given
                read = given[0] if given and isinstance(given[0], Tensor) and given[0].is_floating_point() else None
                self.calls[name].append((read, first))
        return keep


@contextmanager
def listening(root: nn.Module, names: Iterable[str]) -> Iterator[Heard]:
    """Keep what the named modules are given and make while the block runs."""
    known, heard = dict(root.named_modules()), Heard()
    with ExitStack() as stack:
        stack.callback(root.register_forward_pre_hook(heard.given, with_kwargs=True).remove)
        for name in dict.fromkeys(names):
            if name in known:
                stack.callback(known[name].register_forward_hook(heard.hook(name)).remove)
        yield heard


@dataclass
class ModuleRow:
    """A module and its worst difference over everything that was run; `read` is the error of what it was given (None: ids, or not seen)."""

    module: str
    in_file: str
    made: Difference
    read: float | None = None

    def add(self, made: Difference, read: float | None) -> None:
        if made.error >= self.made.error:
            self.made = made
        if read is not None:
            self.read = max(read, self.read or 0.0)


def of_row(t: Tensor, row: int, masks: Masks, wanted: torch.Size) -> Tensor | None:
    """A row of ours without its padding: (B or 1, T, ...) has a vector a token, (B, ...) one a text. None if it cannot be made to have the shape of theirs."""
    one = t[min(row, len(t) - 1)]
    tries = [one[keep[row]] for keep in masks if t.dim() > 2 and t.shape[1] == keep.shape[1]] or [one]
    return next((each for each in tries if each.shape == wanted), None)


@dataclass
class Comparison:
    """Rows by (module, number of its call), in the order of execution; and why a pair has none."""

    pairs: list[Pair]
    rows: dict[tuple[str, str, int], ModuleRow] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, ours: Heard, theirs: Heard, masks: Masks) -> None:
        """ours: passes over the whole batch; theirs: one over each row alone."""
        order, B = {name: i for i, name in enumerate(theirs.calls)}, len(masks[0])
        for pair in sorted(self.pairs, key=lambda pair: order.get(pair.theirs, len(order))):
            mine, their = ours.calls.get(pair.ours, []), theirs.calls.get(pair.theirs, [])
            times = len(their) // B
            if not mine or not times or len(their) % B or len(mine) % times:
                self.left_out[pair.ours] = f"runs {len(mine)} times on a batch of {B}, {pair.theirs} {len(their)} times on its rows"
                continue
            for k, call in enumerate(mine):
                self.add_call(pair, k % times, times, call, their, masks)

    def add_call(self, pair: Pair, call: int, times: int, mine: tuple[Tensor | None, Tensor], their: list[tuple[Tensor | None, Tensor]], masks: Masks) -> None:
        name = pair.ours + (f" (call {call + 1})" if times > 1 else "")
        for row in range(len(masks[0])):
            read, made = their[row * times + call]
            wanted = pair.share(made)[0]
            if (ours := of_row(mine[1], row, masks, wanted.shape)) is None:
                self.left_out[name] = f"makes {tuple(mine[1].shape[1:])} of a text here and {tuple(wanted.shape)} in {pair.theirs}"
                return
            before = None if read is None or mine[0] is None else of_row(mine[0], row, masks, read[0].shape)
            given = None if read is None or before is None else difference(name, before, read[0]).error
            found, key = difference(name, ours, wanted), (pair.ours, pair.theirs, call)
            self.rows.setdefault(key, ModuleRow(name, pair.in_file, found)).add(found, given)


def explain(rows: list[ModuleRow], bar: float) -> tuple[str | None, str]:
    """The first module that diverges beyond the bar, and where the cause is: in it, or between it and what ran before."""
    for i, row in enumerate(rows):
        if not row.made.error <= bar:
            if row.read is not None and not row.read <= bar:
                before = f"between {rows[i - 1].module} and it" if i else "before it"
                return row.module, f"what it is given already differs ({row.read:.1e}): look {before}"
            return row.module, "what it is given is equal: look at its weights and its own formula" if row.read is not None else "look at its weights and what it is given"
    return None, ""
