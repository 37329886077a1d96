"""Which parameter is trained at which rate, and the step itself."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops import AdamW, Muon
from .precision import gpu_computes_bf16
from .ranks import full
from .settings import Number, TrainSettings


def param_groups(model: nn.Module, weight_decay: Number, lr_factor: Callable[[str], Number] = lambda name: 1.0) -> list[dict]:
    """Every trainable parameter in exactly one group: matrices decay, vectors (norms, biases) do not, frozen ones are in none.

    Args:    lr_factor: parameter name -> what the learning rate is multiplied by for it; equal factors share a group.
    Returns: dicts of name, params, lr_factor, weight_decay, in the order of the model's parameters.
    """
    groups: dict[str, dict] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decays, factor = p.dim() > 1, float(lr_factor(name))
            key = f"{'decay' if decays else 'no decay'}, lr x {factor!r}"
            group = {"name": key, "params": [], "lr_factor": factor, "weight_decay": float(weight_decay) if decays else 0.0}
            groups.setdefault(key, group)["params"].append(p)
    check_groups(model, list(groups.values()))
    return list(groups.values())


def check_groups(model: nn.Module, groups: list[dict]) -> None:
    """Prove that the groups hold every trainable parameter once, in float32 (or double), and nothing that is not the model's.

    Raises: ValueError that names every stray.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    times: dict[str, int] = dict.fromkeys(names.values(), 0)
    faults = []
    for group in groups:
        for p in group["params"]:
            if id(p) not in names:
                faults.append(f"not the model's: a parameter of shape {tuple(p.shape)} in group {group['name']!r}")
            else:
                times[names[id(p)]] += 1
    faults += [f"in {str(p.dtype).removeprefix('torch.')}, where small steps are lost (load the model with dtype=torch.float32; `precision` is for the products): "
               f"{name}" for name, p in model.named_parameters() if times[name] and p.dtype not in (torch.float32, torch.float64)]
    faults += [f"in {n} groups: {name}" for name, n in times.items() if n > 1]
    faults += [f"in no group: {name}" for name, p in model.named_parameters() if p.requires_grad and times[name] == 0]
    if faults or not any(times.values()):
        raise ValueError("these groups do not fit the model; each trainable parameter belongs in exactly one: freeze a stray, or add it to one\n  "
                         + "\n  ".join(faults or ["nothing is trainable: unfreeze a part of the model, or choose another strategy"]))


def muon_groups(model: nn.Module, groups: list[dict]) -> list[dict]:
    """The groups, with the matrices of the blocks in groups of their own, one for each number of columns.

        w <- w (1 - lr decay) - lr 0.2 sqrt(max(rows, columns)) X            X: as in ops/muon.py, whose own factor is sqrt(max(1, rows / columns))

    The root mean square of such a step is about 0.2 lr whatever the shape, as AdamW's: rates and decays of AdamW serve both.
    Source: Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2.
    """
    matrices = {id(p) for name, p in model.named_parameters() if "blocks." in name and p.dim() == 2}
    made = []
    for group in groups:
        shares: dict[int, list[nn.Parameter]] = {}                               # number of columns, 0 for AdamW's -> parameters
        for p in group["params"]:
            shares.setdefault(p.shape[1] if id(p) in matrices else 0, []).append(p)
        for columns, params in shares.items():
            longer = 0.2 * columns**0.5 or 1.0
            made.append({**group, "params": params, "muon": columns > 0, "lr_factor": group["lr_factor"] * longer, "weight_decay": group["weight_decay"] / longer})
    return made


def make_optimizer(groups: list[dict], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW with bias correction and decoupled weight decay: on a GPU in one launch for all tensors, elsewhere PyTorch's fused form, which takes a fraction of the others'.
    Or Muon for the groups that say so, and AdamW for the rest; its products are in bfloat16 where a GPU has it, as published, else in float32.

    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019; see `muon_groups`.
    """
    device, betas = groups[0]["params"][0].device, (settings.beta1, settings.beta2)
    own = [dict(group) for group in groups]
    if settings.optimizer == "muon":
        halves = device.type == "cuda" and gpu_computes_bf16(device)
        return Muon(own, lr=settings.lr, betas=betas, eps=settings.eps, dtype=torch.bfloat16 if halves else torch.float32)
    if device.type == "cuda":
        return AdamW(own, lr=settings.lr, betas=betas, eps=settings.eps)
    return torch.optim.AdamW(own, lr=settings.lr, betas=betas, eps=settings.eps, fused=device.type in ("cpu", "mps"))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_factor"])                           # where a graph reads it
        else:
            group["lr"] = lr * group["lr_factor"]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """|g| over all parameters together, whole or in shards."""
    return full(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


@torch.no_grad()
def scale_and_clip(parameters: Iterable[nn.Parameter], targets: int, norm: float, max_norm: Number | None) -> None:
    """g <- g / targets, then g <- g min(1, max_norm / norm), in one pass.

    Args:   norm: |g| / targets, the norm of the gradient of the mean loss per target.
    Source: Pascanu et al. 2013, algorithm 1.
    """
    clip = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))       # 1e-6 keeps 0 / 0 out
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], clip / targets)  # one launch for all of them on a GPU
