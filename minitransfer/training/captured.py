"""Forward and backward as CUDA graphs: a small model's step is hundreds of launches that each take the host longer than the GPU; replayed, they are one.

A graph holds shapes and addresses, not values. So nothing in it may ask the device for a number (`meta` tensors, which have none, show that in a test),
batches are copied to where the graph reads, and gradients add up in the parameters' own .grad, which stay where they are from step to step.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..nn.heads import VocabularyHead
from ..nn.model import Model
from ..objectives import Objective
from .precision import Precision
from .ranks import world

WARM_UP = 3             # passes before a capture: they load kernels and let libraries choose
Key = tuple[tuple[str, torch.Size, torch.dtype], ...]


def check_capture(model: Model, objective: Objective) -> None:
    """Raises: ValueError for a device, a head or an objective that no graph can hold."""
    if model.device.type != "cuda":
        raise ValueError(f"graphs=True on {model.device}; CUDA graphs are an NVIDIA GPU's: leave graphs out, or move the model there")
    if world() > 1:
        raise ValueError(f"graphs=True on {world()} processes; gradients that travel between processes are in no graph: leave graphs out, or train on one")
    if not isinstance(model.head, VocabularyHead) or not hasattr(objective, "most_targets"):
        raise ValueError(f'graphs=True with head="{model.head_name}" and {type(objective).__name__}; a graph needs to know how many targets there are at most, '
                         "which masked and causal pretraining say: leave graphs out")


@contextmanager
def fixed_budget(model: Model, objective: Any, positions: int) -> Iterator[None]:
    """Inside, the head's loss reads a number of rows that no value changes."""
    head: Any = model.head
    head.budget = objective.most_targets(positions)
    try:
        yield
    finally:
        head.budget = None


def forward_backward(model: Model, objective: Objective, precision: Precision, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch's summed loss to those of the parameters. Returns: the sum and the number of targets, both on the device."""
    with fixed_budget(model, objective, batch["input_ids"].numel()), precision.autocast():
        loss, n = objective(model, batch, generator)   
    precision.backward(loss)
    return loss.detach(), torch.as_tensor(n)


@dataclass(frozen=True)
class Graph:
    """What is replayed, where it reads, and where it leaves its sum and count."""

    inputs: dict[str, Tensor]
    graph: Any
    loss: Tensor
    count: Tensor


class Captured:
    """`forward_backward`, captured once for each shape of batch and replayed from then on.

    The random numbers are those of the step: its seeds are given to the generators that the graph holds before it is replayed.
    """

    def __init__(self, model: Model, objective: Objective, precision: Precision):
        check_capture(model, objective)
        self.model, self.objective, self.precision = model, objective, precision
        self.generator = torch.Generator(model.device)
        self.graphs: dict[Key, Graph] = {}
        self.pool: Any = None               # memory that all graphs share: one is replayed at a time

    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        key: Key = tuple((name, t.shape, t.dtype) for name, t in sorted(batch.items()))
        if key not in self.graphs:
            self.graphs[key] = self.capture(batch)
            torch.cuda.manual_seed(torch.cuda.initial_seed())                    # the passes of the capture have drawn from it
        self.generator.manual_seed(generator.initial_seed())
        held = self.graphs[key]
        for name, t in batch.items():
            held.inputs[name].copy_(t, non_blocking=True)
        held.graph.replay()
        return held.loss, held.count

    def capture(self, batch: dict[str, Tensor]) -> Graph:
        """A graph for batches of this shape. What the gradients hold already is put back afterwards."""
        inputs = {name: t.clone() for name, t in batch.items()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        before = [None if p.grad is None else p.grad.clone() for p in trained]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                forward_backward(self.model, self.objective, self.precision, inputs, self.generator)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):     # the thread that pins the next batch goes on meanwhile
            loss, count = forward_backward(self.model, self.objective, self.precision, inputs, self.generator)
        self.pool = graph.pool()
        for p, grad in zip(trained, before, strict=True):
            if p.grad is not None:
                p.grad.copy_(grad) if grad is not None else p.grad.zero_()
        return Graph(inputs, graph, loss, count)
