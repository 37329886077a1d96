"""LoRA: a frozen Linear plus a trained low-rank change.

    y = x W^T + b + s (x A^T) B^T        A: (R, in), random;  B: (out, R), zeros;  s = alpha / R

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. Dropout is on the input of A, in training only.
Linears may share one A (`"q+k+v"`): that is LoRA on the fused projection [q; k; v], the form that a GPT-2 file calls `c_attn`.

A model may carry several, each under a name; one of them answers at a time, and trains (`named.py`).

DoRA trains a length m for each row of the changed weight, beside its direction:

    y = x W'^T + b        W' = m (W + s B A) / |W + s B A|_row        m starts as |W|_row

Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5. Differs from PEFT: in training dropout touches the input of A only.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from ..nn.evaluating import evaluating
from ..nn.model import Model
from ..ops.dispatch import within_reach
from ..ops.dropout import dropout
from ..ops.linear import linear
from ..ops.lora_linear import lora_linear
from ..ops.quantized_weight import QuantizedWeight
from ..weights.save import family_of
from .groups import TrainableReport, expand_range
from .named import DEFAULT, NamedLinear, Rows, check_name, check_unmerged, need_chosen, set_adapter, wrap
from .wrapped import check_free, linear_names, own_names, wrapped_linears

SHORT = {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.o_proj",
         "up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj"}


class LowRank:
    """One low-rank change of a Linear: its settings, and its matrices, which are parameters of the layer itself: `lora_A`, `lora_B` of the adapter without
    a name, `lora_A_law`, `lora_B_law` of the adapter "law".

    Args: r: rank, 1 or more. alpha: strength; the change is scaled by alpha / r, or alpha / sqrt(r) with `rslora`
          (Kalajdzievski 2023, equation 8). dropout: probability in [0, 1). A: a matrix to share with other Linears of the same input.
          dora: the length of each row of the weight is trained on its own, as `lora_magnitude`.
    """

    def __init__(self, layer: LoRALinear, name: str, r: int, alpha: int | float, dropout: int | float = 0.0, rslora: bool = False,
                 A: nn.Parameter | None = None, dora: bool = False):
        self.layer, self.r, self.alpha, self.dropout, self.rslora, self.dora = layer, r, alpha, dropout, rslora, dora
        self.scale = alpha / (math.sqrt(r) if rslora else r)
        self.own = {part: part if name == DEFAULT else f"{part}_{name}" for part in ("lora_A", "lora_B", "lora_magnitude")[: 3 if dora else 2]}
        device = layer.weight.device
        setattr(layer, self.own["lora_A"], nn.Parameter(torch.zeros(r, layer.in_features, device=device)) if A is None else A)
        setattr(layer, self.own["lora_B"], nn.Parameter(torch.zeros(layer.out_features, r, device=device)))
        if dora:
            setattr(layer, self.own["lora_magnitude"], nn.Parameter(row_lengths(layer.weight.detach().float())))

    @property
    def A(self) -> Tensor:
        return getattr(self.layer, self.own["lora_A"])

    @property
    def B(self) -> Tensor:
        return getattr(self.layer, self.own["lora_B"])

    @property
    def magnitude(self) -> Tensor | None:
        return getattr(self.layer, self.own["lora_magnitude"]) if self.dora else None

    def delta(self) -> Float[Tensor, "out in"]:
        """The low-rank change of the weight, s B A, in fp32."""
        return self.scale * (self.B.float() @ self.A.float())

    def gain(self) -> Float[Tensor, "out"]:
        """What each row of W + delta is multiplied by in DoRA: m / |W + delta|. The length is a constant to the gradient (section 4.3)."""
        assert self.magnitude is not None
        return self.magnitude / row_lengths((self.layer.weight.float() + self.delta()).detach())

    def change(self, x: Float[Tensor, "*N in"], y: Float[Tensor, "*N out"]) -> Float[Tensor, "*N out"]:
        x, bias = dropout(x, self.dropout) if self.layer.training else x, self.layer.bias
        down = linear(x.to(self.A.dtype), self.A)                                # (..., R)
        change = linear(self.scale * down, self.B)
        if self.dora:
            gain = self.gain()
            change = gain * change + (gain - 1) * (y if bias is None else y - bias)
        return change.to(y.dtype)

    def changed(self) -> Float[Tensor, "out in"]:
        weight = self.layer.weight.float() + self.delta()
        return self.gain()[:, None] * weight if self.dora else weight


class LoRALinear(NamedLinear):
    """A Linear and its low-rank changes. The base keeps its tensors and their names: `weight`, `bias`; theirs join them."""

    CALLED = "LoRA"
    adapters: dict[str, LowRank]

    def __init__(self, base: nn.Linear):
        super().__init__(base)
        self.adapters = {}

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        """The changes that are chosen join the product in its kernel, if there is one for them."""
        asked = [] if self.merged or not self.active or self.chosen is None else list(self.chosen.at) if isinstance(self.chosen, Rows) else [self.chosen]
        ones = [self.adapters[name] for name in asked if name in self.adapters]
        if not ones or not within_reach("lora_linear", x, lambda: self.in_the_way(asked, ones)):
            return super().forward(x)
        rate = float(ones[0].dropout) if self.training else 0.0
        if not isinstance(self.chosen, Rows):
            return lora_linear(x, self.weight, self.bias, ones[0].A, ones[0].B, ones[0].scale, rate)
        self.chosen.check(x)
        rank = max(one.r for one in ones)
        A = torch.stack([pad(one.A, (0, 0, 0, rank - one.r)) for one in ones])
        B = torch.stack([pad(one.scale * one.B, (0, rank - one.r)) for one in ones])
        place = self.chosen.place.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
        return lora_linear(x, self.weight, self.bias, A, B, 1.0, rate, place)

    def in_the_way(self, asked: list[str], ones: list[LowRank]) -> str:
        """What keeps the chosen changes from their kernel."""
        found = {"DoRA": any(one.dora for one in ones), "a base held as codes": isinstance(self.weight, QuantizedWeight),
                 "rows whose adapter changes other Linears": len(ones) < len(asked), "rows of unequal dropout": self.training and len({one.dropout for one in ones}) > 1}
        return next((what for what, there in found.items() if there), "")

    def change(self, name: str, x: Float[Tensor, "*N in"], y: Float[Tensor, "*N out"]) -> Float[Tensor, "*N out"]:
        return self.adapters[name].change(x, y)

    def parts(self, name: str) -> list[str]:
        return list(self.adapters[name].own.values())

    def drop(self, name: str) -> None:
        for part in self.adapters.pop(name).own.values():
            delattr(self, part)

    def changed(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"] | None]:
        return self.adapters[self.chosen].changed() if self.chosen in self.adapters else self.weight, self.bias

    def extra_repr(self) -> str:
        every = "; ".join(f"{name}: r={one.r}, alpha={one.alpha}" + (", rslora" if one.rslora else "") + (", dora" if one.dora else "") for name, one in self.adapters.items())
        return f"{self.in_features}, {self.out_features}, {every}, answering: {self.chosen}" + (", merged" if self.merged else "")


def row_lengths(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out"]:
    return torch.linalg.vector_norm(weight, dim=1)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Name -> layer, for every Linear of the model that carries LoRA."""
    return wrapped_linears(model, LoRALinear)


