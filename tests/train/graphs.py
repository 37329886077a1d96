"""A CUDA graph's behaviour on a CPU: the operations of a function are recorded with the tensors they read and write, undone, and done again at each replay."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that an operation writes into."""
    given = zip(func._schema.arguments, [*args, *(kwargs.get(one.name) for one in func._schema.arguments[len(args):])], strict=False)
    return [t for one, value in given if one.alias_info is not None and one.alias_info.is_write for t in tree_leaves(value) if isinstance(t, Tensor)]


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}      # storage -> a tensor that is written, and what it held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for t in written(func, args, kwargs):
            self.before.setdefault(t.untyped_storage().data_ptr(), (t, t.detach().clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


class FakeGraph:
    """Instead of captured.Graph. A number that the function read, or anything it did in Python, is as it was at the capture, as in a real graph."""

    pool = None
    replays = 0

    def __init__(self, function: Callable[[], Any], generator: torch.Generator, pool: Any, stream: Any = None):
        drawn, recorder = generator.get_state(), Recorder()
        with recorder:
            self.out = function()
        self.calls = recorder.calls
        generator.set_state(drawn)
        with torch.no_grad():
            for t, held in recorder.before.values():
                t.copy_(held)

    @torch.no_grad()
    def replay(self) -> None:
        FakeGraph.replays += 1
        for func, args, kwargs, out in self.calls:
            own = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for kept, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and kept.untyped_storage().data_ptr() not in own:
                    kept.copy_(new)
