"""Embeddings: rows of up to three tables, added, normalised and dropped out in one pass over memory.

    h_n = scale tokens[id_n] + positions[position_n] + types[type_n]       y = dropout((h - mean h) / sqrt(var h + eps) * weight + bias)

    d = dy keep / (1 - rate)       g = d weight       dh = rstd (g - mean g - xhat mean(g xhat))       dweight = sum_n d xhat       dbias = sum_n d
    dtokens[v] = scale sum_{n: id_n = v} dh_n         and so for the other tables, without scale

Neither h nor a dropout mask is kept: backward reads the tables again, and asks Philox for the same numbers. Gradients of tables have the same bits on every
run, which those of `torch.nn.functional.embedding` on a GPU have not: the ids are sorted, and the rows of equal ids added up in order.
Source: Devlin et al. 2019, figure 2 (the sum); Vaswani et al. 2017, section 3.4 (scale). Kernel: kernels/embedding.cu.
"""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, layer_norm

from .dispatch import draw, pick
from .dropout import dropout
from .kernels import Kernels, vector, whole
from .norm import WARPS, WIDEST, launch_shape

RUN = 64                                                    # entries that one block adds up; as in embedding.cu
Lookup = tuple[Int[Tensor, "..."], Float[Tensor, "_ D"]]     # ids, and the table they are rows of


def reference(lookups: list[Lookup], weight: Float[Tensor, "D"] | None, bias: Float[Tensor, "D"] | None, eps: float, scale: float = 1.0,
              rate: float = 0.0) -> Float[Tensor, "*N D"]:
    """y in plain PyTorch."""
    (ids, table), *others = lookups
    h = embedding(ids, table) * scale if scale != 1 else embedding(ids, table)
    for ids, table in others:
        h = h + embedding(ids, table)
    return dropout(h if weight is None else layer_norm(h, h.shape[-1:], weight, bias, eps), rate)


def cost(N: int, D: int, tables: int = 3, sizes: int = 0, bytes_per_number: int = 4) -> dict[str, int]:
    """Forward reads a row of each table and writes y; backward reads the rows and dy, writes dh, reads dh for each table and writes `sizes` rows (all tables')."""
    return {"bytes_forward": (tables + 1) * N * D * bytes_per_number, "bytes_backward": (2 * tables + 2) * N * D * bytes_per_number + sizes * D * bytes_per_number,
            "flop_forward": (8 + tables) * N * D, "flop_backward": (14 + 2 * tables) * N * D}