def low_ranks(model: nn.Module, name: str) -> dict[str, LowRank]:
    """Where -> low-rank change, for all that belong to the adapter `name`."""
    return {at: layer.adapters[name] for at, layer in lora_layers(model).items() if name in layer.adapters}


def matching(names: list[str], target: str) -> list[str]:
    """The Linears that one target names: a short name, "all" (every Linear of the blocks), a suffix, or an address."""
    if target == "all":
        return [n for n in names if "blocks." in n]
    addresses = expand_range(SHORT.get(target, target))
    return [n for n in names if any(n == a or n.endswith("." + a) or n.startswith(a + ".") for a in addresses)]


def sharing(names: list[str], target: str) -> list[tuple[str, ...]]:
    """The groups of Linears that one target names; those joined by + share an A. Empty if a part of the target names none."""
    parts = [matching(names, part.strip()) for part in target.split("+")]
    return list(zip(*parts, strict=True)) if all(parts) and len({len(part) for part in parts}) == 1 else []


def from_files(model: Model, target: str) -> list[str]:
    """What a module's name in the family's files, or its ending, stands for here: `c_attn` -> `attn.q_proj+attn.k_proj+attn.v_proj`."""
    try:
        table = family_of(model).page.LORA_TARGETS
    except ValueError:                      # an architecture of no family has no files
        return []
    found = [ours for theirs, ours in table.items() if theirs == target or theirs.endswith("." + target)]
    return [re.sub(r"([\w.]*)\{([\w,]+)\}", lambda m: "+".join(m[1] + one for one in m[2].split(",")), ours) for ours in found]


