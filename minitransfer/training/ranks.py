"""Several processes that train one model, as `torchrun` starts them. One process alone passes through every function here unchanged.

Of the M batches of an optimizer step rank r of W takes those with number = r mod W: a step reads the same batches, and draws the same random numbers for
each, whatever W is. With the losses l and the numbers of targets n of the batches b of a step

    g = (sum_b dl_b / dw) / (sum_b n_b)

each rank sums over its own batches, one all-reduce sums the counts and, in the backward pass of the last batch, another the gradients.
The first rank alone reads and writes the run's folder, logs and talks.
Source: Li et al. 2020, "PyTorch Distributed" (DDP); Zhao et al. 2023, "PyTorch FSDP", and Rajbhandari et al. 2020, "ZeRO", stage 3 (shards).
"""
from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..nn.model import Model
from ..objectives import Objective, Replaced
from ..objectives.carried import Carried
from .settings import TrainSettings

A = TypeVar("A")
B = TypeVar("B")
Ask = Callable[..., Any]            # (function, *its arguments, last=is it the last batch of the step) -> what the function returns
failed: list[bool] = []             # has this process said, or heard, that something went wrong?
PATIENCE = timedelta(hours=2)       # of ranks that wait for one that tokenises or saves; a rank that dies ends the wait at once


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def first() -> bool:
    """Is this the rank that reads, writes and talks?"""
    return rank() == 0


@functools.cache
def meeting_place() -> dist.Store:
    """What all ranks can read and write, found through the environment."""
    return next(dist.rendezvous("env://"))[0]


def join(model: Model | None = None) -> None:
    """Meet the others that `torchrun` started, if it did, and give each process the GPU of its number.

    Raises: ValueError for more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available() and own_gpu() < torch.cuda.device_count():
            torch.cuda.set_device(own_gpu())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE, store=meeting_place(),
                                rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
        atexit.register(close)
        sys.excepthook = functools.partial(report, sys.excepthook)
    if world() > 1 and model is not None and model.device.type == "cuda":
        if own_gpu() >= torch.cuda.device_count():
            raise ValueError(f"process {own_gpu() + 1} of this machine, which has {torch.cuda.device_count()} GPUs; each process needs one of its own: start fewer "
                             "(--nproc-per-node), or train on the CPU")
        model.to(torch.device("cuda", own_gpu()))


def close() -> None:
    """The end of a process that trained with others. One that failed does not wait for those that wait for it, and its threads are left where they are."""
    if failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    dist.destroy_process_group()


def own_gpu() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def check_shares(settings: TrainSettings, objective: Objective | None = None, precision: str = "") -> None:
    """Raises: ValueError for a step that cannot be shared out evenly, or what several processes, or a model in shards, cannot do.

    Args: precision: what the settings' own came to be on this device.
    """
    if world() == 1:
        return
    if settings.micro_batches % world():
        raise ValueError(f"micro_batches={settings.micro_batches} on {world()} processes; they share the batches of a step evenly, and a step is the same whatever their "
                         f"number: give micro_batches={-(-settings.micro_batches // world()) * world()}, with a smaller batch_size for as many rows a step")
    if isinstance(objective, Carried):
        raise ValueError(f"the carried objective on {world()} processes; each batch goes on where the one before it ended: use one process, or Causal()")
    if settings.shard and "fp16" in (settings.precision, precision):
        raise ValueError("shard=True with fp16; its loss scale needs all gradients on each process: leave shard out, or give precision=fp32")
    if settings.shard and isinstance(objective, Replaced):
        raise ValueError("shard=True with the replaced objective; a generator stands beside the model, and only the model is in shards: leave shard out")


def first_to_fail() -> bool:
    """Is it for this rank to say what went wrong? For the first that fails: the errors of the others are the same mistake, or follow from it."""
    if world() == 1:
        return True
    failed.append(True)
    return meeting_place().add("failed", 1) == 1


def named() -> str:
    """How a message says whose it is."""
    return f"rank {rank()} of {world()}: " if world() > 1 else ""


def report(hook: Callable[..., object], kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Show the error of the first rank that fails, and no other. Each process then ends with an exit code that makes `torchrun` end the others."""
    if first_to_fail():
        hook(kind, error, trace)


