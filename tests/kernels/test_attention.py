"""Attention: kernels against fp64, each sequence on its own, whatever lies between them; planted faults are noticed."""
import math
from dataclasses import dataclass, replace

import pytest
import torch

from minitransfer.ops import dispatch
from minitransfer.ops.attention import Rows, attention_packed, attention_padded

from .harness import barriers, guarded, guards, judge, philox, planted, took_kernel, turns

RANDOM = torch.tensor([1234, 7])
SOME, OTHERS = (37, 0, 131, 1), (70, 5, 0, 150)


@dataclass(frozen=True)
class Case:
    """B sequences; behind the last one lie `rest` rows that nobody owns, full of NaN."""

    dtype: torch.dtype
    Dh: int = 64
    heads: tuple[int, int] = (2, 2)
    lengths: tuple[int, ...] = SOME
    key_lengths: tuple[int, ...] | None = None
    causal: bool = False
    window: int | None = None
    bias: int = 0               # of how many sequences
    rate: float = 0.0
    rest: int = 3

    @property
    def keys(self):
        return self.lengths if self.key_lengths is None else self.key_lengths

    def inputs(self):
        """q, k, v, bias, dout."""
        new = torch.Generator().manual_seed(self.Dh + sum(self.lengths))
        H, K = self.heads
        made = [torch.randn(sum(n) + self.rest, h, self.Dh, generator=new).to(self.dtype) for n, h in ((self.lengths, H), (self.keys, K), (self.keys, K), (self.lengths, H))]
        for x in made:
            x[len(x) - self.rest :] = math.nan
        bias = torch.randn(self.bias, H, max(self.lengths) + 1, max(self.keys) + 2, generator=new).to(self.dtype).float() if self.bias else None
        return *made[:3], bias, made[3]


def kept_pairs(T, S, plane, rate):
    """(T, S): which pairs dropout keeps in one head of one sequence: a draw serves (i, j), (i, j + 8), (i + 8, j), (i + 8, j + 8)."""
    i, j = torch.arange(T)[:, None], torch.arange(S)
    counter = plane << 40 | (i >> 4 << 3 | i & 7) << 20 | (j >> 4 << 3 | j & 7)
    drawn = philox(int(RANDOM[0]), counter, int(RANDOM[1]))
    return (drawn.gather(-1, (2 * (i >> 3 & 1) + (j >> 3 & 1))[..., None])[..., 0] >> 8) / 2**24 >= rate


def alone(q, k, v, c, bias=None, s=0):
    """One sequence, (T, H, Dh): the formula, row by row of the textbook."""
    (T, H, Dh), S = q.shape, len(k)
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    x = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(Dh)
    if bias is not None:
        x = x + bias
    i, j = torch.arange(T)[:, None] + S - T, torch.arange(S)
    allowed = (j <= i if c.causal else torch.ones(T, S, dtype=torch.bool)) & ((i - j).abs() < (c.window or 10**9))
    some = allowed.any(-1, keepdim=True)
    p = x.masked_fill(~allowed & some, -math.inf).softmax(-1) * some
    if c.rate:
        p = p * torch.stack([kept_pairs(T, S, s * H + h, c.rate) for h in range(H)]) / (1 - c.rate)
    return torch.einsum("hij,jhd->ihd", p.to(v.dtype), v)


def one_by_one(c, dtype):
    """out, dq, dk, dv and dbias in plain PyTorch."""
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in c.inputs()[:4]]
    q, k, v, bias = leaves
    outs = [alone(a, b, d, c, None if bias is None else bias[s % c.bias, :, : len(a), : len(b)], s)
            for s, (a, b, d) in enumerate(zip(q.split([*c.lengths, c.rest])[:-1], k.split([*c.keys, c.rest])[:-1], v.split([*c.keys, c.rest])[:-1], strict=True))]
    out = torch.cat([*outs, torch.zeros(c.rest, *q.shape[1:], dtype=dtype)])
    dout = c.inputs()[4].to(dtype).nan_to_num()
    leaves = [x for x in leaves if x is not None]
    return [out, *torch.autograd.grad(out, leaves, dout)]


