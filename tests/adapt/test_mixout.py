"""Mixout against its formula: the mean, the gradient, what is mixed and what is not."""
import pytest
import torch

import minitransfer as mt
from minitransfer.tasks.base import supervised
from minitransfer.training import train
from minitransfer.training.settings import TrainSettings
from minitransfer.transfer.forgetting import pretrained
from minitransfer.transfer.mixout import mixed, mixout
from tests.unit.tiny import bert, moved

from .test_forgetting import Same, classifier, rows, shaken


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_mean_is_the_weight_itself():
    w, u = torch.randn(7, 11, generator=drawn(1)).double(), torch.randn(7, 11, generator=drawn(2)).double()
    generator, n = drawn(), 20_000
    mean = sum(mixed(w, u, 0.7, generator) for _ in range(n)) / n
    deviation = (w - u).abs() * (0.7 / 0.3 / n) ** 0.5                           # of a mean of n draws of u + (w - u) B / 0.3
    assert ((mean - w).abs() / deviation).max() < 5


def test_a_draw_is_the_formula_of_the_paper():
    """((1 - M) w + M u - p u) / (1 - p), in double precision; exactly u where M is 1; the gradient 1 / (1 - p) where it is 0."""
    w, u, p = torch.randn(13, 5, generator=drawn(1)).requires_grad_(), torch.randn(13, 5, generator=drawn(2)), 0.7
    got = mixed(w, u, p, drawn(3))
    M = torch.rand(13, 5, generator=drawn(3)) < p
    expected = ((~M).double() * w.double() + M.double() * u.double() - p * u.double()) / (1 - p)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=1e-6)
    assert torch.equal(got[M], u[M]) and 0.5 < M.double().mean() < 0.9
    slope = torch.randn(13, 5, generator=drawn(4))
    (got * slope).sum().backward()
    torch.testing.assert_close(w.grad, torch.where(M, 0.0, slope / 0.3))


def test_the_model_is_run_on_the_mixed_weights():
    """By hand: a copy of the model with the mixed weights put in gives the same loss, and gradients that reach w through 1 / (1 - p) where M is 0."""
    model, batch, p = classifier(), rows(5), 0.6
    start, objective = pretrained(model), mixout(p)(model, supervised)
    shaken(model)
    model.blocks[0].attn.q_proj.weight.requires_grad_(False)                     # a frozen tensor, away from its start: stays what it is
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    total, n = objective(model, batch, drawn(8))
    total.backward()
    generator, twin, masks = drawn(8), classifier(), {}
    with torch.no_grad():
        for name, w in twin.named_parameters():
            w.copy_(before[name])
            if name in start and model.get_parameter(name).requires_grad:
                masks[name] = torch.rand(w.shape, generator=generator) < p
                w.copy_(torch.where(masks[name], start[name], start[name] + (before[name] - start[name]) / (1 - p)))
    expected, count = supervised(twin, batch, generator)
    expected.backward()
    assert n == count and total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert "head.classifier.weight" not in masks and "blocks.0.attn.q_proj.weight" not in masks and len(masks) > 20
    for name, w in model.named_parameters():
        assert torch.equal(w, before[name])
        if name in masks:
            torch.testing.assert_close(w.grad, torch.where(masks[name], 0.0, twin.get_parameter(name).grad / (1 - p)), atol=1e-6, rtol=1e-4, msg=name)
    assert model.blocks[0].attn.q_proj.weight.grad is None
    torch.testing.assert_close(model.head.classifier.weight.grad, twin.head.classifier.weight.grad)


def test_close_to_one_every_weight_is_back_at_its_start():
    model, batch = classifier(), rows(5)
    objective, at_start = mixout(1 - 1e-9)(model, supervised), supervised(model, batch, drawn())[0].item()
    with torch.no_grad():
        for name, w in model.named_parameters():
            if not name.startswith(("head.", "pooler.")):
                w += 1.0
    assert objective(model, batch, drawn())[0].item() == at_start != supervised(model, batch, drawn())[0].item()


def test_the_tied_table_is_mixed_once_for_both_its_uses():
    model = moved(mt.Model(bert(dropout=0.0), "masked")).eval()
    objective, table = mixout(0.5)(model, lambda m, b, g: (m.head.tokens[0].weight - m.embed.tokens.weight, 1)), model.embed.tokens.weight
    shaken(model)
    assert objective(model, {}, drawn())[0].abs().max() == 0 and model.embed.tokens.weight is table and model.head.tokens[0].weight is table


def test_zero_is_the_objective_as_it_was_and_evaluation_sees_the_weights():
    model = classifier()
    assert mixout(0.0)(model, supervised) is supervised
    settings = TrainSettings(steps=3, lr=1e-2, precision="fp32", progress=False, eval_every=1)

    def run(p):
        model = classifier()
        batch = Same(rows(5))
        result = train(model, batch, mixout(p)(model, supervised), settings, evaluate=lambda m: {"loss": supervised(m, batch[0], drawn())[0].item()})
        return model, result.metrics["loss"], supervised(model, batch[0], drawn())[0].item()

    (a, measured, alone), (b, *_), (c, *_) = run(0.9), run(0.9), run(0.0)
    assert measured == alone
    assert all(torch.equal(p, b.get_parameter(name)) for name, p in a.named_parameters())       # drawn from (seed, step) alone
    assert any(not torch.equal(p, c.get_parameter(name)) for name, p in a.named_parameters())


def test_refused():
    model = classifier()
    for p in (1, -0.1):
        with pytest.raises(ValueError, match=f"p={p}; it is the probability of a weight to be back at its start"):
            mixout(p)
    model.checkpointing = True
    with pytest.raises(ValueError, match="mixout with checkpointing=True"):
        mixout(0.5)(model, supervised)(model, rows(2), drawn())
