"""A Linear and a low-rank change, which joins its output without a pass of its own.

    y = x W^T + b + u B^T,  u = s x' A^T,  x' = dropout(x)            A: (R, D), B: (F, R)

    du = s dy B        dx = dy W + keep / (1 - rate) * du A        dA = du^T x'        dB = dy^T u        dW = dy^T x        db = sum_n dy_n

Several adapters in one batch: A is (K, R, D), B is (K, F, R), and `adapter` has the number of each row's own; a row of -1 has the base's y, bit for bit.
On a GPU the products with W are PyTorch's; what the adapters add is added to y, and to dx, in the kernel that computes it, in float32 from A and B in float32.
Source: Hu et al. 2021, section 4.1; rows with adapters of their own: Wen & Chaudhuri 2024. Kernel: kernels/lora.cu.
"""
from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as torch_linear

from .dispatch import check_shapes, draw, pick
from .dropout import dropout
from .kernels import Kernels, vector, whole
from .linear import linear

HIGHEST = 64            # rank: beyond, a column of a matrix does not fit the registers of a thread
SLICES = 256            # of the rows, each with its own sum for dA and dB: a fixed number, for equal bits on every GPU
THREADS = 128
AT_ONCE = 4             # rows that a warp of lora_down takes
EACH = 32               # rows that a block of lora_up takes with the same columns of B
WIDEST_PIECE = 2        # columns of a thread of the other two: with more, too few threads are there to wait for memory together