def offsets(lengths, device="cpu"):
    return guarded(torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device))


def run(c, device="cpu"):
    """The same five from the kernels; without tensor cores a bias has no gradient."""
    *given, dout = (None if x is None else guarded(x.to(device)) for x in c.inputs())
    leaves = [x.requires_grad_() for x in (given[:3] if c.dtype == torch.float32 else given) if x is not None]
    q, k, v, bias = given
    with guards():
        out = attention_packed(q, k, v, offsets(c.lengths, device), max(c.lengths), key_offsets=None if c.key_lengths is None else offsets(c.keys, device),
                               longest_key=max(c.keys), causal=c.causal, window=c.window, bias=bias, rate=c.rate, random=RANDOM.to(device))
        return [out, *(torch.autograd.grad(out, leaves, dout) if out.requires_grad else ())]


def check(c, device="cpu", ours=None):
    for name, value, plainly, truth in zip(("out", "dq", "dk", "dv", "dbias"), ours or run(c, device), one_by_one(c, c.dtype), one_by_one(c, torch.float64), strict=False):
        judge(value, plainly, truth, name)


BF16, FP16, FLOAT = Case(torch.bfloat16), Case(torch.float16, Dh=80, heads=(4, 2), bias=1, rate=0.1), Case(torch.float32, Dh=80, heads=(4, 2))
KINDS = {"bidirectional": {}, "causal": {"causal": True}, "shared heads": {"causal": True, "heads": (4, 1)}, "window": {"window": 29},
         "causal window": {"causal": True, "window": 40}, "one long": {"lengths": (277,), "causal": True},
         "other keys": {"key_lengths": OTHERS}, "cache": {"key_lengths": (99, 3, 131, 200), "causal": True},
         "window over a cache": {"key_lengths": (99, 3, 131, 300), "causal": True, "window": 70}, "nothing to see": {"lengths": (20, 150), "key_lengths": (7, 131), "causal": True}}
KINDS_OF_BIAS = {"shared bias": {}, "own bias": {"bias": 4, "causal": True, "rate": 0.5}, "bias, other keys": {"key_lengths": OTHERS}}


@pytest.mark.parametrize("c", [replace(BF16, **kind) for kind in KINDS.values()] + [replace(FP16, **kind) for kind in KINDS_OF_BIAS.values()], ids=[*KINDS, *KINDS_OF_BIAS])
def test_numbers(c, device):
    check(c, device)
    assert took_kernel("attention_packed")


KINDS_TO_READ_FIRST = {**KINDS, "shared bias": {"bias": 1}, "dropout": {"rate": 0.3, "causal": True}, "dropout, other keys": {"rate": 0.3, "bias": 4, "key_lengths": OTHERS}}


@pytest.mark.parametrize("kind", KINDS_TO_READ_FIRST)
def test_the_version_to_read_first(kind, device):
    check(replace(FLOAT, **KINDS_TO_READ_FIRST[kind]), device)
    assert took_kernel("attention_packed")


@pytest.mark.parametrize("kind", [{"causal": True}, pytest.param({"key_lengths": OTHERS, "bias": 1, "rate": 0.1}, marks=pytest.mark.slow)], ids=["plain", "bias, dropout"])
def test_wide_heads_in_little_shared_memory(kind, device, monkeypatch):
    monkeypatch.setattr("minitransfer.ops.attention.roomy", lambda device: False)
    check(Case(torch.float16, 128, (4, 2), **kind), device)
    assert took_kernel("attention_packed")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("Dh", [16, 32, 48, 64, 80, 96, 128])
@pytest.mark.parametrize("bias, rate", [(0, 0.0), (1, 0.0), (0, 0.2), (4, 0.2)])
def test_every_width(dtype, Dh, bias, rate, device):
    for kind in ({"causal": True}, {"key_lengths": OTHERS, "window": 50}):
        check(Case(dtype, Dh, (4, 2), bias=bias, rate=rate, **kind), device)