def match_targets(model: Model, targets: str | list[str]) -> list[tuple[str, ...]]:
    """The Linears that `targets` name. Names in one tuple share an A; most tuples hold one name.

    Args:   targets: names joined by commas. q k v o gate up down; "all"; a suffix (`mlp.up_proj`); an address (`blocks.0-3.attn.q_proj`);
            `q+k+v` for Linears side by side that share one A; or a name as in the family's files (`query`, `c_attn`, `c_proj`), as PEFT has them.
    Raises: ValueError for a target without a Linear, with the names of those there are.
    """
    names, found = linear_names(model), []
    seen: set[str] = set()
    for target in [t.strip() for text in ([targets] if isinstance(targets, str) else targets) for t in text.split(",") if t.strip()]:
        groups = sharing(names, target) or [group for one in from_files(model, target) for group in sharing(names, one)]
        if not groups:
            shapes = sorted({".".join(n.split(".")[2:]) if n.startswith("blocks.") else n for n in names})
            raise ValueError(f"the LoRA target {target!r} matches no Linear of this model; its Linears are {', '.join(shapes)} "
                             f"(blocks 0-{len(layer_blocks(names)) - 1}): name some of these, or use the short names {' '.join(SHORT)}, or 'all'")
        for group in groups:
            fresh = tuple(n for n in group if n not in seen)
            seen.update(fresh)
            if fresh:
                found.append(fresh)
    if not found:
        raise ValueError(f"targets={targets!r} is empty; LoRA needs at least one Linear: give for example 'q,v'")
    return found


def layer_blocks(names: list[str]) -> set[str]:
    return {n.split(".")[1] for n in names if n.startswith("blocks.")}


def check_groups(model: nn.Module, groups: list[tuple[str, ...]], name: str) -> None:
    """Every Linear is free for an adapter of this name, and those that are to share an A read inputs of one width."""
    layers = lora_layers(model)
    for group in groups:
        for at in group:
            if at in layers and name in layers[at].adapters:
                raise ValueError(f"{at} already carries LoRA named {name!r}; a Linear has one of a name: give another name, or call remove_adapter(model, {name!r}) first")
        check_free(model, [at for at in group if at not in layers])
        if len({model.get_submodule(at).in_features for at in group}) > 1:
            raise ValueError(f"{'+'.join(group)} joins Linears of different inputs; one A reads one input: "
                             "join Linears that stand side by side, such as q+k+v")


def insert_lora(model: nn.Module, group: tuple[str, ...], name: str, r: int, alpha: int | float, dropout: int | float, rslora: bool = False,
                dora: bool = False) -> list[LowRank]:
    """Give each Linear of one group a low-rank change; they share an A (of zeros: the caller fills it). None is chosen yet."""
    shared: Any = None
    made = []
    for layer in (wrap(model, at, LoRALinear) for at in group):
        layer.adapters[name] = LowRank(layer, name, r, alpha, dropout, rslora, shared, dora)
        shared = layer.adapters[name].A
        made.append(layer.adapters[name])
    return made


