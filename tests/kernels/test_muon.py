"""Muon: the orthogonalised update against the SVD, steps against fp64 by hand and torch.optim.Muon, AdamW for the rest."""
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from minitransfer.ops import AdamW, Muon
from minitransfer.ops.muon import newton_schulz

from .harness import judge

SHAPES = [(13, 29), (29, 13), (13, 29), (7, 7)]
LR, MU, DECAY, STEPS = 0.02, 0.9, 0.1, 5


def tensors(seed, dtype=torch.float32, shapes=SHAPES):
    new = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=new).to(dtype) for shape in shapes]


def by_svd(u):
    """U f(S) V^T, where f is the polynomial, five times, on the singular values alone."""
    left, s, right = torch.linalg.svd(u, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left @ torch.diag_embed(s) @ right


def walk(optimizer, steps=STEPS, **extra):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for n in range(steps):
        for p, g in zip(params, tensors(n + 1, shapes=[p.shape for p in params]), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step(**extra)
    return params


def by_hand(dtype=torch.float64, start=torch.float32):
    """The weights and momenta after the steps, by the formula of the post in fp64 and the SVD."""
    weights = [(w.to(start).to(dtype), torch.zeros_like(w, dtype=dtype)) for w in tensors(0)]
    for n in range(STEPS):
        for i, g in enumerate(tensors(n + 1)):
            (w, m), g = weights[i], g.to(start).to(dtype)
            m = MU * m + (1 - MU) * g
            update = by_svd((1 - MU) * g + MU * m)
            weights[i] = w * (1 - LR * DECAY) - LR * max(1, w.shape[0] / w.shape[1])**0.5 * update, m
    return weights


@pytest.mark.parametrize("shape", [(3, 13, 29), (2, 29, 13), (1, 7, 7)])
def test_newton_schulz(shape):
    u = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(newton_schulz(u, torch.float64), by_svd(u), atol=1e-12)
    s = torch.linalg.svdvals(newton_schulz(u, torch.float64))
    assert 0.3 < s.min() and s.max() < 1.25                                      # published: 0.7 to 1.2, of matrices that are not nearly singular
    assert (newton_schulz(u.float()).double() - by_svd(u)).abs().max() < 0.05    # bfloat16
    assert torch.equal(newton_schulz(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5, dtype=torch.bfloat16))


def test_steps_against_fp64_and_pytorch():
    ours, theirs = [nn.Parameter(t) for t in tensors(0)], [nn.Parameter(t) for t in tensors(0)]
    optimizer, plain = Muon(ours, LR, weight_decay=DECAY, momentum=MU), torch.optim.Muon(theirs, LR, DECAY, MU)
    walk(optimizer)
    walk(plain)
    for p, q, (w, m) in zip(ours, theirs, by_hand(), strict=True):
        judge(p, q, w, "weight")
        judge(optimizer.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"], m, "momentum")
    exact = [nn.Parameter(t.double()) for t in tensors(0)]
    walk(Muon(exact, LR, weight_decay=DECAY, momentum=MU, dtype=torch.float64))
    assert all(torch.allclose(p, w, rtol=0, atol=1e-12) for p, (w, _) in zip(exact, by_hand(), strict=True))


def test_a_parameter_of_16_bits_has_a_master():
    params = [nn.Parameter(t) for t in tensors(0, torch.bfloat16)]
    optimizer = Muon(params, LR, weight_decay=DECAY, momentum=MU, dtype=torch.float32)
    walk(optimizer)
    for p, (w, _) in zip(params, by_hand(start=torch.bfloat16), strict=True):
        assert (optimizer.state[p]["master"] - w).abs().max() < 1e-5 and torch.equal(p, optimizer.state[p]["master"].bfloat16())
    other = Muon(params, LR)
    other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(t, optimizer.state[p][name]) and t.dtype == torch.float32 for p in params for name, t in other.state[p].items())


def test_what_is_no_matrix_is_adamws():
    shapes = [(5,), (2, 3, 4), (6, 3)]
    one, other = ([nn.Parameter(t) for t in tensors(0, shapes=shapes)] for _ in range(2))
    matrices = [nn.Parameter(t) for t in tensors(0)]
    muon = Muon([{"params": one, "weight_decay": 0.3}, {"params": matrices, "muon": True, "lr": LR}], lr=0.01)
    walk(muon)
    walk(AdamW(other, lr=0.01, weight_decay=0.3))
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))
    assert {name for p in matrices for name in muon.state[p]} == {"momentum_buffer"} and not torch.equal(matrices[0], tensors(0)[0])
    with pytest.raises(ValueError, match=r"a parameter of shape \(5,\) in a group of Muon; it steps matrices"):
        Muon([{"params": one, "muon": True}])


def test_scales_and_found_inf():
    plain, scaled = ([nn.Parameter(t) for t in tensors(0)] for _ in range(2))
    walk(Muon(plain, LR), 1)
    optimizer = Muon(scaled, LR)
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(1), torch.full((1,), 4.0)
    walk(optimizer, 1, factor=torch.tensor(4.0))
    assert all(torch.equal(p, q) for p, q in zip(plain, scaled, strict=True))
    before = [t.clone() for p in scaled for t in (p.detach(), optimizer.state[p]["momentum_buffer"])]
    optimizer.found_inf = torch.ones(1)
    walk(optimizer, 1, factor=torch.tensor(float("inf")))
    assert all(torch.equal(a, b) for a, b in zip(before, [t for p in scaled for t in (p, optimizer.state[p]["momentum_buffer"])], strict=True))


class NoWait(TorchDispatchMode):
    """Fails where the host would have to wait for a number."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits"
        return func(*args, **kwargs or {})


def test_the_host_does_not_wait(emulator):
    matrices, others = [nn.Parameter(t) for t in tensors(0)], [nn.Parameter(torch.randn(5))]
    rates = torch.tensor(0.02), torch.tensor(0.01)
    optimizer = Muon([{"params": matrices, "muon": True, "lr": rates[0]}, {"params": others, "lr": rates[1]}])
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(1), torch.ones(1)
    walk(optimizer, 1)
    with NoWait():
        walk(optimizer, 2, factor=torch.tensor(0.5))
        for rate in rates:
            rate.zero_()
        before = [p.detach().clone() for p in (*matrices, *others)]
        walk(optimizer, 1)
    assert all(torch.equal(p, q) for p, q in zip((*matrices, *others), before, strict=True))
    with pytest.raises(AssertionError, match="the host waits"), NoWait():
        rates[0].item()