@pytest.mark.slow
@pytest.mark.parametrize("Dh", [16, 32, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_width_of_the_version_to_read_first(dtype, Dh, device, monkeypatch):
    monkeypatch.setattr("minitransfer.ops.attention.tensor_cores", lambda q: False)
    check(Case(dtype, Dh, (4, 2), causal=True, rate=0.1), device)
    assert took_kernel("attention_packed")


@pytest.mark.parametrize("c", [replace(BF16, causal=True), FP16, FLOAT], ids=["plain", "bias, dropout", "float"])
def test_the_order_of_threads_and_blocks_changes_no_bit(c, emulator):
    first = run(c)
    for order in (1, 2):
        with turns(order):
            assert all(torch.equal(a, b) for a, b in zip(run(c), first, strict=True)), order


@pytest.mark.gpu
def test_a_graph_replays_with_the_offsets_of_the_day(monkeypatch):
    monkeypatch.setenv("MINITRANSFER_KERNELS", "on")
    q, k, v, *_ = (x if x is None else x.cuda().nan_to_num() for x in replace(BF16, heads=(4, 2)).inputs())
    days = [offsets(lengths, "cuda") for lengths in (SOME, (100, 20, 3, 46))]
    now, graph = days[0].clone(), torch.cuda.CUDAGraph()
    expected = [attention_packed(q, k, v, day, 131, causal=True) for day in days]
    with torch.cuda.graph(graph):
        out = attention_packed(q, k, v, now, 131, causal=True)
    for day, same in zip(days, expected, strict=True):
        now.copy_(day)
        graph.replay()
        assert torch.equal(out, same)


def padded(c, left, S, T=None):
    """q, k and v of a batch (B, heads, T or S, Dh), NaN where there is no token, and which places are tokens. Queries are the last T of S."""
    q, k, v, *_ = c.inputs()
    keep = torch.zeros(len(c.keys), S, dtype=torch.bool)
    for row, n in zip(keep, c.keys, strict=True):
        row[S - n :] = left
        row[:n] |= not left
    T = S if T is None else T
    def spread(x, where):
        return torch.full((*where.shape, *x.shape[1:]), math.nan, dtype=x.dtype).index_put((where,), x[: int(where.sum())]).transpose(1, 2)
    return spread(q, keep[:, S - T :]), spread(k, keep), spread(v, keep), keep


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_changes_no_bit_of_the_tokens_and_gets_zeros(left, device):
    c = replace(BF16, causal=True, heads=(4, 2))
    q, k, v, keep = (x.to(device) for x in padded(c, left, 140))
    out = attention_padded(*(guarded(x) for x in (q, k, v)), keep, causal=True).transpose(1, 2)
    again = attention_padded(q, k, v, Rows.padded(keep), causal=True).transpose(1, 2)
    assert took_kernel("attention_padded") and torch.equal(out, again) and torch.equal(out[keep], run(c, device)[0][: sum(c.lengths)]) and not out[~keep].any()


def test_a_left_padded_cache(device):
    c = replace(BF16, lengths=(5, 3, 5), key_lengths=(9, 3, 131), causal=True, window=7)
    q, k, v, keep = (x.to(device) for x in padded(c, True, 140, 5))
    out = attention_padded(q, k, v, keep, causal=True, window=7).transpose(1, 2)
    assert torch.equal(out[keep[:, -5:]], run(c, device)[0][:13])


@pytest.mark.parametrize("mode", ["emulate", "auto"])
def test_a_bias_counts_from_the_padding(mode, emulator, monkeypatch):
    monkeypatch.setenv("MINITRANSFER_KERNELS", mode)
    c, S = replace(FP16, lengths=(37, 131, 2), bias=0, rate=0.1 if mode == "emulate" else 0.0), 150
    q, k, v, keep = padded(c, True, S)
    bias = torch.randn(1, 4, S, S, generator=torch.Generator().manual_seed(0)).half().float().requires_grad_()
    out = attention_padded(q, k, v, keep, bias=bias, rate=c.rate, random=RANDOM)
    (ours,) = torch.autograd.grad(out, bias, torch.ones_like(out))
    results = []
    for dtype in (torch.float16, torch.float64):
        leaf = bias.detach().to(dtype).requires_grad_()
        alones = [alone(*(x[s, :, S - n :].transpose(0, 1).to(dtype) for x in (q, k, v)), c, leaf[0, :, S - n :, S - n :], s) for s, n in enumerate(c.lengths)]
        results.append((torch.cat(alones), torch.autograd.grad(sum(x.sum() for x in alones), leaf)[0]))
    for value, plainly, truth, name in zip((out.transpose(1, 2)[keep], ours), *results, ("out", "dbias"), strict=True):
        judge(value, plainly, truth, name)


@pytest.mark.parametrize("c", [replace(FLOAT, dtype=torch.float64, **kind) for kind in (*KINDS.values(), {"bias": 4, "key_lengths": OTHERS})])
def test_plain_pytorch_does_the_same(c):
    leaves = [x.requires_grad_() for x in c.inputs()[:4] if x is not None]
    q, k, v, bias = [*leaves, None][:4]
    out = attention_packed(q, k, v, offsets(c.lengths), max(c.lengths), key_offsets=offsets(c.keys), longest_key=max(c.keys), causal=c.causal, window=c.window, bias=bias)
    for value, truth in zip([out, *torch.autograd.grad(out, leaves, c.inputs()[4])], one_by_one(c, torch.float64), strict=True):
        assert torch.allclose(value.double(), truth, rtol=0, atol=1e-5 if bias is not None else 1e-12)


PLANTS = {"attention_forward.cu": replace(BF16, causal=True), "attention_backward.cu": replace(BF16, causal=True),
          "attention_bias.cu": replace(FP16, lengths=(37, 150, 131)), "attention_simple.cu": FLOAT}


def noticed(c):
    """Whether some order of threads gives a wrong number."""
    with pytest.raises(AssertionError):
        for order in (0, 1, 2):
            with turns(order):
                check(c)


@pytest.mark.parametrize("cu, nth", [(cu, n) for cu in PLANTS for n in range(barriers(cu))])
def test_each_missing_barrier_is_noticed(cu, nth, emulator):
    with planted(cu, "__syncthreads();", "", nth):
        noticed(PLANTS[cu])


@pytest.mark.parametrize("cu, nth", [("attention_forward.cu", 0), ("attention_backward.cu", 0), ("attention_backward.cu", 1), ("attention_bias.cu", 0)])
def test_each_missing_wait_is_noticed(cu, nth, emulator):
    with planted(cu, "copy_async_wait<0>();", "", nth):
        noticed(PLANTS[cu])


@pytest.mark.parametrize("cu, old, new", [
    ("attention_forward.cu", "total[m][r] *= shrink;", ""),
    ("attention_backward.cu", "scales[m][r] = scale;", "scales[m][r] = 1.0f;"),
    ("attention_backward.cu", "- deltas[now]", "+ deltas[now]"),
    ("attention_simple.cu", "total[r] * shrink", "total[r]"),
    ("attention_simple.cu", "- delta[row]", "+ delta[row]"),
])
def test_a_wrong_formula_is_noticed(cu, old, new, emulator):
    with planted(cu, old, new):
        noticed(PLANTS[cu])


@pytest.mark.parametrize("cu, old, new", [("attention.cuh", "if ((u32)row < (u32)count) copy", "if ((u32)row <= (u32)count) copy"),
                                          ("attention.cuh", "if (row < count)", "if (row <= count)"),
                                          ("attention_simple.cu", "if (row < count)", "if (row <= count)"),
                                          ("attention_simple.cu", "j < at.S)", "j <= at.S)")])
def test_access_past_the_end_is_noticed(cu, old, new, emulator):
    with planted(cu, old, new), pytest.raises(RuntimeError, match="bad memory access"):
        run(replace(FLOAT if "simple" in cu else BF16, causal=True, lengths=(37, 0, 131), rest=0))


def test_what_has_no_kernel_runs_in_pytorch_and_says_why(emulator, monkeypatch):
    def why(c):
        check(c)
        return dispatch.why_not("attention_packed")
    assert why(replace(BF16, Dh=40)) == "Dh=40; the kernels are for multiples of 16 up to 128"
    q, bias = torch.randn(5, 2, 32), torch.zeros(1, 2, 3, 3, requires_grad=True)
    out = attention_packed(q, q, q, offsets((2, 3)), 3, bias=bias)
    assert out.requires_grad and dispatch.why_not("attention_packed").startswith("torch.float32 and a bias with gradients; those need tensor cores")
    monkeypatch.setenv("MINITRANSFER_KERNELS", "auto")
    assert why(BF16).startswith("a tensor on cpu")


def test_cross_attention_skips_the_padding_of_both_texts():
    c = Case(torch.float64, 16, (4, 2), lengths=(3, 5), key_lengths=(9, 4), rest=0)
    q, k, v = (torch.stack([torch.cat([x, x.new_full((9, *x.shape[1:]), math.nan)])[:9] for x in part.split(list(n))]).transpose(1, 2)
               for part, n in zip(c.inputs()[:3], (c.lengths, c.keys, c.keys), strict=True))
    asking, keep = (torch.arange(9)[None] < torch.tensor(n)[:, None] for n in (c.lengths, c.keys))
    out = attention_padded(q, k, v, keep, asking=asking).transpose(1, 2)
    assert torch.allclose(out[asking], one_by_one(c, torch.float64)[0], rtol=0, atol=1e-12) and not out[~asking].any()


def test_rows_of_another_batch():
    x = torch.randn(2, 4, 5, 16)
    with pytest.raises(ValueError, match="tokens are named for 2 texts of 6 places, the batch has 2 of 5: give a mask"):
        attention_padded(x, x, x, Rows.padded(torch.ones(2, 6, dtype=torch.bool)))


def test_heads_that_cannot_be_shared():
    with pytest.raises(ValueError, match="4 heads of queries and 3 of keys; each head of keys serves equally many"):
        attention_packed(torch.randn(5, 4, 32), torch.randn(5, 3, 32), torch.randn(5, 3, 32), offsets((2, 3)), 3)


@pytest.mark.parametrize("bounds, longest, keys, message", [
    ((1, 3, 5), 3, None, "offsets from 1 to 5 with sequences of 2 to 2 rows, of 5 rows"), ((0, 3, 2, 5), 3, None, "offsets from 0 to 5 with sequences of -1 to 3 rows"),
    ((0, 2, 6), 4, None, "offsets from 0 to 6 .*, of 5 rows"), ((0, 2, 5), 2, None, "sequences of 2 to 3 rows, of 5 rows and a longest of 2; .*: give the running sums"),
    ((0, 2, 5), 3, (0, 3, 7), "key_offsets from 0 to 7 with")])
def test_offsets_of_rows_that_are_not_there(bounds, longest, keys, message):
    x = torch.randn(5, 2, 16)
    with pytest.raises(ValueError, match=message):
        attention_packed(x, x, x, torch.tensor(bounds), longest, key_offsets=None if keys is None else torch.tensor(keys), longest_key=7)


def test_a_bias_that_is_too_small():
    x = torch.randn(5, 4, 32)
    with pytest.raises(ValueError, match=r"a bias of \(1, 4, 3, 2\); \(1 or 2, 4, 3 or more, 3 or more\) is needed"):
        attention_packed(x, x, x, offsets((2, 3)), 3, bias=torch.zeros(1, 4, 3, 2))
