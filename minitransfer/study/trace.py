"""Look inside a model while it runs, or change what it computes there: by the same addresses that freezing and adapters use.

    embed   blocks.3   blocks.3.attn   blocks.3.attn.q_proj   blocks.3.attn.probs   blocks.3.mlp   norm   head

`*` stands for one part of an address and `0-7` for numbers: `blocks.*.attn.probs`, `blocks.0-7`. Encoder-decoders begin with `encoder.` or `decoder.`.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.attention import Attention
from ..nn.block import Block
from ..nn.given import need_model
from ..nn.model import Model
from ..transfer.groups import layer_groups, short_list, split_addresses

SHOWN = {"probs": 1, "scores": 2}       # what an attention gives beside its output, and where
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """A module, what of its output is meant, and for blocks that share their weights in which of their turns."""

    module: str
    part: int = 0
    turn: int | None = None


def places(model: Model) -> dict[str, Place]:
    """Every address of the model."""
    found: dict[str, Place] = {}
    for name, module in model.named_modules():
        shared = model.config.shared_blocks and name.startswith("blocks.0")
        for turn in range(model.config.n_layers) if shared else (None,):
            address = name if turn is None else f"blocks.{turn}{name.removeprefix('blocks.0')}"
            found[address] = Place(name, turn=turn)
            if isinstance(module, Attention):
                found |= {f"{address}.{part}": Place(name, i, turn) for part, i in SHOWN.items()}
    return {address: place for address, place in found.items() if address}


def matching(model: Model, addresses: str | Sequence[str]) -> list[str]:
    """The addresses that the patterns stand for. Raises: ValueError for one that stands for none, with the nearest that exists."""
    known, found = places(model), list[str]()
    for pattern in split_addresses(addresses if isinstance(addresses, str) else list(addresses)):
        same = [address for address in known if re.fullmatch(re.escape(pattern).replace(r"\*", r"[^.]+"), address)]
        if not same:
            near = difflib.get_close_matches(pattern, known, 1)
            raise ValueError(f"the address {pattern!r} names nothing in this model; its layer groups are {short_list(list(layer_groups(model)))}: "
                             + (f"did you mean {near[0]!r}?" if near else "use one of these, a module inside one, or attn.probs"))
        found += [address for address in same if address not in found]
    return found


class Traced(Mapping[str, Tensor]):
    """Address -> what the last forward pass computed there; with what it is to compute instead, if that was asked for."""

    def __init__(self, model: Model, addresses: Sequence[str], stack: ExitStack):
        self.model, self.stack = model, stack
        self.turn: int | None = None                # of the blocks, where they share their weights
        self.known, self.values_at = places(model), dict[str, Tensor]()
        self.read = {address: self.known[address] for address in matching(model, addresses)} if addresses else {}
        self.changes: dict[Place, list[Callable[[Tensor, tuple], Tensor]]] = {}
        self.hooked: set[str] = set()
        if model.config.shared_blocks:
            self.keep(model.embed.register_forward_pre_hook(lambda *_: setattr(self, "turn", None)))
            self.keep(model.get_submodule("blocks.0").register_forward_pre_hook(lambda *_: setattr(self, "turn", 0 if self.turn is None else self.turn + 1)))
        for place in self.read.values():
            self.listen(place.module)
        for name in {place.module for place in self.read.values() if place.part}:
            self.keep(model.get_submodule(name).register_forward_pre_hook(lambda _, given: (*given[:3], True, *given[4:])))      # show=True

    def keep(self, handle: Any) -> None:
        self.stack.callback(handle.remove)

    def __getitem__(self, address: str) -> Tensor:
        if address not in self.read:
            raise KeyError(f"{address!r} was not traced; this trace reads {', '.join(self.read) or 'nothing'}: name it in mt.trace(model, ...)")
        if address not in self.values_at:
            raise KeyError(f"nothing was computed at {address!r} so far; a trace keeps what a forward pass leaves there: run the model inside the `with`")
        return self.values_at[address]

    def __iter__(self) -> Iterator[str]:
        return iter(address for address in self.read if address in self.values_at)

    def __len__(self) -> int:
        return len(self.values_at)

    def listen(self, name: str) -> None:
        if name not in self.hooked:
            self.hooked.add(name)
            self.keep(self.model.get_submodule(name).register_forward_hook(lambda _, given, output: self.heard(name, given, output)))

    def heard(self, name: str, given: tuple, output: Any) -> Any:
        """Change what is to be changed in a module's output, and keep what is to be read."""
        parts = list(output) if isinstance(output, tuple) else [output]
        turn = self.turn if name.startswith("blocks.0") else None
        for change in self.changes.get(Place(name, turn=turn), []):
            parts[0] = change(parts[0], given)
        for address, place in self.read.items():
            if (place.module, place.turn) == (name, turn):
                self.values_at[address] = parts[place.part]
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    def change(self, addresses: str | Sequence[str], how: Callable[[Tensor, tuple], Tensor]) -> None:
        for address in matching(self.model, addresses):
            place = self.known[address]
            if place.part:
                raise ValueError(f"a change of {address}; it can be read, and what is made of it changed: ablate heads of {address.rpartition('.')[0]}, or patch its o_proj")
            self.listen(place.module)
            self.changes.setdefault(place, []).append(how)

    def patch(self, addresses: str | Sequence[str], new: Tensor | Change) -> None:
        """From now on something else is computed there: a tensor, or a function of what would have been.

        Raises: ValueError for an address that is not, or probabilities; in the forward pass, for a tensor of another shape.
        """
        def how(old: Tensor, _: tuple) -> Tensor:
            made = new(old) if callable(new) else new.to(old)
            if made.shape != old.shape:
                raise ValueError(f"a patch of shape {tuple(made.shape)} for {addresses}, which has {tuple(old.shape)}; the next module needs that: give one of the same shape")
            return made
        self.change(addresses, how)

    def ablate(self, addresses: str | Sequence[str], heads: Sequence[int] | None = None) -> None:
        """Take a part out: a block hands on what it was given, anything else gives zeros; with `heads`, of an attention, what these bring to its output.

        Source: Michel et al. 2019, equation 2 (heads; the mask is on what they mix, before the output matrix).
        Raises: ValueError for an address that is not, or heads that are not.
        """
        for address in matching(self.model, addresses):
            module = self.model.get_submodule(self.known[address].module)
            if heads is None:
                self.change(address, (lambda _, given: given[0]) if isinstance(module, Block) else (lambda old, _: torch.zeros_like(old)))
            else:
                self.silence(address, module, heads)

    def silence(self, address: str, module: nn.Module, heads: Sequence[int]) -> None:
        if not isinstance(module, Attention):
            raise ValueError(f"heads of {address}, a {type(module).__name__}; an attention has heads: give an address such as blocks.0.attn")
        n, width, turn = module.o_proj.in_features // module.d_head, module.d_head, self.known[address].turn
        if wrong := [head for head in heads if not 0 <= head < n]:
            raise ValueError(f"head {wrong[0]} of {address}, which has {n}; they are counted from 0: give 0 to {n - 1}")

        def mute(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if turn not in (None, self.turn):
                return None
            mixed = given[0].unflatten(-1, (n, width)).clone()                   # (B, T, H, Dh)
            mixed[..., list(heads), :] = 0
            return (mixed.flatten(-2), *given[1:])
        self.keep(module.o_proj.register_forward_pre_hook(mute))


@contextmanager
def trace(model: Model, *addresses: str) -> Iterator[Traced]:
    """Inside the `with`, what forward passes compute at these addresses can be read, and changed; afterwards the model is as before, and what was read stays.

        with mt.trace(model, "blocks.*.attn.probs", "blocks.3") as t:
            model(**tok("a text"))
            t["blocks.3"], t["blocks.0.attn.probs"]                 # (B, T, D), (B, H, T, S)
            t.patch("blocks.3", lambda x: x * 0.5)                  # from the next forward pass on
            t.ablate("blocks.2.attn", heads=[1])

    A block gives the stream after it, an attention or a feed-forward part what it adds to that. `attn.probs` and `attn.scores` take the written-out path of the
    attention. Padding stays in its place on a GPU too, and text is generated by the model itself and not by its quicker copy.

    Raises: ValueError for an address that names nothing.
    """
    need_model(model, "trace")
    with ExitStack() as stack:
        for stack_of_blocks in (one for one in model.modules() if isinstance(one, Model) and hasattr(one, "packs")):
            stack.callback(setattr, stack_of_blocks, "packs", stack_of_blocks.packs)
            stack_of_blocks.packs = False
        yield Traced(model, addresses, stack)
