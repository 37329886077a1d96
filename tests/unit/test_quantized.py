"""Codes of 8 and 4 bits against fp64 by another way, the product with them against the dense one, and the 8-bit product of inference against whole numbers."""
import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import linear as torch_linear

from minitransfer.ops import int8, nf4
from minitransfer.ops.linear import Linear, linear
from minitransfer.ops.packed_linear import TOP, PackedLinear, available
from minitransfer.ops.quantized_weight import QuantizedWeight

# Dettmers et al. 2023, appendix E
PUBLISHED = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
             0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_levels_are_the_published_ones():
    assert nf4.levels().dtype == torch.float64 and (nf4.levels() - torch.tensor(PUBLISHED, dtype=torch.float64)).abs().max() <= 1e-6


def by_hand(weight: torch.Tensor, double: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes and numbers of NF4 in fp64, a block at a time: the level at the least distance."""
    flat, table = weight.flatten().double().numpy(), np.array(PUBLISHED)
    starts = range(0, len(flat), 64)
    absmax = np.array([abs(flat[i : i + 64]).max() for i in starts])
    codes = np.concatenate([abs(flat[i : i + 64, None] / (a or 1) - table).argmin(1) for i, a in zip(starts, absmax, strict=True)])
    if double:
        mean = absmax.mean()
        parts = [absmax[i : i + 256] - mean for i in range(0, len(absmax), 256)]
        steps = [(abs(part).max() or 127) / 127 for part in parts]
        absmax = np.concatenate([np.round(part / step) * step + mean for part, step in zip(parts, steps, strict=True)])
    return codes, table[codes] * np.repeat(absmax, 64)[: len(flat)]


@pytest.mark.parametrize("double", [True, False], ids=["absmax in 8 bits", "absmax in fp32"])
@pytest.mark.parametrize("shape", [(64, 64), (149, 131), (3, 5)], ids=str)
def test_nf4_takes_the_nearest_level(shape, double):
    weight = numbers(*shape)
    weight[0] *= 40                                                              # blocks of very different sizes
    if shape == (149, 131):
        weight.view(-1)[:64] = 0                                                 # a block of nothing
    packed, *absmax = nf4.quantise(weight, double)
    codes, values = by_hand(weight, double)
    assert np.array_equal(nf4.unpack(packed)[: weight.numel()].numpy(), codes)
    got = nf4.dequantise(weight.shape, packed, *absmax).double().numpy().ravel()
    assert got.shape == values.shape and abs(got - values).max() <= 1e-6 * abs(values).max()


def test_two_codes_a_byte():
    codes = torch.tensor([1, 15, 0, 7, 8, 0], dtype=torch.uint8)
    assert nf4.pack(codes).tolist() == [0x1F, 0x07, 0x80] and torch.equal(nf4.unpack(nf4.pack(codes)), codes)


@pytest.mark.parametrize("top", [127, 64])
def test_int8_rounds_to_half_a_step_of_its_row(top):
    weight = numbers(13, 67) * torch.logspace(-3, 2, 13)[:, None]
    weight[5] = 0
    codes, scale = int8.quantise(weight, top)
    assert codes.dtype == torch.int8 and codes.abs().amax(1).tolist() == [top] * 5 + [0] + [top] * 7
    wrong = (int8.dequantise(weight.shape, codes, scale).double() - weight.double()).abs()
    assert bool((wrong <= scale.double() / 2 + 1e-6 * weight.abs().amax(1, keepdim=True)).all()) and bool((wrong[5] == 0).all())


@pytest.mark.parametrize("shape", [(1024, 256), (149, 131), (3, 5)], ids=str)
def test_bytes_are_those_that_are_held(shape):
    for module, name in ((int8, "int8"), (nf4, "nf4")):
        assert QuantizedWeight.of(numbers(*shape), name).held_bytes == module.held_bytes(*shape)
    assert nf4.held_bytes(1024, 256) / (1024 * 256) <= 0.52


# ---- the product ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_product_and_gradients_are_those_of_the_dequantised_matrix(name, dtype):
    weight = QuantizedWeight.of(numbers(31, 67), name).to(dtype)
    dense, bias, x, dy = weight.dequantised(), numbers(31, seed=2).to(dtype), numbers(3, 7, 67, seed=3).to(dtype), numbers(3, 7, 31, seed=4).to(dtype)
    found = []
    for product, w in ((linear, weight), (torch_linear, dense)):
        given = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = product(given[0], w, given[1])
        found.append((y, *torch.autograd.grad(y, given, dy)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == dtype and (ours - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max())


def test_nothing_of_the_matrix_but_its_codes_is_kept_for_the_backward_pass():
    layer, kept = Linear(67, 31), []
    x = numbers(5, 67).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)), lambda t: None):
        layer(x)
        assert kept == [(5, 67), (31, 67)]
        kept.clear()
        layer.weight = torch.nn.Parameter(QuantizedWeight.of(layer.weight, "nf4"), requires_grad=False)
        layer(x)
    assert kept == []


def test_a_module_that_holds_codes_copies_moves_and_converts():
    layer = Linear(67, 31)
    layer.weight = torch.nn.Parameter(QuantizedWeight.of(layer.weight, "nf4"), requires_grad=False)
    x, twin = numbers(5, 67), copy.deepcopy(layer)
    want = layer(x)
    assert isinstance(twin.weight, QuantizedWeight) and isinstance(twin.weight, torch.nn.Parameter) and torch.equal(twin(x), want)
    twin.weight.parts[0].zero_()
    assert not torch.equal(twin(x), want) and torch.equal(layer(x), want)        # its codes are its own
    assert layer.double().weight.dtype == torch.float64 and layer.weight.parts[0].dtype == torch.uint8
    assert torch.equal(layer.float()(x), want)
    assert {part.device.type for part in layer.to("meta").weight.parts} == {"meta"}


def test_numbers_that_are_not_finite():
    weight = numbers(5, 7)
    weight[2, 3] = torch.inf
    with pytest.raises(ValueError, match=r"shape \(5, 7\) with numbers that are not finite, .*: load the model anew"):
        QuantizedWeight.of(weight, "nf4")


# ---- inference in 8 bits --------------------------------------------------------------------------------------------------------------------------

def in_whole_numbers(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The formula of ops/packed_linear.py with exact sums."""
    codes, scale = int8.quantise(weight, TOP)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    bytes_ = (x.double() / step).round().add(zero).clamp(0, 255) - zero
    return step * (bytes_ @ codes.double().T) * scale[:, 0].double() + bias.double()


@pytest.mark.parametrize("rows", [1, 37])
def test_int8_products_are_those_of_whole_numbers(rows):
    x, weight, bias = numbers(rows, 131), numbers(29, 131, seed=2), numbers(29, seed=3)
    assert available(torch.int8)
    got = PackedLinear(weight, bias, torch.int8)(x)
    want = in_whole_numbers(x, weight, bias)
    exact = torch_linear(x.double(), weight.double(), bias.double())
    assert got.dtype == torch.float32 and (got - want).abs().mean() <= 1e-2 * (want - exact).abs().mean()      # a rounding at .5 may go the other way
    assert (got - exact).abs().max() <= 0.05 * exact.abs().max()


def test_no_sum_of_two_products_is_cut_off():
    """The largest inputs on the largest weights: a CPU that adds in 16 bits would give half of it with codes up to 127."""
    x = torch.ones(5, 256)
    for sign in (1.0, -1.0):
        got = PackedLinear(torch.full((16, 256), sign), None, torch.int8)(x)
        torch.testing.assert_close(got, torch.full((5, 16), 256 * sign), atol=1e-3, rtol=0)
