"""The affine map through oneDNN against fp64, PyTorch's product, and itself differentiated twice."""
import pytest
import torch
from torch.nn.functional import linear as torch_linear

from minitransfer.ops.linear import Linear, OneDNNLinear, linear, suits_onednn
from minitransfer.ops.packed_linear import available


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(7, 11), (3, 5, 11), (1, 11), (1, 1, 11)], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_fp64(shape, biased):
    x, w, b = numbers(*shape, seed=1), numbers(13, 11, seed=2), numbers(13, seed=3) if biased else None
    given = [t for t in (x, w, b) if t is not None]
    wide = [t.detach().double().requires_grad_() for t in given]
    dy = numbers(*shape[:-1], 13, seed=4).detach()
    ours, theirs = linear(*given), torch_linear(*wide)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    for name, a, e in zip("xwb", torch.autograd.grad(ours, given, dy), torch.autograd.grad(theirs, wide, dy.double()), strict=False):
        torch.testing.assert_close(a.double(), e, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"gradient of {name}: {m}")


def test_onednn_is_used_where_it_pays_and_nowhere_else():
    x, w = numbers(7, 11, seed=1), numbers(13, 11, seed=2)
    assert isinstance(linear(x, w).grad_fn, OneDNNLinear._backward_cls) == suits_onednn(x, w) == available()
    assert not suits_onednn(x[:1], w) and not suits_onednn(x.double(), w.double()) and not suits_onednn(x.bfloat16(), w.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16


def test_second_derivatives():
    """The Hessian of sum(y^3) against PyTorch's own product."""
    x, w, dx = numbers(5, 7, seed=1), numbers(3, 7, seed=2), numbers(5, 7, seed=3).detach()
    found = []
    for product in (linear, torch_linear):
        first, = torch.autograd.grad((product(x, w) ** 3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((first * dx).sum(), (x, w)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_frozen_weight_gets_no_gradient_and_the_module_keeps_its_names():
    layer = Linear(11, 13)
    assert set(layer.state_dict()) == {"weight", "bias"}
    layer.requires_grad_(False)
    x = numbers(7, 11, seed=1)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(7, 11), atol=1e-5, rtol=1e-5)
    assert layer.weight.grad is None