def add_lora(model: Model, r: int = 8, alpha: int | float = 16, dropout: int | float = 0.0, targets: str | list[str] = "q,v", rslora: bool = False,
             dora: bool = False, seed: int = 0, name: str = DEFAULT) -> TrainableReport:
    """Insert LoRA into a loaded model, choose it, freeze everything but the new matrices and a task's head, and leave the base's outputs as they were, bit
    for bit. A second call with the same name and other targets adds to it.

    Args:    r: rank, at least 1. alpha: the change is scaled by alpha / r. dropout: probability in [0, 1), on the input of A.
             targets: see `match_targets`. dora: the rows' lengths train on their own. seed: draws A, uniform in +-1/sqrt(in).
             name: to choose it by (`set_adapter`, `use_adapter`); letters, digits, - and _.
    Returns: the report of what trains now.
    Raises:  ValueError for a target that matches no Linear, a Linear that carries this LoRA already, r or dropout out of range, a merged model.
    """
    if r < 1:
        raise ValueError(f"r={r}; a rank is 1 or more: 4 to 64 are usual")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}; it is a probability in [0, 1): give 0.0 to switch it off")
    check_name(name)
    groups = match_targets(model, targets)
    check_groups(model, groups, name)
    check_unmerged(model, "add")
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        A = insert_lora(model, group, name, r, alpha, dropout, rslora, dora)[0].A
        bound = 1 / math.sqrt(A.shape[1])
        A.data.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
    return set_adapter(model, name)


def lora_names(model: nn.Module) -> list[str]:
    """The names of every A, B and magnitude, of all adapters; a shared A goes by the first of its names."""
    return own_names(model, LoRALinear)


@dataclass(frozen=True, repr=False)
class MergeReport:
    """What merging changed; prints as a sentence. The last two are None unless a batch was given."""

    adapter: str
    layers: int
    max_weight_change: float                 # the largest of any weight
    max_logit_change: float | None = None    # largest |merged - unmerged| of any logit of the batch; rounding, unless something is wrong
    label_flips: int | None = None           # rows (or positions) whose best label changed

    def __str__(self) -> str:
        text = f"merged {self.layers} layers of the adapter {self.adapter!r}; weights changed by at most {self.max_weight_change:.3g}"
        if self.max_logit_change is not None:
            text += f"; logits changed by at most {self.max_logit_change:.3g}, {self.label_flips} best labels changed"
        return text

    __repr__ = __str__


@torch.no_grad()
def merge_lora(model: nn.Module, batch: dict[str, Tensor] | None = None) -> MergeReport:
    """Add every change of the chosen adapter to its weight, in fp32, cast once; the model then costs what it cost without LoRA. `unmerge_lora` takes it back.

    Args:    batch: if given, the logits of this batch are compared before and after, in eval mode.
    Raises:  ValueError if the model carries no LoRA, or no LoRA is chosen.
    """
    if not lora_layers(model):
        raise ValueError("merge_lora on a model without LoRA; there is nothing to merge: call add_lora or load_adapter first")
    if not low_ranks(model, name := need_chosen(model, "merge_lora")):
        raise ValueError(f"merge_lora with {name!r} chosen, which is no LoRA; it merges the one that answers: choose a LoRA with set_adapter")
    changed = [one for one in low_ranks(model, name).values() if not one.layer.merged]
    change = max((float((one.changed() - one.layer.weight.float()).abs().max()) for one in changed), default=0.0)
    before = eval_logits(model, batch)
    for layer in lora_layers(model).values():
        layer.merge()
    after = eval_logits(model, batch)
    if before is None or after is None:
        return MergeReport(name, len(changed), change)
    flips = int((before.argmax(-1) != after.argmax(-1)).sum())
    return MergeReport(name, len(changed), change, float((before.float() - after.float()).abs().max()), flips)


def eval_logits(model: nn.Module, batch: dict[str, Tensor] | None) -> Tensor | None:
    """The logits of a batch without dropout; the model's mode is put back."""
    if batch is None:
        return None
    with evaluating(model):
        out = model(**{k: v for k, v in batch.items() if k != "labels"})
    return out.last_hidden_state if out.logits is None else out.logits


def unmerge_lora(model: nn.Module) -> None:
    """Take the changes out of the weights again: the kept tensors come back, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()
