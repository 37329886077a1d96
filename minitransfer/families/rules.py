"""Weight maps as data. A rule pairs a name in a checkpoint with one or more parameters of ours, and its op can be run backwards,
so one table both loads and saves.

    Rule("h.{i}.attn.c_attn.weight", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.weight", transpose_split)
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from torch import Tensor, cat, stack

from ..config import ModelConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
               "tanh": "tanh", "quick_gelu": "quick_gelu"}                         # name in a config.json -> ours; of two with one meaning the first is written


@dataclass(frozen=True)
class Op:
    """How a tensor of a file becomes ours, and back."""

    read: Callable[[Tensor, int], Iterable[Tensor]]     # their tensor, number of our tensors -> ours
    write: Callable[[list[Tensor]], Tensor]             # ours -> theirs
    folds: int = 0                                      # so many axes of theirs are joined to others in ours
    transposed: bool = False                            # whether theirs is (in, out)


copy = Op(lambda t, n: [t], lambda ours: ours[0])
transpose = Op(lambda t, n: [t.T], lambda ours: ours[0].T, transposed=True)
split = Op(lambda t, n: t.chunk(n, dim=0), lambda ours: cat(ours, dim=0))
first_row = Op(lambda t, n: [t[0]], lambda ours: ours[0][None], folds=1)
transpose_split = Op(lambda t, n: t.T.chunk(n, dim=0), lambda ours: cat(ours, dim=0).T, transposed=True)


def split_by_head(n_heads: int) -> Op:
    """Rows in the order q of head 0, k of head 0, v of head 0, q of head 1, ...: each of ours has its own of every head."""
    def read(t: Tensor, n: int) -> list[Tensor]:
        if len(t) % (n_heads * n):                      # a matrix of another size: the loader says which
            return []
        return [part.flatten(0, 1) for part in t.unflatten(0, (n_heads, n, -1)).unbind(1)]

    return Op(read, lambda ours: stack([t.unflatten(0, (n_heads, -1)) for t in ours], dim=1).flatten(0, 2))


@dataclass(frozen=True)
class Rule:
    """`theirs` in the file is `ours` in the model; `heads`: the only heads the rule is for (none given: any)."""

    theirs: str                 # {i} stands for the number of the block
    ours: str                   # {a,b,c} stands for several parameters, in order
    op: Op = copy
    heads: tuple[str, ...] = ()

    def names(self, i: str | int | None) -> tuple[str, list[str]]:
        theirs, ours = (s.replace("{i}", str(i)) for s in (self.theirs, self.ours))
        several = re.search(r"\{([\w,]+)\}", ours)
        return theirs, [ours.replace(several[0], one) for one in several[1].split(",")] if several else [ours]


@dataclass(frozen=True)
class Tied:
    """`theirs` holds the same tensor as the rule whose name is `to`: never saved, compared when read."""

    theirs: str
    to: str


@dataclass(frozen=True)
class Ignored:
    """`theirs` is no parameter; `why` says what it is."""

    theirs: str
    why: str


def activation(hf: dict, field: str, default: str) -> str:
    """Our name of the activation that a config.json gives in `field`. Raises: ValueError that names the field for one we do not have."""
    name = hf.get(field) or default
    if name not in ACTIVATIONS:
        raise ValueError(f"{field}={name!r} in config.json; we compute {', '.join(ACTIVATIONS)}: use another checkpoint")
    return ACTIVATIONS[name]


def spelling(ours: str) -> str:
    """How a config.json spells an activation of ours."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


Table = list[Rule | Tied | Ignored]


def spelled(table: Table, head: str, c: ModelConfig) -> Iterator[tuple[str, Rule, list[str]]]:
    """Each rule that is for this head, once for every block: their name, the rule, our names. A block may lack what another has."""
    for rule in table:
        if isinstance(rule, Rule) and (not rule.heads or head in rule.heads):
            for i in range(max(c.n_layers, c.n_decoder_layers)) if "{i}" in rule.theirs else [None]:
                theirs, ours = rule.names(i)
                yield theirs, rule, ours


@cache
def pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(re.escape(theirs).replace(r"\{i\}", r"(?P<i>\d+)") + r"\Z")


def both(theirs: str, ours: str, heads: tuple[str, ...] = ()) -> list[Rule]:
    """The weight and the bias of a layer that has the same shape on both sides."""
    return [Rule(f"{theirs}.{part}", f"{ours}.{part}", heads=heads) for part in ("weight", "bias")]