@contextmanager
def one_voice() -> Iterator[None]:
    """Within it only the first rank is heard."""
    if first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def from_first(make: Callable[[], A]) -> A:
    """What the first rank makes, on every rank. The others wait for it."""
    if world() == 1:
        return make()
    box: list[Any] = [make() if first() else None]
    dist.broadcast_object_list(box)
    return box[0]


@contextmanager
def first_alone() -> Iterator[None]:
    """The first rank goes through this block before the others: what it leaves in a cache they find."""
    if not first():
        from_first(bool)
    yield
    if first():
        from_first(bool)


def total(device: torch.device, *numbers: Any) -> tuple[Any, ...]:
    """Each number summed over the ranks, in one message."""
    if world() == 1:
        return numbers
    sums = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=device) for one in numbers])
    dist.all_reduce(sums)
    return sums.unbind()


def each(asked: Iterable[A], answer: Callable[[A], B]) -> Iterator[B]:
    """The answers to all that is asked, in order and on every rank, each computed by one of them.

    Args: answer: gives tensors on the CPU. Where ranks are left over at the end they compute the last one too, and it is dropped.
    """
    if world() == 1:
        yield from map(answer, asked)
        return
    rest = iter(asked)
    while some := list(islice(rest, world())):
        found: list[Any] = [None] * world()
        dist.all_gather_object(found, answer(some[min(rank(), len(some) - 1)]))
        yield from found[:len(some)]


class Around(nn.Module):
    """A model whose forward pass is any function of it: DDP and FSDP2 act around a forward pass, and objectives ask the body and the head of a model."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, ask: Callable[..., A], *given: Any) -> A:
        return ask(*given)


def alone(ask: Callable[..., A], *given: Any, last: bool = True) -> A:
    return ask(*given)


def summed(state, bucket):      # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
    """Gradients are added up; DDP by itself would take their mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def replicated(model: Model, groups: list[dict]) -> Ask:
    """The model on every rank, with the first one's weights; gradients travel during the backward pass of a step's last batch."""
    trained = [p for group in groups for p in group["params"]]
    now = [p.requires_grad for p in trained]
    for p in trained:                                                            # also those that a strategy unfreezes later
        p.requires_grad_(True)
    around = Around(model)
    around.unused = nn.Parameter(torch.zeros(1, device=model.device))            # DDP looks for parameters without a gradient, and complains where there are none
    ddp = nn.parallel.DistributedDataParallel(around, find_unused_parameters=True, gradient_as_bucket_view=True)
    ddp.register_comm_hook(None, summed)
    for p, trains in zip(trained, now, strict=True):
        p.requires_grad_(trains)

    def ask(function: Callable[..., A], *given: Any, last: bool = True) -> A:
        with nullcontext() if last else ddp.no_sync():
            return ddp(function, *given)
    return ask


@dataclass(frozen=True)
class Shared:
    """A model as the ranks hold it while they train."""

    model: Model                        # the one that computes
    groups: list[dict]                  # of its parameters
    ask: Ask
    whole: Callable[[], AbstractContextManager[Model]]      # within it, the model as its user knows it: on the first rank with all its weights


@contextmanager
def shared(model: Model, groups: list[dict], shard: bool) -> Iterator[Shared]:
    """Hold the model alone, as a replica of the first rank's, or in shards."""
    if world() > 1 and shard:
        from .shards import sharded  # what one process never needs is not imported by it
        with sharded(model, groups) as parts:
            yield parts
    else:
        yield Shared(model, groups, alone if world() == 1 else replicated(model, groups), lambda: nullcontext(model))


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be in shards; every rank has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(value: Tensor, like: Any) -> Tensor:
    """What this rank holds of a whole tensor that is to be kept as `like` is."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """These tensors whole, on the CPU of the first rank, to be saved; the others have none."""
    found = {}
    for name, tensor in tensors.items():
        value = full(tensor.detach())
        if first():
            found[name] = value.cpu().contiguous()
    return found
