"""A model in shards: each rank holds a part of every parameter, of its gradient and its moments, and the whole of a block only while that computes.

Source: Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO", stage 3.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ..nn.block import Block
from ..nn.model import Model
from .ranks import Around, Shared, first, full, world

A = TypeVar("A")


@contextmanager
def sharded(model: Model, groups: list[dict]) -> Iterator[Shared]:
    """Within it a twin of the model computes, in shards that begin with the weights of the first rank, and the model itself holds no weights; afterwards it has
    those of the twin. After an error it has none: the other ranks, and what they hold, are gone."""
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    twin: Model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    root, mesh = Around(twin), init_device_mesh(model.device.type, (world(),))
    for unit in [*(module for module in twin.modules() if isinstance(module, Block)), root]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not root)
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)                                     # gradients are added up; the usual factor takes their mean
        unit.set_force_sum_reduction_for_comms(True)                             # gloo has no other
    shards, name_of = dict(twin.named_parameters()), {id(p): name for name, p in model.named_parameters()}

    def fill(device: torch.device | None, here: bool) -> None:
        for name, p in model.named_parameters():
            value = full(shards[name].detach())
            p.data = value.to(device or value.device) if here else value.new_empty(0)

    def empty() -> None:
        for p in model.parameters():
            p.data = p.data.new_empty(0)

    @contextmanager
    def whole() -> Iterator[Model]:
        fill(torch.device("cpu"), first())
        yield model
        empty()

    empty()
    yield Shared(twin, [{**group, "params": [shards[name_of[id(p)]] for p in group["params"]]} for group in groups], asking(root), whole)
    fill(None, True)
    model.eval()


def asking(root: Around) -> Callable[..., Any]:
    """How a function of the twin is computed: whatever no block holds is whole within it. Gradients travel in the backward pass of a step's last batch."""
    fsdp: Any = root

    def ask(function: Callable[..., A], *given: Any, last: bool = True) -> A:
        fsdp.set_requires_gradient_sync(last)
        answer: A = fsdp(function, *given)
        if not torch.is_grad_enabled():                                          # no backward pass is going to do it
            fsdp.reshard()
        return answer
    return ask
