"""07, pretraining."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import samples
from ..nn.heads import IGNORE
from ..nn.model import Model
from ..objectives import Causal, Masked
from ..text import PackedBatches, Tokenizer, tokenize_corpus
from ..training import TrainSettings, train
from ..training.schedule import lr_at
from .exercise import demand, exercise, gap, in_engine
from .models import moved, padded


def losses_of_a_run() -> list[float]:
    """Three steps of masked pretraining on the bundled text, with their losses."""
    tok, model = Tokenizer.from_pretrained("mini-bert"), Model.from_pretrained("mini-bert")
    batches = PackedBatches(tokenize_corpus(tok, samples.path("general.txt")), tok, 32, 4)
    return [record["loss"] for record in train(model, batches, Masked(tok), TrainSettings(steps=3, lr=1e-4, log_every=1, progress=False)).history if "loss" in record]


@exercise("07", "draw(ids, ordinary, probability, mask_id, others, generator) -> inputs and labels")
def draw(answer: Callable) -> str:
    mask_id, others, probability = 4, torch.arange(10, 1000), 0.15
    ids = torch.randint(10, 1000, (500, 401))
    ordinary = torch.rand(ids.shape) > 0.1
    given = ids.clone()
    inputs, labels = answer(ids, ordinary, probability, mask_id, others, torch.Generator().manual_seed(71))        # not the seed of the ids
    demand(torch.equal(ids, given), "the ids that were given have changed; make new tensors")
    chosen = labels != IGNORE
    demand(not (chosen & ~ordinary).any(), "positions were chosen that are not ordinary")
    demand(torch.equal(labels[chosen], ids[chosen]), "a label is not the true id")
    demand(torch.equal(inputs[~chosen], ids[~chosen]), "ids changed where nothing is asked")
    n, k = int(ordinary.sum()), int(chosen.sum())
    masked, same = (inputs == mask_id)[chosen], (inputs == ids)[chosen]
    odds = 1 / len(others)                                                       # another token may be the same one by chance
    for what, found, share, of in (("chosen", k, probability, n), ("masked", int(masked.sum()), 0.8, k), ("left as they are", int(same.sum()), 0.1 + 0.1 * odds, k)):
        demand(abs(found - share * of) < 5 * math.sqrt(share * (1 - share) * of), f"{found / max(of, 1):.3f} are {what}, it should be {share:.3f}")
    replaced = inputs[chosen][~masked & ~same]
    demand(bool(torch.isin(replaced, others).all()) and len(replaced.unique()) > 0.9 * len(others), "what replaces a token is not drawn from all the others")
    again, other = (answer(ids, ordinary, probability, mask_id, others, torch.Generator().manual_seed(seed))[0] for seed in (71, 72))
    demand(torch.equal(again, inputs), "the same generator gives another draw; draw with it only")
    demand(not torch.equal(other, inputs), "another generator gives the same draw")

    def as_draw(self: Masked, input_ids: Tensor, keep: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return answer(input_ids, keep & ~self.special[input_ids], self.probability, self.mask_id, self.ordinary, generator)
    own = losses_of_a_run()
    with in_engine("objectives.masked:Masked.draw", as_draw):
        losses = losses_of_a_run()
    demand(all(abs(a - b) < 1.0 for a, b in zip(own, losses, strict=True)), f"three steps of pretraining have the losses {losses}, with the engine's draw {own}")
    return f"{k:,} draws, and three steps of pretraining"


@exercise("07", "causal_loss(logits, ids, keep) -> the sum of the losses, and the number of targets")
def causal_loss(answer: Callable) -> str:
    model = moved("mini-gpt")
    batch = padded(model)
    worst = 0.0
    for side in ("right", "left", "nowhere"):
        one = batch if side == "right" else {name: t.flip(1) for name, t in batch.items()} if side == "left" else {"input_ids": batch["input_ids"]}
        truth, n = Causal()(model, one, torch.Generator())
        keep = one.get("attention_mask", torch.ones_like(one["input_ids"], dtype=torch.bool))
        total, count = answer(model(**one).logits, one["input_ids"], keep)
        demand(int(count) == int(n), f"{int(count)} targets with padding on the {side}, there are {int(n)}")
        worst = max(worst, gap(f"the sum with padding on the {side}", total, truth))
    return f"as the engine's, with padding on either side, within {worst:.0e}"


@exercise("07", "perplexity(batches) -> of all batches together, from (sum of losses, number of targets) each")
def perplexity(answer: Callable) -> str:
    for batches in ([(12.0, 4), (3.0, 1)], [(70.0, 10), (1.0, 10), (0.5, 1)], [(0.0, 0), (5.0, 2)]):
        truth = math.exp(sum(s for s, _ in batches) / sum(n for _, n in batches))
        found = float(answer(batches))
        demand(math.isclose(found, truth, rel_tol=1e-6), f"{found:.3f} for {batches}, it is {truth:.3f}")
    return "three lists, one with a batch that has no target"


@exercise("07", "learning_rate(step, total, lr, warmup) -> the rate of a step")
def learning_rate(answer: Callable) -> str:
    for total, lr, warmup in ((20, 1e-3, 4), (7, 0.5, 1), (5, 2.0, 5)):
        settings = TrainSettings(steps=total, lr=lr, warmup=warmup, schedule="linear")
        for step in range(total):
            found, truth = float(answer(step, total, lr, warmup)), lr_at(step, float(total), settings)
            demand(math.isclose(found, truth, rel_tol=1e-9, abs_tol=1e-15), f"{found:.6g} at step {step} of {total} with {warmup} of warm-up, it is {truth:.6g}")
    own = losses_of_a_run()
    with in_engine("training.schedule:lr_at", lambda step, total, settings: answer(step, int(total), float(settings.lr), 1)):
        found_losses = losses_of_a_run()
    demand(own == found_losses, f"three steps of pretraining have the losses {found_losses}, with the engine's schedule {own}")
    return "three schedules, and the same losses in a run, bit for bit"
