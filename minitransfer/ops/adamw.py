"""AdamW over all tensors in one launch, and the norm of their gradients.

    g = gradient * factor / grad_scale
    m <- m + (1 - beta1) (g - m)            v <- v + (1 - beta2) (g^2 - v)
    w <- w (1 - lr * decay) - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

Rates, factor, step number and found_inf are read on the device: a captured step replays with new ones, and one with found_inf changes nothing.
w, m and v are float32; a parameter in 16 bits keeps its w as `master` in the optimizer's state and is itself the copy of w, written in the same pass.
Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2; the master copy: Micikevicius et al. 2018, section 3.1. Kernel: kernels/adamw.cu.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from .dispatch import pick
from .kernels import ADDRESSES, Kernels

CHUNK = 8192            # neighbours that one block takes
THREADS = 256
CONSTANTS = 8           # numbers of adamw.cu's struct of that name
HALVES = (torch.float16, torch.bfloat16)


def reference(w: Tensor, gradient: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta1: float, beta2: float, eps: float, decay: float,
              factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """w, m and v after step t of one tensor, in the dtype of w."""
    g = gradient.to(w.dtype) * factor
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.square()
    return w * (1 - lr * decay) - lr / (1 - beta1**t) * m / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def cost(n: int, bytes_per_gradient: int = 4, copied: bool = False) -> dict[str, int]:
    """A step reads the gradient, reads and writes w, m and v, and may write a copy of w as wide as the gradient; the norm reads the gradient.

    About 15 and 2 operations a number.
    """
    return {"bytes_step": n * (24 + bytes_per_gradient * (2 if copied else 1)), "flop_step": 15 * n, "bytes_norm": n * bytes_per_gradient, "flop_norm": 2 * n}


@lru_cache(maxsize=64)
def places(counts: tuple[int, ...], device: torch.device) -> Int64[Tensor, "chunks 3"]:
    """The chunks of tensors with these numbers of elements: slot of the tensor, first element, how many."""
    rows = []
    for slot, count in enumerate(counts):
        first = torch.arange(0, count, CHUNK)
        rows.append(torch.stack([torch.full_like(first, slot), first, (count - first).clamp(max=CHUNK)], 1))
    return torch.cat(rows).to(device)


def obstacle_in(gradients: list[Tensor]) -> str:
    """What keeps these gradients from the kernels of adamw.cu."""
    other = next((g for g in gradients if type(g) not in (Tensor, nn.Parameter)), None)
    return "" if other is None else f"gradients of type {type(other).__name__}; a kernel reads plain tensors"


def grad_norm(gradients: Iterable[Tensor]) -> Float[Tensor, ""]:
    """|g| over all tensors together, on their device; the same bits every time."""
    lists: dict[torch.dtype, list[Tensor]] = {}
    everything = [g.detach() for g in gradients]
    for g in everything:
        lists.setdefault(g.dtype, []).append(g.contiguous())
    parts = [some[i:i + ADDRESSES] for some in lists.values() for i in range(0, len(some), ADDRESSES)]
    built = [pick("grad_norm", "adamw.cu", *part, everything[0], limit=obstacle_in(part)) for part in parts]
    ks = [k for k in built if k is not None]
    if len(ks) < len(parts) or not parts:
        return nn.utils.get_total_norm(everything)
    tables = [places(tuple(g.numel() for g in part), part[0].device) for part in parts]
    sums, norm, first = torch.empty(sum(map(len, tables)), device=tables[0].device), torch.empty((), device=tables[0].device), 0
    for k, part, table in zip(ks, parts, tables, strict=True):
        if len(table):
            k("gradient_squares", (len(table), 1, 1), (THREADS, 1, 1), sums[first:], table, part)
        first += len(table)
    ks[0]("gradient_norm", (1, 1, 1), (1024, 1, 1), norm, sums, len(sums))
    return norm


def clip_factor(norm: Float[Tensor, ""], targets: Tensor | int, max_norm: float | int | None) -> Float[Tensor, ""]:
    """What a summed loss's gradient is multiplied by: 1 / targets, times min(1, max_norm / (norm / targets)). The host does not wait.

    Args:   norm: of the summed loss's gradient; targets: how many terms the sum has, best on the device.
    Source: Pascanu et al. 2013, algorithm 1; 1e-6 keeps 0 / 0 out.
    """
    mean = (norm / targets).double()
    clip = torch.ones_like(mean) if max_norm is None else (max_norm / (mean + 1e-6)).clamp(max=1.0)
    return (clip / targets).to(norm.dtype)


@dataclass(frozen=True)
class Member:
    """A parameter that is stepped: its group's number, and its tensors."""

    p: nn.Parameter
    group: int
    w: Tensor
    m: Tensor
    v: Tensor
    step: Tensor

    def row(self) -> tuple[int, ...]:
        """As adamw.cu's struct Weights."""
        copy = self.p.data_ptr() if self.w is not self.p else 0
        return self.step.data_ptr(), self.group, self.w.data_ptr(), self.m.data_ptr(), self.v.data_ptr(), copy


