"""03, attention by hand."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..nn.attention import attend
from ..nn.masks import Mask
from .exercise import demand, exercise, gap, same_in_engine
from .models import moved, states_and_gradients


@exercise("03", "attention(q, k, v, mask) -> the mixed values (B, H, T, Dh) and the weights (B, H, T, S); a row that may look nowhere gives zeros")
def attention(answer: Callable) -> str:
    q, (k, v) = torch.randn(2, 3, 5, 7), torch.randn(2, 2, 3, 11, 7)
    mask = torch.rand(2, 1, 5, 11) > 0.4
    mask[0, 0, 2] = False
    mixed, weights = answer(q, k, v, mask)
    truth = attend(q, k, v, mask)
    gap("the weights", weights, truth[1])
    gap("the mixed values", mixed, truth[0])
    large, _ = answer(100 * q, 100 * k, v, mask)
    gap("the mixed values for large scores", large, attend(100 * q, 100 * k, v, mask)[0])

    def as_attend(q, k, v, mask, rate=0.0, bias=None):
        mixed, weights = answer(q, k, v, mask)
        return mixed, weights, weights.clamp(min=1e-30).log()
    worst = max(same_in_engine("nn.attention:attend", as_attend, states_and_gradients(moved(source, head="none"))) for source in ("mini-bert", "mini-gpt"))
    return f"in every block of mini-bert and mini-gpt, states and gradients within {worst:.0e}"


@exercise("03", "window_mask(T, window) -> bool (T, T), True where a token may look: at itself and at the window - 1 tokens before it")
def window_mask(answer: Callable) -> str:
    for T, window in ((5, 1), (6, 3), (7, 100)):
        truth = Mask(causal=True, window=window).dense(T, T, torch.device("cpu"))[0, 0]
        found = answer(T, window)
        demand(found.dtype == torch.bool, f"the mask holds {found.dtype}, torch.bool is needed")
        gap(f"the mask of T={T}, window={window}", found.float(), truth.float())
    return "as the engine's mask for three windows"


@exercise("03", "grouped_attention(q, k, v, mask) for q (B, H, T, Dh) and k, v (B, K, S, Dh): query head h uses key and value head h // (H // K)")
def grouped_attention(answer: Callable) -> str:
    q, (k, v), mask = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 3, 7, 4), torch.rand(2, 1, 5, 7) > 0.3
    found = answer(q, k, v, mask)
    for h in range(6):
        gap(f"head {h}", found[:, h], attend(q[:, h:h + 1], k[:, h // 2][:, None], v[:, h // 2][:, None], mask)[0][:, 0])
    return "six query heads on three"


@exercise("03", "combine(m1, z1, o1, m2, z2, o2) -> the output over all keys, from the running maximum, sum and output of either half")
def combine(answer: Callable) -> str:
    s, v, halves = torch.randn(5, 12) * 30, torch.randn(12, 4), []
    for part in (slice(0, 5), slice(5, 12)):
        m = s[:, part].amax(-1, keepdim=True)
        p = torch.exp(s[:, part] - m)
        halves += [m, p.sum(-1, keepdim=True), p @ v[part]]
    gap("the output", answer(*halves), s.softmax(-1) @ v)
    return "with scores up to a hundred"


@exercise("03", "orders_and_depth() -> two orders of 5 rows with the same last row, and a number of layers (1 or 2)")
def orders_and_depth(answer: Callable) -> str:
    one, two, depth = answer()
    demand(sorted(one) == sorted(two) == list(range(5)) and one != two and one[-1] == two[-1], f"{one} and {two} are not two orders of five rows with the same end")
    x, w_q, w_k, w_v = torch.randn(5, 8), *(torch.randn(8, 8) / math.sqrt(8) for _ in range(3))

    def last_row(x: torch.Tensor, layers: int) -> torch.Tensor:
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        for _ in range(layers):
            x = x + attend((x @ w_q)[None, None], (x @ w_k)[None, None], (x @ w_v)[None, None], mask[None, None])[0][0, 0]
        return x[-1]
    gap("after one layer the last row of the two orders", last_row(x[one], 1), last_row(x[two], 1))
    apart = (last_row(x[one], depth) - last_row(x[two], depth)).abs().max()
    demand(apart > 1e-3, f"after {depth} layers the last rows are {apart:.1e} apart: still equal")
    return f"one layer cannot tell, {depth} can"
