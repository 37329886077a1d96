"""The two halves of a step as CUDA graphs: a small model's step is hundreds of launches that each take the host longer than the GPU; replayed, they are two.

A graph holds shapes and addresses, not values. So nothing in it may ask the device for a number (`meta` tensors, which have none, show that in a test),
batches are copied to where the graph reads, gradients add up in the parameters' own .grad, which stay where they are from step to step, and what changes
from step to step (rates, counts, whether to change a weight at all) is on the device.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from ..nn.encoder_decoder import EncoderDecoder
from ..nn.heads import IGNORE, EmbeddingHead, SequenceHead, SpanHead, TokenHead, VocabularyHead
from ..nn.model import Model
from ..nn.recurrent import RecurrentModel
from ..objectives import Objective
from ..ops import clip_factor, grad_norm
from ..text.batches import bucket
from . import ranks
from .run import Run
from .step import Step

HEADS = (VocabularyHead, SequenceHead, TokenHead, SpanHead, EmbeddingHead)      # whose loss asks for no number
PADDING = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "document_ids": -1}
APART = 256                             # rows between two lengths of a packed row, at least
Tensors = dict[str, Tensor]


def check_device(device: torch.device) -> None:
    """Raises: ValueError for one that has no graphs."""
    if device.type != "cuda":
        raise ValueError(f"graphs=True on {device}; CUDA graphs are an NVIDIA GPU's: leave graphs out, or move the model there")


def check_capture(model: Model, objective: Objective) -> None:
    """Raises: ValueError for a device, a model, a head or an objective that no graph can hold."""
    check_device(model.device)
    if ranks.world() > 1:
        raise ValueError(f"graphs=True on {ranks.world()} processes; gradients that travel between processes are in no graph: leave graphs out, or train on one")
    if isinstance(model, EncoderDecoder | RecurrentModel) or not isinstance(model.head, HEADS) or not hasattr(objective, "most_targets"):
        raise ValueError(f'graphs=True for a {type(model).__name__} with head="{model.head_name}" and {type(objective).__name__}; a graph holds one stack of blocks, a head whose '
                         "loss asks for no number, and an objective that knows how many targets there are at most, which pretraining (masked, causal) and the labels "
                         "of fine-tuning say: leave graphs out")
    if model.checkpointing or model.attention == "tiled":
        raise ValueError(f'graphs=True with {"checkpointing" if model.checkpointing else "attention=tiled"}; it keeps the seeds of dropout on the host, and a graph would repeat '
                         "them: leave one of the two out")


def widened(model: Model, batch: Tensors) -> Tensors:
    """A batch of padded texts with more padding, up to the width of its bucket, and `packed`, if blocks drop padding: few shapes occur. No token sees padding, and no loss."""
    if "attention_mask" not in batch:
        return batch
    T = batch["input_ids"].shape[1]
    width = max(T, min(int(bucket(np.array([T]))[0]), model.longest))
    values = PADDING | ({"labels": IGNORE} if isinstance(model.head, TokenHead | VocabularyHead) else {})
    wide = {name: pad(t, (0, width - T), value=values[name]) if name in values else t for name, t in batch.items()}
    return wide | {"packed": packed(wide["attention_mask"].bool())} if model.drops_padding else wide


def packed(keep: Bool[Tensor, "B T"]) -> Int[Tensor, "N"]:
    """The places of all tokens in order, and behind them of so much padding that few lengths occur: multiples of APART, from 8 APART on eight to each doubling."""
    n = max(int(keep.sum()), 1)
    step = max(APART, 2 ** (n.bit_length() - 4))
    return (~keep.flatten()).byte().argsort(stable=True)[: -(-n // step) * step]


@contextmanager
def fixed_shapes(model: Model, objective: Any, batch: Tensors) -> Iterator[None]:
    """Inside, no shape depends on a value: padding stays that is not `packed`, and the loss of a head with a vocabulary reads as many rows as can have a target."""
    head, packs, dropped = model.head, model.packs, model.drops_padding and "packed" in batch
    if "attention_mask" in batch and not dropped:                                # else it stays: the thread that widens the next batch looks there
        model.packs = False
    if isinstance(head, VocabularyHead):
        head.budget = objective.most_targets(batch["packed" if dropped else "input_ids"].numel())
    try:
        yield
    finally:
        model.packs = packs
        if isinstance(head, VocabularyHead):
            head.budget = None


class Graph:
    """What a function launches, recorded and not run; replayed, it leaves its results in `out`."""

    def __init__(self, function: Callable[[], Any], generator: torch.Generator, pool: Any, stream: Any = None):
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):     # the thread that pins the next batch goes on meanwhile
            self.out = function()

    def replay(self) -> None:
        self.graph.replay()

    @property
    def pool(self) -> Any:
        return self.graph.pool()


class Captured:
    """`Step`, with a graph for each shape of batch and one for the update. A shape runs as it is the first time, which also loads its kernels, and is captured the second.

    A loss or a norm that is not finite changes no weight, and neither does any step after it: the loop reads the numbers later (with fp16's loss scale, an
    overflow is skipped and the steps go on).
    """

    def __init__(self, run: Run, objective: Objective, ask: ranks.Ask):
        check_capture(run.model, objective)
        self.run, self.objective, self.step, self.device = run, objective, Step(run, objective, ask), run.model.device
        self.generator = torch.Generator(self.device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.seen: set[tuple] = set()
        self.graphs: dict[tuple, tuple[Tensors, Graph]] = {}
        self.pool: Any = None               # memory that all graphs share: one is replayed at a time
        self.broken = torch.zeros((), device=self.device)
        if not run.precision.scaled:        # fp16's scaler says it itself
            run.optimizer.found_inf = self.broken   # type: ignore[attr-defined]
        for group in run.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)

    def __call__(self, batch: Tensors, generator: torch.Generator, last: bool = True) -> tuple[Tensor, Tensor]:
        """See `Step`. The random numbers are those of the step: its seeds are given to the generators that graphs hold."""
        self.generator.manual_seed(generator.initial_seed())
        return self.replayed(self.forward_backward, batch)

    def update(self, loss_sum: Tensor, counted: Tensor) -> Tensor:
        """See `Step`. The host does not wait; the numbers stay on the device."""
        return self.replayed(self.change, {"loss_sum": loss_sum, "counted": counted}).clone()

    def replayed(self, function: Callable[[Tensors], Any], given: Tensors) -> Any:
        """function(given): launched for new shapes, and where gradients have moved since, and replayed otherwise."""
        given = {name: t.to(self.device, non_blocking=True) for name, t in given.items()}
        shapes = [(name, t.shape, t.dtype) for name, t in sorted(given.items())]
        key = (function.__name__, *shapes, *(0 if p.grad is None else p.grad.data_ptr() for p in self.run.trained.values()))
        if key not in self.seen:
            self.seen.add(key)
            return self.launched(function, given)
        if key not in self.graphs:
            inputs = {name: t.clone() for name, t in given.items()}
            graph = Graph(lambda: function(inputs), self.generator, self.pool, self.stream)
            self.graphs[key], self.pool = (inputs, graph), graph.pool
        inputs, graph = self.graphs[key]
        for name, t in given.items():
            inputs[name].copy_(t, non_blocking=True)
        graph.replay()
        return graph.out

    def launched(self, function: Callable[[Tensors], Any], given: Tensors) -> Any:
        """On the stream of the captures: autograd remembers on which one a parameter was first used, and a graph that waits for another is refused."""
        if self.stream is None:
            return function(given)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            out = function(given)
        current.wait_stream(self.stream)
        return out

    def forward_backward(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        with fixed_shapes(self.run.model, self.objective, batch):
            loss, n = self.step(batch, self.generator)
        return loss, n if isinstance(n, Tensor) else torch.full((), n, device=self.device)

    @torch.no_grad()
    def change(self, sums: Tensors) -> Tensor:
        run, targets = self.run, sums["counted"].clamp(min=1)
        gradients = [p.grad for p in run.trained.values() if p.grad is not None]
        run.precision.unscale(run.optimizer)
        norm = grad_norm(gradients)
        numbers = torch.stack([x.double() for x in (sums["loss_sum"] / targets, norm / targets, sums["counted"])])
        self.broken.logical_or_(~run.precision.must_be_finite(*numbers[:2]).isfinite())
        run.precision.step(run.optimizer, factor=clip_factor(norm, targets, run.settings.max_grad_norm))
        # 0 x NaN is NaN: what is not finite stays to be found
        torch._foreach_zero_(gradients) if run.precision.scaled else torch._foreach_mul_(gradients, 0.0)
        return numbers
