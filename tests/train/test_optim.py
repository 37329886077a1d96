"""Parameter groups are complete, Adam is the one of the paper, gradients are scaled and clipped once."""
import pytest
import torch

from minitransfer.training import TrainSettings, param_groups
from minitransfer.training.optim import check_groups, gradient_norm, make_optimizer, muon_groups, scale_and_clip, set_lr

from ..kernels.test_muon import by_svd
from .small import bert, gpt


@pytest.mark.parametrize("make", [bert, gpt])
def test_matrices_decay_and_vectors_do_not_and_nothing_is_left_out(make):
    model = make()
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in param_groups(model, 0.1) for p in group["params"]}
    assert decays == {name: 0.0 if "norm" in name or name.endswith("bias") else 0.1 for name in names.values()}


def test_frozen_parameters_are_in_no_group_and_factors_make_groups():
    model = bert()
    model.embed.requires_grad_(False)
    groups = param_groups(model, 0.1, lambda name: 0.5 if name.startswith("blocks.0") else 1.0)
    held = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    assert [held.get(id(p)) for p in model.embed.parameters()] == [None] * len(list(model.embed.parameters()))
    assert all(held[id(p)] == (0.5 if name.startswith("blocks.0") else 1.0) for name, p in model.named_parameters() if id(p) in held)
    assert len(groups) == 4                                                      # two factors, with and without decay


def test_strays_are_named():
    model = bert()
    groups = param_groups(model, 0.1)
    lost = groups[0]["params"].pop(0)
    with pytest.raises(ValueError, match=r"in no group: embed.tokens.weight"):
        check_groups(model, groups)
    groups[0]["params"] += [lost, lost, torch.nn.Parameter(torch.zeros(3, 7))]
    with pytest.raises(ValueError, match=r"not the model's: a parameter of shape \(3, 7\)") as error:
        check_groups(model, groups)
    assert "in 2 groups: embed.tokens.weight" in str(error.value)
    with pytest.raises(ValueError, match="nothing is trainable"):
        param_groups(model.requires_grad_(False), 0.1)


def test_adam_is_the_paper_s_with_bias_correction_and_decoupled_decay():
    """By hand in double precision: without the correction the first step would be (1 - b1) / sqrt(1 - b2) of it."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    chosen = TrainSettings(steps=1, lr=0.01, beta1=0.8, beta2=0.95, eps=1e-6)
    optimizer = make_optimizer([{"name": "a", "params": [p], "lr_factor": 0.5, "weight_decay": 0.1}], chosen)
    set_lr(optimizer, 0.01)
    x, m, v = p.detach().clone(), torch.zeros(5, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    for t in range(1, 4):
        g = torch.randn(5, 3, dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        x = x - 0.005 * 0.1 * x - 0.005 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-6)
        torch.testing.assert_close(p.detach(), x, atol=1e-12, rtol=1e-10)


def test_muon_moves_the_matrices_of_the_blocks_as_far_as_adamw_would_and_adamw_the_rest():
    """One step by hand in double precision, and PyTorch's own Muon."""
    model, lr, decay = bert(), 0.01, 0.1
    groups = param_groups(model, decay, lambda name: 0.5 if name.startswith("blocks.0") else 1.0)
    optimizer = make_optimizer(muon_groups(model, groups), TrainSettings(steps=1, optimizer="muon"))
    set_lr(optimizer, lr)
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    twins = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    for p, twin in zip(model.parameters(), twins.values(), strict=True):
        p.grad = twin.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if "momentum_buffer" in optimizer.state[p]}
    assert moved == {name for name in before if name.startswith("blocks") and name.endswith("proj.weight")} and len(moved) == 18
    for name, p in model.named_parameters():
        rate = lr * (0.5 if name.startswith("blocks.0") else 1.0)
        if name in moved:
            step = 0.2 * max(p.shape)**0.5 * by_svd(twins[name].grad.double())
            torch.testing.assert_close(p.detach().double(), before[name] * (1 - rate * decay) - rate * step, rtol=0, atol=1e-6)
            torch.optim.Muon([twins[name]], rate, decay, adjust_lr_fn="match_rms_adamw").step()
            torch.testing.assert_close(p, twins[name], rtol=0, atol=rate * 0.05)                # theirs is in bfloat16
        else:
            torch.optim.AdamW([twins[name]], rate, weight_decay=decay if p.dim() > 1 else 0.0, fused=True).step()
            assert torch.equal(p, twins[name]), name


@pytest.mark.parametrize("max_norm", [0.3, 1e6, None])
def test_scaling_and_clipping_in_one_pass_is_dividing_and_then_clipping(max_norm):
    torch.manual_seed(0)
    ours, theirs = [[torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in (5, 7, 3)] for _ in range(2)]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(a.shape, dtype=torch.float64)
        b.grad = a.grad / 11
    norm = gradient_norm(ours) / 11
    scale_and_clip(ours, 11, float(norm), max_norm)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, max_norm or float("inf"))
    torch.testing.assert_close(norm, wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)


def test_parameters_are_trained_in_float32():
    with pytest.raises(ValueError, match=r"in bfloat16, where small steps are lost \(load the model with dtype=torch.float32.*: embed.tokens.weight"):
        param_groups(gpt().to(torch.bfloat16), 0.1)
    frozen = gpt().to(torch.bfloat16).requires_grad_(False)                      # a frozen body may be
    frozen.norm.float().requires_grad_(True)
    assert len(param_groups(frozen, 0.1)) == 1
