"""Attention without the T x S matrix, for sequences of different lengths that lie one after another.

    x = scale q k^T + bias where the mask allows, else -inf      p = softmax(x)      out = d(p) v       d = dropout, d(p) = p * keep / (1 - rate)

    delta = sum(dout * out)           dv = d(p)^T dout           dp = d(dout v^T)
    dx = p * (dp - delta)             dq = scale dx k            dk = scale dx^T q          dbias = dx, summed over the sequences that share it

A sequence owns rows of q and rows of k and v; its queries are the last of its keys, so that with T queries and S keys query i stands at key i + S - T.
It sees key j if -left <= j - (i + S - T) <= right. Rows that no sequence owns are padding: their out and their gradients are zeros, like those of a query
that sees nothing. Several query heads may share one head of k and v, which is never repeated. Backward makes the scores and the dropout again.
Source: Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022, algorithms 1 and 4; Ainslie et al. 2023 (shared heads).
Kernels: kernels/attention_forward.cu, kernels/attention_backward.cu, kernels/attention_bias.cu on tensor cores, kernels/attention_simple.cu without.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import device_of, draw, pick
from .dropout import dropout
from .kernels import Kernels, whole

NARROW, WIDEST = 64, 128        # Dh: up to which a warp has registers for 32 rows; up to which there are kernels
EVERYTHING = 1 << 30            # a window that hides nothing
DELTA_ROWS = 16                 # rows of delta for a block of attention_delta


@dataclass(frozen=True)
class Rows:
    """Which rows of a (N, heads, Dh) tensor each of B sequences owns, in the order of the sequences: begin[s] .. end[s]."""

    begin: Int[Tensor, "B"]     # int32, on the tensor's device
    end: Int[Tensor, "B"]
    longest: int                # no sequence owns more; a number of the host, which never waits for the device to say it
    pitch: int = 0              # > 0: sequence s lies within rows s pitch .. (s + 1) pitch, and a bias counts from there

    @classmethod
    def packed(cls, offsets: Int[Tensor, "B1"], longest: int) -> Rows:
        """Without padding: sequence s owns rows offsets[s] .. offsets[s + 1]. Equal offsets: an empty sequence."""
        offsets = offsets.int()
        return cls(offsets[:-1], offsets[1:], longest)

    @classmethod
    def padded(cls, keep: Bool[Tensor, "B T"]) -> Rows:
        """Of a (B T, heads, Dh) tensor: the tokens that `keep` names, one run in each row of the batch, whether padding is left or right of it."""
        B, T = keep.shape
        begin = torch.arange(0, B * T, T, device=keep.device) + keep.int().argmax(-1)
        return cls(begin.int(), (begin + keep.sum(-1)).int(), T, T)

    @classmethod
    def full(cls, B: int, T: int, device: torch.device) -> Rows:
        """Of a (B T, heads, Dh) tensor: all."""
        offsets = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=device)
        return cls(offsets[:-1], offsets[1:], T, T)

    def index(self) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Row numbers by sequence, and which of the `longest` places of each are owned."""
        step = torch.arange(self.longest, device=self.begin.device)
        return self.begin[:, None] + step, step < (self.end - self.begin)[:, None]

    def first_of_bias(self) -> Int[Tensor, "B"]:
        """Which row (or column) of a bias each sequence starts at."""
        return self.begin - torch.arange(len(self.begin), device=self.begin.device) * self.pitch if self.pitch else torch.zeros_like(self.begin)