def table_gradient(k: Kernels, pieces_of: int, dh: Float[Tensor, "N D"], ids: Int[Tensor, "N"], table: Float[Tensor, "V D"], scale: float) -> Float[Tensor, "V D"]:
    """scale * the sums of dh over equal ids. Each launch leaves the runs that cross its blocks' borders to the next, of at most N / 32 rows."""
    (n, columns), (ids, order) = dh.shape, ids.sort(stable=True)
    threads = min(128, -(-columns // pieces_of // 32) * 32)
    dtable, earlier, tiles, blocks = torch.empty_like(table).zero_(), None, -(-columns // (threads * pieces_of)), -(-n // RUN)
    while True:
        rest, rest_ids = torch.empty(2 * blocks, columns, device=dh.device), torch.empty(2 * blocks, dtype=torch.int64, device=dh.device)
        k("add_runs", (blocks, tiles, 1), (threads, 1, 1), dtable, rest, rest_ids, dh, earlier, ids, order if earlier is None else None, n, columns, len(table), scale)
        if blocks == 1:
            return dtable
        earlier, ids, n, blocks = rest, rest_ids, 2 * blocks, -(-2 * blocks // RUN)


class EmbeddingSum(torch.autograd.Function):
    """The formulas of the module's docstring, in the kernels of embedding.cu."""

    @staticmethod
    def forward(ctx, k: Kernels, pieces_of: int, weight: Tensor | None, bias: Tensor | None, eps: float, scale: float, rate: float, random: Tensor | None,
                *lookups: Tensor | None) -> Tensor:
        ids, table = lookups[:2]
        assert ids is not None and table is not None
        (rows,), columns = ids.shape, table.shape[1]
        threads, _ = launch_shape(columns, pieces_of)
        y = torch.empty(rows, columns, dtype=table.dtype, device=table.device)
        mean, rstd = (torch.empty(rows, device=y.device) if weight is not None else None for _ in range(2))
        wide = None if weight is None else weight.float()
        k("embedding_forward", (rows, 1, 1), (threads, 1, 1), y, mean, rstd, *arguments(lookups), wide, None if bias is None else bias.float(), random,
          columns, scale, rate, eps)
        ctx.save_for_backward(mean, rstd, wide, random, *lookups)
        ctx.run, ctx.scale, ctx.rate = (k, pieces_of, threads, rows, columns), scale, rate
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        mean, rstd, weight, random, *lookups = ctx.saved_tensors
        k, pieces_of, threads, rows, columns = ctx.run
        dh, blocks = whole(dy), min(rows, WARPS * 32 // threads)
        shares = [None if dtype is None else torch.empty(blocks, columns, device=dy.device) for dtype in ctx.dtypes]
        if weight is not None or ctx.rate > 0:
            dh = torch.empty_like(dh)
            k("embedding_backward", (blocks, 1, 1), (threads, 1, 1), dh, *shares, whole(dy), mean, rstd, *arguments(lookups), weight, random, rows, columns,
              ctx.scale, ctx.rate)
        of_norm = [None if of is None else of.sum(0).to(dtype) for of, dtype in zip(shares, ctx.dtypes, strict=True)]
        of_tables: list[Tensor | None] = []
        for i, (ids, table) in enumerate(zip(lookups[::2], lookups[1::2], strict=True)):
            wanted = ctx.needs_input_grad[9 + 2 * i]
            of_tables += [None, table_gradient(k, pieces_of, dh, ids, table, 1.0 if i else ctx.scale) if wanted else None]
        return None, None, *of_norm, None, None, None, None, *of_tables


def arguments(lookups: tuple | list) -> list:
    """(table, ids, rows of the table) for each of the kernel's three tables."""
    return [value for ids, table in zip(lookups[::2], lookups[1::2], strict=True) for value in (table, ids, 0 if table is None else len(table))]


def embedding_sum(lookups: list[Lookup], weight: Float[Tensor, "D"] | None = None, bias: Float[Tensor, "D"] | None = None, eps: float = 1e-5,
                  scale: float = 1.0, rate: float = 0.0, random: Tensor | None = None) -> Float[Tensor, "*N D"]:
    """y = dropout(LayerNorm(the sum of a row of each table)).

    Args:   lookups: (ids, table) of tokens, then positions and types, if the model has them; ids are broadcast to those of the first. scale: of the first.
            weight: None: no norm; rate, random: as layer_norm_residual.
    Raises: ValueError for no lookup or more than three. An id outside its table is an error in plain PyTorch, and NaN in a kernel.
    """
    if not 1 <= len(lookups) <= 3:
        raise ValueError(f"{len(lookups)} lookups; one to three tables are added: give (ids, table) of tokens, positions, types")
    shape, tables = lookups[0][0].shape, [table for _, table in lookups]
    columns = tables[0].shape[1]
    pieces_of = vector(columns, tables[0])
    _, each = launch_shape(columns, pieces_of)
    dtypes = {table.dtype for table in tables}
    limit = (f"D={columns}; a row of more than {WIDEST} does not fit the registers" if columns > WIDEST else "an empty batch" if shape.numel() == 0 else
             f"tables of {', '.join(sorted(map(str, dtypes)))}; a kernel reads one dtype" if len(dtypes) > 1 else "")
    k = pick("embedding_sum", "embedding.cu", *tables, *(ids for ids, _ in lookups), weight, bias, limit=limit, VECTOR=pieces_of, PER_THREAD=each)
    if k is None:
        return reference(lookups, weight, bias, eps, scale, rate)
    if rate > 0 and random is None:
        random = draw(tables[0].device)
    flat = [t for ids, table in lookups for t in (ids.expand(shape).reshape(-1).long().contiguous(), whole(table))] + [None] * (6 - 2 * len(lookups))
    return EmbeddingSum.apply(k, pieces_of, weight, bias, eps, scale, rate, random, *flat).view(*shape, columns)
