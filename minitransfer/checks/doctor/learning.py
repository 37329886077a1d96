"""A step of training on the copy: what is hidden, whether micro-batches add up, what moves and what receives a gradient."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.heads import IGNORE, NEGATIVES
from ...nn.model import Model
from ...objectives import Objective
from ...objectives.base import INPUTS, ask_head, tokens_of
from ...training.optim import check_groups, gradient_norm, make_optimizer, param_groups, scale_and_clip, set_lr
from ...training.seeds import seed_batch
from ...training.settings import TrainSettings
from ...transfer.peft_files import carried
from .finding import Finding, Tried
from .patient import Inputs, Patient
from .reading import BAR

DRAWS = 50_000      # tokens whose masks are drawn
SIGMAS = 6          # standard deviations that a drawn share may be off
STEPS = 2           # a second one, since a matrix in front of zeros receives its first gradient there

Ask = Callable[[Inputs], tuple[Tensor, int | Tensor]]


def some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def masks(p: Patient) -> Iterator[Finding]:
    """Shares of an objective that hides tokens, against binomial bounds. Source: Devlin et al. 2019, appendix A.1."""
    objective: Any = p.learns
    if p.batch is None or not hasattr(objective, "draw"):
        return
    once = tokens_of(p.batch) & ~torch.isin(p.batch["input_ids"], torch.tensor(sorted(p.tok.special_ids), device=p.model.device))
    times = -(-DRAWS // max(1, int(once.sum())))
    ids, keep, ordinary = (t.repeat(times, 1) for t in (p.batch["input_ids"], tokens_of(p.batch), once))
    inputs, labels = objective.draw(ids, keep, torch.Generator(p.model.device).manual_seed(p.seed))
    chosen = labels != IGNORE
    n, hidden = int(ordinary.sum()), int(chosen.sum())
    say = Tried("mask statistics", f"what is hidden of {n:,} tokens")
    if not n:
        yield say.wrong("every token of the texts is a special one, and these are never hidden", "use the tokenizer that the model was made with")
        return
    faults = [f"{int(where.sum())} {what}" for what, where in (
        ("special tokens or padding are hidden", chosen & ~ordinary), ("labels hold another id than the text", chosen & (labels != ids)),
        ("tokens that are not asked for were changed", ~chosen & (inputs != ids))) if bool(where.any())]
    same = 0.1 + 0.1 / p.tok.vocab_size
    for what, found, of, wanted in (("of the tokens are hidden", hidden, n, getattr(objective, "probability", None)),
                                    ("of these became the mask", int((chosen & (inputs == p.tok.mask_id)).sum()), hidden, 0.8),
                                    ("of these stayed as they are", int((chosen & (inputs == ids)).sum()), hidden, same)):
        each_word = 4 if getattr(objective, "inside", None) is not None else 1                  # one draw decides for the pieces of a word
        if wanted is not None and abs(found / max(of, 1) - wanted) > SIGMAS * math.sqrt(wanted * (1 - wanted) * each_word / max(of, 1)):
            faults.append(f"{found / max(of, 1):.1%} {what}, {wanted:.1%} are meant to")
    yield (say.wrong("; ".join(faults), "mend the objective's draw: of all ordinary tokens the share, of these 80 % mask, 10 % random, 10 % as they are")
           if faults else say.ok(f"{hidden / n:.1%} are hidden, none of them special or padding"))


def part_of(batch: Inputs, rows: list[int]) -> Inputs:
    """Some of the texts (of pairs: both texts), without the columns that hold padding only."""
    n, asked = len(batch["input_ids"]), batch.get("labels")
    twice = asked is not None and 2 * len(asked) == n
    some = {name: t[[*rows, *(row + n // 2 for row in rows)] if twice and len(t) == n else rows] for name, t in batch.items()}
    width = int(tokens_of(some).any(0).nonzero().max()) + 1
    wide = {name for name in some if name in INPUTS or (asked is not None and name == "labels" and asked.shape == batch["input_ids"].shape)}
    return {name: t[:, :width] if name in wide else t for name, t in some.items()}


def fixed(p: Patient, batch: Inputs) -> tuple[Inputs, Ask] | None:
    """The batch and the question with nothing random left in them; None if that cannot be had."""
    objective: Any = p.learns
    if hasattr(objective, "draw"):
        ids, labels = objective.draw(batch["input_ids"], tokens_of(batch), torch.Generator(p.model.device).manual_seed(p.seed))
        return batch | {"input_ids": ids, "labels": labels}, lambda part: ask_head(p.model, part, part["input_ids"], part["labels"])

    def ask(part: Inputs, seed: int = 0) -> tuple[Tensor, int | Tensor]:
        return objective(p.model, part, torch.Generator(p.model.device).manual_seed(seed))
    with torch.no_grad():
        return (batch, ask) if torch.equal(ask(batch)[0], ask(batch, 1)[0]) else None


def summed(model: Model, ask: Ask, parts: Sequence[Inputs]) -> tuple[float, int, list[Tensor]]:
    """Loss, targets and gradient over micro-batches."""
    model.zero_grad(set_to_none=True)
    losses, counts = zip(*(ask(part) for part in parts), strict=True)
    total = torch.stack(losses).sum()
    if total.requires_grad:
        total.backward()
    return float(total), int(sum(counts)), [q.grad for q in model.parameters() if q.grad is not None]


def accumulation(p: Patient) -> Iterator[Finding]:
    """A step over micro-batches is the step over all of their rows at once."""
    batch = p.batch
    if batch is None or len(batch["input_ids"]) < 3 or (found := fixed(p, batch)) is None:
        return
    (batch, ask), rows = found, list(range(len(batch.get("labels", batch["input_ids"]))))
    say = Tried("accumulation", f"the gradient of {len(rows)} rows at once, and of {len(rows) // 3} and {len(rows) - len(rows) // 3} of them one after the other")
    if getattr(p.model.head, "problem", None) == NEGATIVES:
        yield say.note("every text is learned against the others of its micro-batch, so that micro-batches are not one larger batch", "raise batch_size and not micro_batches")
        return
    cut = len(rows) // 3
    whole, n, at_once = summed(p.model, ask, [part_of(batch, rows)])
    loss, counted, after = summed(p.model, ask, [part_of(batch, rows[:cut]), part_of(batch, rows[cut:])])
    off = nn.utils.get_total_norm([a - b for a, b in zip(after, at_once, strict=True)]) / nn.utils.get_total_norm(at_once).clamp(min=1e-12)
    distance = max(abs(loss - whole) / max(1.0, abs(whole)), float(off))
    p.model.zero_grad(set_to_none=True)
    yield (say.wrong(f"loss {whole:.4f} of {n} targets at once, {loss:.4f} of {counted} in parts; gradients {distance:.1e} apart, relative",
                     "an objective gives the sum of its losses and the number of targets, never a mean: the loop divides once by the targets of the whole step")
           if distance > BAR or n != counted else say.ok(f"micro-batches add up ({distance:.0e} apart)"))


def optimizer(p: Patient) -> Iterator[Finding]:
    """The groups that the user trains with."""
    if p.groups is None:
        return
    say, own = Tried("optimizer", f"{sum(len(group['params']) for group in p.groups)} tensors of {len(p.groups)} groups against those of the model"), dict(p.own.named_parameters())
    given = {id(q) for group in p.groups for q in group["params"]}
    frozen = [name for name, q in own.items() if id(q) in given and not q.requires_grad]
    strays: list[str] = []
    try:
        check_groups(p.own, [{"name": f"group {i}", **group} for i, group in enumerate(p.groups)])
    except ValueError as e:
        strays = [line.strip() for line in str(e).splitlines()[1:]]
    if frozen:
        yield say.wrong(f"{len(frozen)} frozen tensors are in the optimizer: {some(frozen)}", "leave them out: a gradient that was left behind would still move them")
    if strays:
        yield say.wrong(some(strays), "each tensor that trains belongs in exactly one group: make the optimizer after heads and adapters are in place, and anew after a change")
    if not frozen and not strays:
        yield say.ok("every tensor that trains is in one group")


def groups_of(p: Patient, settings: TrainSettings) -> list[dict]:
    """The user's groups with the copy's parameters, or those that the loop would make."""
    if p.groups is None:
        return param_groups(p.model, settings.weight_decay, p.strategy.rate(p.model) if p.strategy is not None else lambda name: 1.0)
    names, twins, seen, made = {id(q): name for name, q in p.own.named_parameters()}, dict(p.model.named_parameters()), set[str](), []
    for group in p.groups:
        mine = [name for q in group["params"] if (name := names.get(id(q))) is not None and name not in seen]
        seen |= set(mine)
        made.append({"params": [twins[name] for name in mine], "lr_factor": group.get("lr", settings.lr) / settings.lr, "weight_decay": group.get("weight_decay", 0.0)})
    for name, q in p.own.named_parameters():
        if not q.requires_grad and q.grad is not None:
            twins[name].grad = q.grad.clone()
    return [group for group in made if group["params"]]


def real_steps(p: Patient, batch: Inputs, objective: Objective) -> set[str]:
    """Two steps as the loop takes them. Returns: the names of what received a gradient."""
    settings = TrainSettings.for_tuning({} if p.strategy is None else p.strategy.settings, {"steps": STEPS, "seed": p.seed})
    groups, parameters, got = groups_of(p, settings), dict(p.model.named_parameters()), set[str]()
    moved = [q for group in groups for q in group["params"]]
    stepper = make_optimizer(groups, settings)
    set_lr(stepper, settings.lr)
    p.model.train()
    for k in range(STEPS):
        loss, n = objective(p.model, batch, seed_batch(p.seed, k, p.model.device))
        if not math.isfinite(float(loss)):
            raise ValueError(f"the loss of step {k + 1} is {float(loss):g}: look at the labels, and at the weights")
        loss.backward()
        got |= {name for name, q in parameters.items() if q.requires_grad and q.grad is not None and bool(q.grad.any())}
        targets = max(int(n), 1)
        scale_and_clip(moved, targets, float(gradient_norm(moved)) / targets, settings.max_grad_norm)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
    p.model.eval()
    return got


def learning(p: Patient) -> Iterator[Finding]:
    """Frozen means frozen, and what trains is reached by the loss."""
    batch, model, objective = p.batch, p.model, p.learns
    if batch is None or objective is None:
        return
    if p.strategy is not None:
        p.strategy.apply(model, p.seed)
        objective = p.strategy.objective(model, objective)
    trains = [name for name, q in model.named_parameters() if q.requires_grad]
    if not trains:
        yield Tried("gradients", "which parameters train").note("none does", "call unfreeze(model), or say how it is to train, strategy=")
        return
    before = {name: q.detach().clone() for name, q in [*model.named_parameters(), *model.named_buffers()] if name not in set(trains)}
    adapters = {name for kind in carried(model).values() for name in kind.names(model)}
    got = real_steps(p, batch, objective)
    now = dict([*model.named_parameters(), *model.named_buffers()])
    yield from frozen(p, [name for name, value in before.items() if not torch.equal(value, now[name])], len(before), len(trains))
    yield from gradients(trains, got, adapters)


def frozen(p: Patient, moved: list[str], n: int, trains: int) -> Iterator[Finding]:
    say = Tried("frozen", f"{STEPS} real steps on a copy, and every bit of what does not train before and after")
    said = [name or "the model" for name, module in p.own.named_modules()
            if vars(module).get("requires_grad", True) is False and any(q.requires_grad for q in module.parameters())]
    if moved:
        yield say.wrong(f"{len(moved)} frozen tensors moved: {some(moved)}",
                        "take them out of the optimizer and clear their gradients: freeze(model, ...) before the groups are made")
    if said:
        yield say.wrong(f"{some(said)}: requires_grad=False was set on a module, which changes nothing, and its parameters train",
                        "call freeze(model, address), or module.requires_grad_(False)")
    if not moved and not said:
        yield say.ok(f"{n} frozen tensors kept every bit" if n else f"nothing is frozen: all {trains} tensors train")


def gradients(trains: list[str], got: set[str], adapters: set[str]) -> Iterator[Finding]:
    say = Tried("gradients", f"{STEPS} real steps on a copy, and which of the tensors that train received a gradient other than 0")
    missing = [name for name in trains if name not in got]
    idle = [name for name in sorted(adapters) if name not in got]
    if idle:
        yield say.wrong(f"{len(idle)} of {len(adapters)} tensors of the adapter learned nothing: {some(idle)}",
                        "let it train and answer: set_adapter(model, name), no freeze over it, no merge, no no_grad around the body")
    elif "head" in {name.split(".")[0] for name in missing} and not any(name.startswith("head.") for name in got):
        yield say.wrong("no tensor of the head received a gradient", "let the loss come from the head: look at the objective, and at the labels (all ignored?)")
    elif missing:
        yield say.note(f"{len(missing)} of {len(trains)} tensors that train received none: {some(missing)}", "freeze them, if this objective does not reach them")
    else:
        yield say.ok(f"all {len(trains)} tensors that train received one")