def reference(x: Float[Tensor, "*N D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None, A: Float[Tensor, "*K R D"], B: Float[Tensor, "*K F R"],
              scale: float, rate: float = 0.0, adapter: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N F"]:
    """y in plain PyTorch. Several adapters stand side by side as one of rank K R, whose u is zero but for the row's own."""
    y = linear(x, weight, bias)
    down = scale * linear(dropout(x, rate).to(A.dtype), A.flatten(0, -2))
    if adapter is None:
        return y + linear(down, B.reshape(B.shape[-2:])).to(y.dtype)
    own = (adapter[..., None] == torch.arange(len(A), device=x.device)).repeat_interleave(A.shape[1], -1)
    change = linear(down * own, B.transpose(0, 1).flatten(1)).to(y.dtype)
    return torch.where(adapter[..., None] >= 0, y + change, y)


def cost(N: int, F: int, D: int, R: int, bytes_per_number: int = 4) -> dict[str, int]:
    """Of what the adapter adds to the Linear's own: forward reads x, reads and writes y; backward reads dy twice and x, reads and writes dx."""
    return {"bytes_forward": N * (D + 2 * F) * bytes_per_number, "bytes_backward": N * (2 * F + 3 * D) * bytes_per_number,
            "flop_forward": 2 * N * R * (D + F), "flop_backward": 4 * N * R * (D + F)}


class Narrow:
    """The three kernels of lora.cu for rows (N, D) of one batch; `random` is (seed, step) of the dropout."""

    def __init__(self, k: Kernels, rows: int, rank: int, piece: int, adapters: int, adapter: Tensor | None, random: Tensor | None, rate: float):
        self.k, self.rows, self.rank, self.piece, self.adapters, self.adapter, self.random, self.rate = k, rows, rank, piece, adapters, adapter, random, rate

    def columns(self, wide: Tensor) -> tuple[int, int]:
        """How many columns, and how many blocks of threads with a piece each they take."""
        return wide.shape[-1], -(-wide.shape[-1] // (THREADS * self.piece))

    def down(self, wide: Tensor, matrix: Tensor, scale: float, rate: float = 0.0) -> Float[Tensor, "N R"]:
        narrow = torch.empty(self.rows, self.rank, device=wide.device)
        per_block = THREADS // 32 * AT_ONCE
        self.k("lora_down", (-(-self.rows // per_block), 1, 1), (THREADS, 1, 1), narrow, wide, matrix, self.adapter, self.random, self.rows, wide.shape[-1], rate, scale)
        return narrow

    def add_up(self, wide: Tensor, narrow: Tensor, matrix: Tensor, rate: float = 0.0) -> None:
        columns, blocks = self.columns(wide)
        self.k("lora_up", (-(-self.rows // EACH), blocks, 1), (THREADS, 1, 1), wide, narrow, matrix, self.adapter, self.random, self.rows, columns, EACH, rate)

    def gradient(self, narrow: Tensor, wide: Tensor, rate: float = 0.0) -> Float[Tensor, "K R D"]:
        (columns, blocks), slices = self.columns(wide), min(SLICES, -(-self.rows // AT_ONCE))
        shares = torch.zeros(slices, self.adapters, self.rank, columns, device=wide.device)
        self.k("lora_gradient", (slices, blocks, 1), (THREADS, 1, 1), shares, narrow, wide, self.adapter, self.random, self.rows, columns, -(-self.rows // slices),
               self.adapters, rate)
        return shares.sum(0)


class LoRALinear(torch.autograd.Function):
    """The formulas of the module's docstring, in the kernels of lora.cu and PyTorch's products with W."""

    @staticmethod
    def forward(ctx, run: Narrow, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        wide_A, across_B = whole(A.float()), whole(B.transpose(-1, -2).float())
        y = torch_linear(x, weight, bias)
        u = run.down(x, wide_A, scale, run.rate)
        run.add_up(y, u, across_B)
        ctx.save_for_backward(x, weight, wide_A, across_B, u)
        ctx.run, ctx.scale, ctx.shapes, ctx.dtypes = run, scale, (A.shape, B.shape), (A.dtype, B.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        (x, weight, A, across_B, u), run, dy = ctx.saved_tensors, ctx.run, whole(dy)
        _, wants_x, wants_w, wants_b, wants_A, wants_B, _ = ctx.needs_input_grad
        du = run.down(dy, across_B, ctx.scale) if wants_x or wants_A else None
        dx = dA = dB = None
        if wants_x:
            dx = dy @ weight
            run.add_up(dx, du, A, run.rate)
        if wants_A:
            dA = run.gradient(du, x, run.rate).to(ctx.dtypes[0]).view(ctx.shapes[0])
        if wants_B:
            dB = run.gradient(u, dy).transpose(-1, -2).to(ctx.dtypes[1]).reshape(ctx.shapes[1])
        rows = dy.flatten(0, -2)
        return None, dx, rows.t() @ x.flatten(0, -2) if wants_w else None, rows.sum(0) if wants_b else None, dA, dB, None


def lora_linear(x: Float[Tensor, "*N D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None, A: Float[Tensor, "*K R D"], B: Float[Tensor, "*K F R"],
                scale: float, rate: float = 0.0, adapter: Int32[Tensor, "*rows"] | None = None, random: Int64[Tensor, "2"] | None = None) -> Float[Tensor, "*N F"]:
    """x W^T + b + scale * dropout(x) A^T B^T.

    Args:   scale: alpha / R (rsLoRA: alpha / sqrt R); where adapters differ in it, or in rank, scale their B, and fill up with zeros.
            rate: of dropout, in [0, 1), on the input of A; adapter: the number of each row's adapter on the device, -1 for none (None: there is one adapter).
            random: (seed, step) of the kernel's dropout, two int64 on the device (default: drawn).
    Raises: ValueError for one adapter with `adapter`, several without, or an `adapter` of another number of rows.
    """
    if (A.dim() == 3) != (adapter is not None):
        raise ValueError(f"A of shape {tuple(A.shape)} {'without' if adapter is None else 'with'} an adapter for each row; "
                         "several adapters are (K, R, D) with `adapter`, one is (R, D) without: give both or neither")
    if adapter is not None and adapter.shape != x.shape[:-1]:
        raise ValueError(f"adapter of shape {tuple(adapter.shape)} for x of shape {tuple(x.shape)}; every row of x has a number: expand it to {tuple(x.shape[:-1])}")
    if torch.is_autocast_enabled(x.device.type):                                 # as for PyTorch's own Linear
        wanted = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(wanted), weight.to(wanted), None if bias is None else bias.to(wanted)
    rank, (F, D) = A.shape[-2], weight.shape
    each = min(vector(D, x), vector(F, x))
    piece = next(n for n in (WIDEST_PIECE, 1) if n <= each and (n * rank <= HIGHEST or n == 1))
    limit = (f"rank {rank}; a kernel takes ranks to {HIGHEST}" if rank > HIGHEST else "an empty batch" if x.numel() == 0 else
             f"x is {x.dtype} and the weight {weight.dtype}; a kernel reads one dtype" if x.dtype != weight.dtype else "")
    k = pick("lora_linear", "lora.cu", x, weight, bias, A, B, adapter, limit=limit, RANK=rank, VECTOR=each, PIECE=piece)
    if k is None:
        return reference(x, weight, bias, A, B, scale, rate, adapter)
    check_shapes("lora_linear", rate, x=(x, (*x.shape[:-1], D)), bias=(bias, (F,)), A=(A, (*A.shape[:-2], rank, D)), B=(B, (*A.shape[:-2], F, rank)))
    random = draw(x.device) if rate > 0 and random is None else random
    run = Narrow(k, x.numel() // D, rank, piece, 1 if A.dim() == 2 else len(A), None if adapter is None else adapter.int().contiguous(), random, rate)
    return LoRALinear.apply(run, whole(x), weight, bias, A, B, scale)
