"""The fused output matrix and loss: value and every gradient against plain PyTorch, in fp64, in bf16, and where a chunk does not fit."""
import pytest
import torch

from minitransfer.ops.linear_cross_entropy import cost, linear_cross_entropy, reference
from tests.unit.test_tiled_attention import Largest

N, V, D = 17, 23, 7


def inputs(dtype=torch.float64, bias=True, scale=1.0, N=N):
    x, weight = (torch.randn(n, D, dtype=dtype) * scale for n in (N, V))
    leaves = [x.requires_grad_(), weight.requires_grad_(), torch.randn(V, dtype=dtype).requires_grad_() if bias else None]
    return *leaves, torch.randint(V, (N,))


def twin(tensors, dtype=None):
    return [None if t is None else t if t.dtype == torch.long else t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("chunk", [1, 5, 17, 1024])
def test_value_and_gradients(chunk, bias):
    ours = inputs(bias=bias)
    theirs = twin(ours)
    loss, truth = linear_cross_entropy(*ours, chunk), reference(*theirs)
    assert (loss - truth).abs() < 1e-12 * truth
    (loss * 0.37).backward()                                     # a scaled incoming gradient, as after a division by the count
    (truth * 0.37).backward()
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert mine is None or (mine.grad - other.grad).abs().max() < 1e-12


def test_gradients_by_central_differences():
    """(f(w + h) - f(w - h)) / 2h for every third number of every input. (gradcheck calls backward twice, which this loss refuses.)"""
    x, weight, bias, targets = inputs(N=5)
    linear_cross_entropy(x, weight, bias, targets, 2).backward()
    with torch.no_grad():
        for leaf in (x, weight, bias):
            for i in range(0, leaf.numel(), 3):
                was, ends = leaf.view(-1)[i].item(), []
                for h in (1e-5, -1e-5):
                    leaf.view(-1)[i] = was + h
                    ends.append(linear_cross_entropy(x, weight, bias, targets, 2))
                leaf.view(-1)[i] = was
                assert abs((ends[0] - ends[1]) / 2e-5 - leaf.grad.view(-1)[i]) < 1e-8


@pytest.mark.parametrize("trains", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)], ids=str)
def test_only_wanted_gradients(trains):
    ours = inputs()
    theirs = twin(ours)
    for group in (ours, theirs):
        for tensor, wanted in zip(group[:3], trains, strict=True):
            tensor.requires_grad_(wanted)
    linear_cross_entropy(*ours, 4).backward()
    reference(*theirs).backward()
    for mine, other, wanted in zip(ours[:3], theirs[:3], trains, strict=True):
        assert (mine.grad is not None) == wanted
        assert not wanted or (mine.grad - other.grad).abs().max() < 1e-6


def test_nothing_is_computed_for_gradients_without_grad():
    """Under no_grad the only product is the logits'; needs_input_grad alone does not say so."""
    class Products(Largest):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.mkldnn._linear_pointwise)
            return super().__torch_dispatch__(func, types, args, kwargs)

    ours = inputs(torch.float32)
    with torch.no_grad(), Products() as seen:
        value = linear_cross_entropy(*ours, 1024)
    assert seen.count == 1 and not value.requires_grad
    with Products() as seen:
        assert torch.equal(linear_cross_entropy(*ours, 1024), value)
    assert seen.count == 3


def test_all_logits_are_never_held():
    V, D, N = 37, 3, 400
    x, weight = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    with Largest() as seen:
        linear_cross_entropy(x, weight, None, torch.randint(V, (N,)), 32).backward()
    assert seen.numbers == N * D                                 # x itself; a chunk of logits has 1,184, all of them 14,800


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16], ids=["autocast", "pure"])
def test_bf16_is_at_most_twice_plain_torch_from_the_truth(weights_dtype):
    """Judged against fp64 on the same rounded inputs, for the value and each gradient; 300 rows in chunks of 64."""
    ours = inputs(torch.float32, N=300)
    ours = [*twin(ours[:3], weights_dtype), ours[3]]
    plain, truth = twin(ours), twin(ours, torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights_dtype == torch.float32):
        losses = linear_cross_entropy(*ours, 64), reference(*plain)
    losses += (reference(*truth),)
    for loss in losses:
        (loss / 300).backward()
    assert losses[0].dtype == torch.float32
    assert (losses[0] - losses[2]).abs() <= 2 * (losses[1] - losses[2]).abs() + 1e-6 * losses[2]
    for mine, other, true in zip(ours[:3], plain[:3], truth[:3], strict=True):
        assert mine.grad.dtype == mine.dtype
        assert (mine.grad - true.grad).abs().mean() <= 2 * (other.grad - true.grad).abs().mean()


def test_the_incoming_gradient_keeps_its_digits():
    """1/317 rounded to bf16 first would scale every gradient of x by the same wrong 0.1 %."""
    x, weight, bias, targets = inputs(torch.float32, N=300)
    leaves = [x.detach().bfloat16().requires_grad_(), weight, bias]
    torch.autograd.backward(linear_cross_entropy(*leaves, targets))
    whole = leaves[0].grad.double()
    leaves[0].grad = None
    torch.autograd.backward(linear_cross_entropy(*leaves, targets), torch.tensor(1 / 317))
    ratio = (leaves[0].grad.double() * 317 / whole)[whole != 0]
    assert abs(ratio.mean() - 1) < 2e-4


def test_a_large_logit_does_not_overflow():
    x, weight, bias, targets = inputs(torch.float32, scale=300.0)
    loss = linear_cross_entropy(x, weight, bias, targets, 4)
    loss.backward()
    truth = reference(*twin((x, weight, bias, targets), torch.float64))
    assert torch.isfinite(x.grad).all() and (loss - truth).abs() < 1e-5 * truth


def test_no_rows():
    x, weight, bias, targets = inputs(N=0)
    loss = linear_cross_entropy(x, weight, bias, targets)
    loss.backward()
    assert loss.item() == 0.0 and weight.grad.abs().sum() == 0 and x.grad.shape == (0, D)


def test_a_second_backward_is_an_error():
    x, weight, bias, targets = inputs()
    loss = linear_cross_entropy(x, weight, bias, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"already used in backward\(\): its gradients were handed on, run forward again"):
        loss.backward()


def test_no_second_derivatives_rather_than_wrong_ones():
    x, weight, bias, targets = inputs()
    (dx,) = torch.autograd.grad(linear_cross_entropy(x, weight, bias, targets).square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_refused():
    with pytest.raises(ValueError, match="chunk=0; a chunk holds at least one row: give 1 or more"):
        linear_cross_entropy(*inputs(), 0)
    x, weight, bias, targets = inputs()
    targets[2] = len(weight)
    with pytest.raises(ValueError, match=f"a target of {len(weight)} with {len(weight)} rows in the output matrix; .*: give numbers below {len(weight)}, or -100"):
        linear_cross_entropy(x, weight, bias, targets)


def test_cost():
    """Three products of N x V x D, two operations each; logits of one chunk instead of all."""
    assert cost(5, 7, 11, 2) == {"flop": 3 * 2 * 5 * 7 * 11, "bytes_logits": 2 * 7 * 4, "bytes_logits_reference": 5 * 7 * 4}