class Table:
    """Where the tensors of one launch are, for the device; made anew when one of them moved."""

    def __init__(self, rows: tuple[tuple[int, ...], ...], counts: tuple[int, ...], device: torch.device):
        self.rows, self.tensors, self.places = rows, torch.tensor(rows, device=device), places(counts, device)
        self.constants = torch.zeros(len(rows), CONSTANTS, device=device)


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW whose step is one launch (two with the one that counts steps) for up to 480 tensors of a dtype; state_dicts go both ways.

    A learning rate may be a tensor on the device, as in PyTorch. Floats in the groups are sent when they changed: before replaying a captured step, by
    `send_groups`. GradScaler's grad_scale and found_inf are taken as they are on the device.
    """

    def __init__(self, params: Iterable, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        self.tables: dict[tuple[torch.dtype, int], Table] = {}
        self.sent: list[list] = []
        self.on_device = torch.empty(0)

    @torch.no_grad()
    def step(self, closure: Callable | None = None, *, factor: Float[Tensor, ""] | None = None):
        """One step for every parameter that has a gradient.

        Args: factor: what gradients are multiplied by, on their device (see `clip_factor`).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members: dict[torch.dtype, list[Member]] = {}
        for number, group in enumerate(self.param_groups):
            for p in self.stepped(group):
                if p.numel() and (p.grad is not None or p in self.state):
                    members.setdefault(p.dtype, []).append(self.member(p, number))
        for dtype, some in members.items():
            for first in range(0, len(some), ADDRESSES):
                self.update(some[first:first + ADDRESSES], (dtype, first), factor)
        return loss

    def stepped(self, group: dict) -> list[nn.Parameter]:
        """Which parameters of a group AdamW steps."""
        return group["params"]

    def member(self, p: nn.Parameter, group: int) -> Member:
        state, w = self.state[p], self.wide(p)
        if "step" not in state:
            state["step"], state["exp_avg"], state["exp_avg_sq"] = torch.zeros((), device=p.device), torch.zeros_like(w), torch.zeros_like(w)
        return Member(p, group, w, state["exp_avg"], state["exp_avg_sq"], state["step"])

    def wide(self, p: nn.Parameter) -> Tensor:
        """The weights that are stepped: p, or the master of a p in 16 bits."""
        if p.dtype in HALVES and "master" not in self.state[p]:
            self.state[p]["master"] = p.detach().float()
        return self.state[p].get("master", p)

    def update(self, some: list[Member], name: tuple[torch.dtype, int], factor: Tensor | None) -> None:
        gradients = [one.p.grad for one in some]
        limit = obstacle_in([g for g in gradients if g is not None])
        limit = limit or next((f"a parameter of shape {tuple(one.p.shape)} with strides {one.p.stride()}; a kernel reads contiguous ones"
                               for one in some if not one.p.is_contiguous()), "")
        k = pick("adamw", "adamw.cu", *(one.p for one in some), limit=limit)
        if k is None:
            self.plain_update([one for one in some if one.p.grad is not None], factor)
        else:
            self.kernel_update(k, some, [None if g is None else g.contiguous() for g in gradients], name, factor)

    def kernel_update(self, k: Kernels, some: list[Member], gradients: list[Tensor | None], name: tuple[torch.dtype, int], factor: Tensor | None) -> None:
        rows, device, table = tuple(one.row() for one in some), some[0].p.device, self.tables.get(name)
        if table is None or table.rows != rows:
            table = self.tables[name] = Table(rows, tuple(one.p.numel() for one in some), device)
        self.send_groups()
        k("adamw_prepare", (-(-len(some) // 32), 1, 1), (32, 1, 1), table.constants, table.tensors, self.on_device, gradients, factor,
          getattr(self, "grad_scale", None), getattr(self, "found_inf", None), len(some))
        k("adamw_step", (len(table.places), 1, 1), (THREADS, 1, 1), table.constants, table.tensors, table.places, gradients)
        increment_version([one.p for one in some])                              # autograd, and caches of weights, see that they changed

    def plain_update(self, some: list[Member], factor: Tensor | None) -> None:
        """PyTorch's own, group by group."""
        for number, group in enumerate(self.param_groups):
            own = [one for one in some if one.group == number]
            gradients = [one.p.grad.to(one.w.dtype) for one in own if one.p.grad is not None]
            if factor is not None and own:
                gradients = list(torch._foreach_mul(gradients, factor))
            adamw([one.w for one in own], gradients, [one.m for one in own], [one.v for one in own], [], [one.step for one in own], fused=True, amsgrad=False,
                  beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
                  grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None))
            for one in own:
                if one.w is not one.p:
                    one.p.copy_(one.w)

    @torch.no_grad()
    def send_groups(self) -> None:
        """Write what changed in the groups since the last time to the device, as values of launches: the host does not wait."""
        groups = [[group["lr"], *group["betas"], group["eps"], group["weight_decay"]] for group in self.param_groups]
        if len(groups) != len(self.sent):
            self.on_device = torch.empty(len(groups), 5, dtype=torch.float64, device=self.param_groups[0]["params"][0].device)
            self.sent = [[None] * 5 for _ in groups]
        for number, (values, before) in enumerate(zip(groups, self.sent, strict=True)):
            for column, value in enumerate(values):
                if isinstance(value, Tensor):
                    self.on_device[number, column].copy_(value.squeeze())
                elif value != before[column]:
                    self.on_device[number, column].fill_(value)
        self.sent = [[None if isinstance(value, Tensor) else value for value in values] for values in groups]

    def load_state_dict(self, state_dict: dict) -> None:
        """Also of torch.optim.AdamW.

        Raises: ValueError for a state of amsgrad or maximize.
        """
        if any(group.get("amsgrad") or group.get("maximize") for group in state_dict["param_groups"]):
            raise ValueError("a state of AdamW with amsgrad or maximize; this one has neither: load it into torch.optim.AdamW")
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, p in zip(numbers, chain.from_iterable(group["params"] for group in self.param_groups), strict=True):
            wide = torch.promote_types(p.dtype, torch.float32)                   # PyTorch casts to the parameter's dtype, and may leave `step` on the CPU
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[p][name] = torch.as_tensor(value).to(p.device, torch.float32 if name == "step" else wide, copy=True)
