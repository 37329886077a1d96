"""A step rehearsed: run on tensors that have shapes and no numbers, while every storage is counted. Nothing is computed and no memory is taken.

What is counted is what the step would ask of the allocator, operation by operation, so our own autograd functions count as they are; kernels of a GPU are
launched in name only. Left out: scratch inside single operations, what the allocator of a GPU loses between blocks, and what PyTorch and a driver take for themselves.
"""
from __future__ import annotations

import copy
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..nn.cache import Cache
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.heads import VocabularyHead
from ..nn.model import Model
from ..ops import nf4
from ..ops.kernels import Kernels, rehearsed
from ..ops.linear_cross_entropy import linear_cross_entropy
from ..ops.quantized_weight import QuantizedWeight
from ..transfer.fingerprint import inserted_names
from .precision import DTYPES

MASKED = 0.15                           # of the positions of a masked head have a target
OPTIMIZER = 8                           # bytes a trained number: AdamW's two moments in float32
UPDATE = 40                             # bytes moved a trained number: its gradient for the norm, scaled, and AdamW
PRODUCTS = {"attention_forward": 4, "attention_dkv": 8, "attention_dq": 6}      # operations of a kernel for each pair and number of a head: see ops/attention.py
ROWS = 128, 64                          # queries of a block of these kernels, in 16 bits and in 32
FORWARD = ("activations", "logits and loss")
GAPS, LIBRARIES = 0.55, 80 * 10**6      # of a process on a CPU, fitted to measured steps (bench/plan.py): see `gaps`
PARTS = ("weights", "weights in 16 bits", "adapters", "gradients", "optimizer", "activations", "logits and loss", "backward pass", "KV cache", "gaps and libraries")


@dataclass(frozen=True)
class StepShape:
    """One optimizer step, or with trains=False the reading of a prompt into a KV cache."""

    batch_size: int                     # rows of a micro-batch, all full
    length: int
    precision: str = "fp32"
    checkpointing: bool | str = False
    micro_batches: int = 1
    trains: bool = True


@dataclass(frozen=True)
class Footprint:
    """What a rehearsal counted, in bytes, operations and launches."""

    parts: dict[str, int]               # by component, at the moment of the peak
    kept: int                           # for the backward pass, at its beginning
    flop: int                           # of matrix products, of the whole step
    moved: int                          # read and written by everything else
    launches: int
    tokens: int

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


class InName(Kernels):
    """Any kernel, in a rehearsal."""

    def __init__(self, stage: Stage):
        self.stage = stage

    def __call__(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], *values: object, shared: int = 0) -> None:
        self.stage.launched(name, grid[0], values)