def reference(q: Float[Tensor, "N H Dh"], k: Float[Tensor, "M K Dh"], v: Float[Tensor, "M K Dh"], queries: Rows, keys: Rows, left: int, right: int,
              bias: Float[Tensor, "_ H _ _"] | None, rate: float, scale: float) -> Float[Tensor, "N H Dh"]:
    """The same with all T x S scores, left to autograd."""
    (i, asks), (j, there) = queries.index(), keys.index()

    def spread(x: Tensor, rows: Tensor, owned: Tensor) -> Float[Tensor, "B H L Dh"]:
        return torch.where(owned[..., None, None], x[rows.clamp(max=len(x) - 1)], 0).transpose(1, 2)

    qs = spread(q, i, asks)
    ks, vs = (spread(x, j, there).repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    x = (qs * scale) @ ks.transpose(-2, -1)                                       # (B, H, T, S)
    if bias is not None:
        row, column = ((rows.first_of_bias()[:, None] + torch.arange(rows.longest, device=q.device)).clamp(max=size - 1)
                       for rows, size in ((queries, bias.shape[2]), (keys, bias.shape[3])))
        of = torch.arange(len(i), device=q.device) if len(bias) > 1 else torch.zeros_like(i[:, 0])
        x = x + bias.transpose(0, 1)[:, of[:, None, None], row[:, :, None], column[:, None]].transpose(0, 1)
    place = torch.arange(queries.longest, device=q.device) + (there.sum(-1) - asks.sum(-1))[:, None]                       # (B, T)
    distance = torch.arange(keys.longest, device=q.device) - place[:, :, None]                                             # (B, T, S)
    allowed = ((-left <= distance) & (distance <= right) & there[:, None])[:, None]
    x = x.masked_fill(~allowed, -math.inf).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    out = dropout((x.softmax(-1) * allowed).to(v.dtype), rate) @ vs
    spare = q.new_zeros(len(q) + 1, *q.shape[1:])                                 # what nobody asks ends up in the last row
    return spare.index_put((torch.where(asks, i, len(q)),), out.transpose(1, 2))[:-1]


def cost(pairs: int, N: int, M: int, H: int, K: int, Dh: int, bytes_per_number: int = 2) -> dict[str, int]:
    """`pairs`: of a query and a key that it sees, over all sequences (causal: about T^2 / 2 each). Forward: two products, each 2 Dh operations a pair;
    backward: seven, since dq and dk, dv each make the scores again, so that no two blocks add to one number."""
    queries, keys = N * H * Dh * bytes_per_number, M * K * Dh * bytes_per_number
    return {"bytes_forward": 2 * queries + 2 * keys + 4 * N * H, "bytes_backward": 7 * queries + 6 * keys + 20 * N * H,
            "flop_forward": 4 * pairs * H * Dh, "flop_backward": 14 * pairs * H * Dh}


def geometry(q: Tensor, k: Tensor, bias: Tensor | None, queries: Rows, keys: Rows, left: int, right: int) -> tuple:
    """What every kernel is told of who owns what and who sees whom."""
    each, rows, columns = (0, 0, 0) if bias is None else (int(len(bias) > 1), bias.shape[2], bias.shape[3])
    return (queries.begin, queries.end, keys.begin, keys.end, len(q), q.shape[1], q.shape[1] // k.shape[1], left, right,
            each, rows, columns, queries.pitch, keys.pitch)


def grid(rows: Rows, heads: int, of_block: int) -> tuple[int, int, int]:
    return -(-rows.longest // of_block), heads, len(rows.begin)


@dataclass(frozen=True)
class Built:
    """The kernels of one call, and what one of their blocks is."""

    parts: dict[str, Kernels]       # "forward", "backward", "bias"; one kernel file may be several of them
    rows: int                       # queries (in backward also keys) of a block
    threads: int
    tile: int                       # rows of the other side at a time
    shared_dkv: int                 # bytes of dynamic shared memory
    shared_dq: int

    def launch(self, part: str, kernel: str, blocks: tuple[int, int, int], *values: object, shared: int = 0) -> None:
        self.parts[part](f"attention_{kernel}", blocks, (self.threads, 1, 1), *values, shared=shared)


class AttentionRows(torch.autograd.Function):
    """The formulas of the module's docstring, in the kernels that were built."""

    @staticmethod
    def forward(ctx, built: Built, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, random: Tensor | None, queries: Rows, keys: Rows,
                left: int, right: int, rate: float, scale: float) -> Tensor:
        out, lse = torch.empty_like(q), torch.empty(q.shape[1], len(q), device=q.device)
        added = None if bias is None else bias.to(q.dtype).contiguous()
        where = geometry(q, k, added, queries, keys, left, right)
        built.launch("forward", "forward", grid(queries, q.shape[1], built.rows), out, lse, q, k, v, added, random, *where, scale, rate)
        ctx.save_for_backward(q, k, v, added, random, out, lse)
        ctx.built, ctx.queries, ctx.keys, ctx.where, ctx.numbers = built, queries, keys, where, (scale, rate)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        q, k, v, bias, random, out, lse = ctx.saved_tensors
        built, queries, keys, dout, dbias = ctx.built, ctx.queries, ctx.keys, whole(dout), None
        owners, (tokens, H, *rest) = ctx.where[:4], ctx.where[4:]
        delta, dq, dk, dv = torch.empty_like(lse), torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        given = q, k, v, bias, dout, lse, delta, random, *owners, tokens
        built.parts["backward"]("attention_delta", (-(-lse.numel() // DELTA_ROWS), 1, 1), (16 * DELTA_ROWS, 1, 1), delta, out, dout, tokens, H)
        built.launch("backward", "dkv", grid(keys, k.shape[1], built.rows), dk, dv, *given, len(k), H, *rest, *ctx.numbers, shared=built.shared_dkv)
        built.launch("backward", "dq", grid(queries, H, built.rows), dq, *given, H, *rest, *ctx.numbers, shared=built.shared_dq)
        if ctx.needs_input_grad[4]:
            dbias = torch.empty(bias.shape, device=q.device)
            blocks = -(-bias.shape[2] // built.rows), -(-bias.shape[3] // built.tile), H * len(bias)
            built.launch("bias", "dbias", blocks, dbias, *given, H, *rest, *ctx.numbers, len(queries.begin))
            dbias = dbias.to(ctx.bias_dtype)
        return None, dq, dk, dv, dbias, *(None,) * 7


def built_for(operation: str, q: Tensor, present: tuple, limit: str, bias: Tensor | None, rate: float, trained: bool) -> Built | None:
    """The kernels of a call: on tensor cores where there are some; None where plain PyTorch has to do it."""
    Dh = q.shape[-1]
    wanted = ["forward"] + ["backward"] * trained + ["bias"] * (trained and bias is not None and bias.requires_grad)
    constants = {"HEAD_DIM": Dh, "DROPOUT": int(rate > 0)}
    if tensor_cores(q):
        strips = 2 if Dh <= NARROW and bias is None and rate == 0 and roomy(q.device) else 1
        lean = trained and Dh > 112 and not roomy(q.device)
        rows, tile = (64, 16) if lean else (128, 32 * strips)
        constants |= {"STRIPS": strips, "BIAS": int(bias is not None), "LEAN": int(lean)}
        names, block = [f"attention_{part}.cu" for part in wanted], (rows, 2 * rows // strips, tile, 2 * (Dh + 8) * ((1 + lean) * rows + 4 * tile), 0)
    else:
        shared = 4 * (Dh + 4) * 2 * (16 + 32)
        names, block = ["attention_simple.cu"] * len(wanted), (16, 128, 32, shared, shared)
    parts = [pick(operation, name, *present, limit=limit, **constants) for name in names]
    ready = [one for one in parts if one is not None]
    return Built(dict(zip(wanted, ready, strict=True)), *block) if len(ready) == len(wanted) else None


def limit_of(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, queries: Rows, keys: Rows, trained: bool) -> str:
    """What keeps these tensors from the kernels."""
    Dh = q.shape[-1]
    return ("an empty batch" if 0 in (q.numel(), k.numel(), queries.longest, keys.longest, len(queries.begin)) else
            f"q is {q.dtype}, k {k.dtype} and v {v.dtype}; a kernel reads one dtype" if not q.dtype == k.dtype == v.dtype else
            f"Dh={Dh}; the kernels are for multiples of 16 up to {WIDEST}" if Dh % 16 or Dh > WIDEST else
            f"{q.dtype} and a bias with gradients; those need tensor cores for {q.dtype}, which are not there"
            if trained and bias is not None and bias.requires_grad and not tensor_cores(q) else "")


def roomy(device: torch.device) -> bool:
    """Whether the registers are enough for 32 rows a warp, and shared memory for any width: not on compute capability 7.5."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def tensor_cores(q: Tensor) -> bool:
    """Whether there are some for this dtype: float16 from compute capability 7.5 on, bfloat16 from 8.0; in the emulator always."""
    needed = {torch.float16: (7, 5), torch.bfloat16: (8, 0)}
    return q.dtype in needed and (q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) >= needed[q.dtype])


def attention_rows(operation: str, q: Float[Tensor, "N H Dh"], k: Float[Tensor, "M K Dh"], v: Float[Tensor, "M K Dh"], queries: Rows, keys: Rows,
                   causal: bool, window: int | None, bias: Tensor | None, rate: float, scale: float | None, random: Tensor | None) -> Float[Tensor, "N H Dh"]:
    (_, H, Dh), K = q.shape, k.shape[1]
    if H % K:
        raise ValueError(f"{H} heads of queries and {K} of keys; each head of keys serves equally many of queries: give k and v a divisor of {H} heads")
    B, T, S = len(queries.begin), queries.longest, keys.longest
    if bias is not None and (len(bias) not in (1, B) or bias.shape[1] != H or bias.shape[2] < T or bias.shape[3] < S):
        raise ValueError(f"a bias of {tuple(bias.shape)}; (1 or {B}, {H}, {T} or more, {S} or more) is needed: one number for each head, query and key")
    left = EVERYTHING if window is None else window - 1
    right = 0 if causal else left
    scale = 1 / math.sqrt(Dh) if scale is None else scale
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, bias))
    limit = limit_of(q, k, v, bias, queries, keys, trained)
    q, k, v = whole(q), whole(k), whole(v)
    built = built_for(operation, q, (q, k, v, bias, queries.begin, keys.begin), limit, bias, rate, trained)
    if built is None:
        return reference(q, k, v, queries, keys, left, right, bias, rate, scale)
    if rate > 0 and random is None:
        random = draw(q.device)
    return AttentionRows.apply(built, q, k, v, bias, random, queries, keys, left, right, rate, scale)


def check_offsets(name: str, offsets: Int[Tensor, "B1"], longest: int, rows: int) -> None:
    """Refuse offsets of rows that are not there; on a CPU only: asking a GPU would make the host wait."""
    if device_of(offsets) == "cpu" and not bool((offsets[0] == 0) & (offsets[-1] <= rows) & (offsets.diff() >= 0).all() & (offsets.diff() <= longest).all()):
        lengths = offsets.diff().tolist() or [0]
        raise ValueError(f"attention_packed: {name} from {int(offsets[0])} to {int(offsets[-1])} with sequences of {min(lengths)} to {max(lengths)} rows, of {rows} rows and a "
                         f"longest of {longest}; sequences lie one after another from row 0: give the running sums of their lengths, and the largest length")


def attention_packed(q: Float[Tensor, "N H Dh"], k: Float[Tensor, "M K Dh"], v: Float[Tensor, "M K Dh"], offsets: Int[Tensor, "B1"], longest: int, *,
                     key_offsets: Int[Tensor, "B1"] | None = None, longest_key: int | None = None, causal: bool = False, window: int | None = None,
                     bias: Float[Tensor, "_ H _ _"] | None = None, rate: float = 0.0, scale: float | None = None,
                     random: Tensor | None = None) -> Float[Tensor, "N H Dh"]:
    """softmax(scale q k^T + bias) v within each sequence; no padding anywhere.

    Args:   offsets: sequence s owns rows offsets[s] .. offsets[s + 1] of q (int32, on the device); rows behind the last get zeros;
            longest: a bound of the host for the length of a sequence; key_offsets, longest_key: those of k and v (default: as q);
            causal, window: query i sees key j <= i, and |i - j| < window; bias: (1 or B, H, longest or more, longest_key or more), its gradient too;
            rate: probability in [0, 1) of dropping a weight; scale: positive (default 1 / sqrt(Dh));
            random: (seed, step) of the kernel's dropout, two int64 on the device (default: drawn).
    Raises: ValueError for heads that k and v cannot share, a bias of another shape, and on a CPU for offsets of rows that are not there.
    """
    longest_key = longest if longest_key is None else longest_key
    check_offsets("offsets", offsets, longest, len(q))
    check_offsets("key_offsets", offsets if key_offsets is None else key_offsets, longest_key, len(k))
    queries = Rows.packed(offsets, longest)
    keys = queries if key_offsets is None else Rows.packed(key_offsets, longest_key)
    return attention_rows("attention_packed", q, k, v, queries, keys, causal, window, bias, rate, scale, random)


def attention_padded(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B K S Dh"], v: Float[Tensor, "B K S Dh"], keep: Bool[Tensor, "B S"] | Rows | None = None, *,
                     asking: Bool[Tensor, "B T"] | Rows | None = None, causal: bool = False, window: int | None = None, bias: Float[Tensor, "_ H T S"] | None = None,
                     rate: float = 0.0, scale: float | None = None, random: Tensor | None = None) -> Float[Tensor, "B H T Dh"]:
    """The same for a padded batch: padding is skipped, and gets zeros. Memory of q, k, v and out is best (B, T, H, Dh); anything else is copied.

    Args:   keep: which keys are tokens, one run in each row (default: all), or `Rows.padded` of that, made once for many calls; asking: which queries are, in
            the same way. By default queries are the last T of the S keys, as with a cache; in cross-attention they are a text of their own: give its mask.
    """
    (B, H, T, Dh), S = q.shape, k.shape[2]
    if asking is None and T != S and isinstance(keep, Tensor):
        asking = keep[:, S - T :]
    keys = rows_of(keep, B, S, q.device)
    queries = keys if asking is None and T == S else rows_of(asking, B, T, q.device)
    flat_q, flat_k, flat_v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    out = attention_rows("attention_padded", flat_q, flat_k, flat_v, queries, keys, causal, window, bias, rate, scale, random)
    return out.view(B, T, H, Dh).transpose(1, 2)


def rows_of(tokens: Bool[Tensor, "B T"] | Rows | None, B: int, T: int, device: torch.device) -> Rows:
    """Raises: ValueError for rows of another batch."""
    rows = Rows.full(B, T, device) if tokens is None else Rows.padded(tokens) if isinstance(tokens, Tensor) else tokens
    if (len(rows.begin), rows.pitch) != (B, T):
        raise ValueError(f"tokens are named for {len(rows.begin)} texts of {rows.pitch} places, the batch has {B} of {T}: give a mask (or Rows.padded of one) of this batch")
    return rows