class Stage(TorchDispatchMode):
    """Counts storages from their making to their end. Operations in a rehearsal ask it for which device they are (`ops.dispatch.device_of`)."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.tag, self.kernels = device, "weights", InName(self)
        self.places: dict[int, tuple[str, int]] = {}                             # storage -> component, bytes
        self.live: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.flop = self.moved = self.launches = 0
        self.gone = 0                                # bytes that came and went in forward passes, where something is kept
        self.between = 0                             # bytes of activations that are kept: they lie between what comes and goes
        self.keeps = False                           # whether the graph has begun, above what is frozen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1                                                             # a question to the numbers: yes
        kwargs = kwargs or {}
        self.keeps = self.keeps or any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves((args, kwargs)))
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        copies = func is torch.ops.aten._to_copy.default and self.part_of(args[0]) in ("weights", "adapters")
        fresh = [self.note(t, "weights in 16 bits" if copies and t.element_size() == 2 else self.tag) for t in made]
        if any(fresh) or func._schema.is_mutable:
            self.count(func, args, kwargs, out, made)
        return out

    def launched(self, name: str, blocks: int, values: tuple) -> None:
        """Count a kernel that was launched in name only."""
        tensors = [t for t in tree_leaves(values) if isinstance(t, Tensor)]
        self.launches, self.moved = self.launches + 1, self.moved + sum(t.nbytes for t in tensors)
        if name in PRODUCTS:
            queries = max((t for t in tensors if t.dim() == 3), key=Tensor.numel)                          # (N, H, Dh)
            self.flop += PRODUCTS[name] * queries.numel() * blocks * ROWS[queries.dtype == torch.float32]

    def count(self, func: Any, args: Any, kwargs: Any, out: Any, made: list[Tensor]) -> None:
        from torch.utils.flop_counter import flop_registry
        self.launches += 1
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.flop += 2 * args[0].numel() * len(args[1])
        elif (products := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += products(*args, **kwargs, out_val=out)
        else:
            self.moved += sum(t.nbytes for t in (*made, *tree_leaves((args, kwargs))) if isinstance(t, Tensor))

    def note(self, t: Tensor, tag: str) -> bool:
        """Count the storage of a tensor, unless it is known. Returns: whether it was not."""
        if isinstance(t, QuantizedWeight):
            return False                                                         # its parts are counted
        storage = t.untyped_storage()
        if (key := id(storage)) in self.places:
            return False
        self.places[key] = tag, storage.nbytes()
        self.live[tag] += storage.nbytes()
        weakref.finalize(storage, self.forget, key)
        if self.live.total() > self.at_peak.total():
            self.at_peak = self.live.copy()
        return True

    def forget(self, key: int) -> None:
        tag, size = self.places.pop(key)
        self.live[tag] -= size
        self.gone += size if self.keeps and self.tag in FORWARD else 0

    def part_of(self, t: Any) -> str:
        return self.places.get(id(t.untyped_storage()), ("",))[0] if isinstance(t, Tensor) and not isinstance(t, QuantizedWeight) else ""

    def belongs(self, t: Tensor, tag: str) -> None:
        """The storage of a tensor is a part of this component."""
        self.note(t, tag)
        key = id(t.untyped_storage())
        before, size = self.places[key]
        self.places[key] = tag, size
        self.live[before] -= size
        self.live[tag] += size

    def begin(self) -> None:
        """What was made until now stays; count the step from here."""
        self.at_peak, self.flop, self.moved, self.launches, self.gone = self.live.copy(), 0, 0, 0, 0


def loss_of(model: Model, step: StepShape, stage: Stage) -> Tensor:
    """The forward pass over full rows of `step.length` tokens."""
    ids = torch.zeros(step.batch_size, step.length, dtype=torch.long)
    head, stage.tag = model.head, "activations"
    body = model.body(ids, None, ids) if isinstance(model, EncoderDecoder) else model.body(ids)
    stage.tag = "logits and loss"
    if head is None:
        return body.x.float().sum()
    if not isinstance(head, VocabularyHead):
        return head(body).float().sum()
    positions = ids.numel() - step.batch_size if head.shift else ids.numel()
    targets = torch.zeros(max(1, int(MASKED * positions)) if head.transform is not None else positions, dtype=torch.long)
    return linear_cross_entropy(head.transformed(body.x.flatten(0, 1)[targets]), head.matrix, head.bias, targets)


def train_step(model: Model, step: StepShape, stage: Stage, trained: list[nn.Parameter]) -> int:
    """Forward and backward of every micro-batch that makes a difference: the first, and one that finds gradients. Returns: bytes kept for the backward pass."""
    for p in trained:
        p.register_post_accumulate_grad_hook(lambda p: stage.belongs(p.grad, "gradients"))
    before = 0
    for _ in range(min(step.micro_batches, 2)):
        before, stage.keeps = stage.live.total(), False
        with torch.autocast("cpu", DTYPES[step.precision], enabled=step.precision != "fp32"):
            loss = loss_of(model, step, stage)
        kept, stage.between, stage.tag = stage.live.total() - before, stage.live["activations"], "backward pass"
        loss.backward()
    return kept


def read_prompt(model: Model, step: StepShape, stage: Stage) -> None:
    """A prompt into a KV cache, and the logits of its last position."""
    cache, stage.tag = Cache(model.config.n_layers), "activations"
    with torch.no_grad(), torch.autocast("cpu", DTYPES[step.precision], enabled=step.precision != "fp32"):
        body = model.body(torch.zeros(step.batch_size, step.length, dtype=torch.long), cache=cache)
        stage.tag = "logits and loss"
        if isinstance(model.head, VocabularyHead):
            model.head.logits(body.x[:, -1:])
    held = sum(t.nbytes for layer in cache.layers for t in (layer.k, layer.v) if t is not None)
    stage.at_peak.update({"KV cache": held, "activations": -held})               # at the peak, which is near the end, it was whole


@contextmanager
def on_stage(device: str) -> Iterator[Stage]:
    """Inside, tensors have shapes and no numbers, and operations take the ways of `device`."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports the compiler, which takes longer than `import torch`
    nf4.levels()                                                                 # a table that is made once must have its numbers
    stage = Stage(device)
    token = rehearsed.set(stage)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), stage:
            yield stage
    finally:
        rehearsed.reset(token)


def rehearse(make: Callable[[], Model], step: StepShape, device: str = "cuda") -> Footprint:
    """What a step takes.

    Args: make: builds the model, with whatever a strategy puts in and freezes; it is called where tensors have no numbers. device: "cuda" or "cpu".
    """
    with on_stage(device) as stage:
        model = make().train(step.trains)
        model.checkpointing = step.checkpointing
        for name in inserted_names(model):
            stage.belongs(model.get_parameter(name), "adapters")
        trained = [p for p in model.parameters() if p.requires_grad] if step.trains else []
        moments = [torch.empty(OPTIMIZER * p.numel(), dtype=torch.uint8) for p in trained]
        for one in moments:
            stage.belongs(one, "optimizer")
        stage.begin()
        kept = train_step(model, step, stage, trained) if step.trains else 0
        if not step.trains:
            read_prompt(model, step, stage)
        n = min(step.micro_batches, 2) if step.trains else 1
        times, numbers = step.micro_batches / n, sum(p.numel() for p in trained)
        stage.at_peak["gaps and libraries"] = gaps(stage.between, stage.gone / n * (2 if step.checkpointing else 1)) if device == "cpu" else 0
        parts = {name: size for name in PARTS if (size := stage.at_peak[name])}
        return Footprint(parts, kept, round(times * stage.flop), round(times * stage.moved) + UPDATE * numbers, round(times * stage.launches),
                         step.batch_size * step.length * step.micro_batches)


def gaps(kept: int | float, gone: int | float) -> int:
    """Bytes that a process takes beside its blocks: LIBRARIES + GAPS sqrt(kept gone).

    Where what is kept lies between what comes and goes, glibc's heap (2.36) cannot fill the gaps: a block aligned to 64 bytes is searched for with 96 bytes to spare,
    which the gap of a block of its size has not. Without either there are none. What is computed again comes and goes twice. Fitted, not derived.
    """
    return round(LIBRARIES + GAPS * math.sqrt(kept * gone))


def twin(model: Model) -> Model:
    """The model again, on stage: each of its tensors once more, without numbers."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        for one in t.parts if isinstance(t, QuantizedWeight) else (t,):
            empty = torch.empty(one.shape, dtype=one.dtype)
            memo[id(one)] = nn.Parameter(empty, one.requires_grad) if isinstance(one, nn.Parameter) else empty
    return copy.deepcopy(model, memo)
