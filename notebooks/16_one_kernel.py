# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One kernel, from the formula to tensor cores
#
# A GPU is fast at two things: multiplying small matrices, and reading memory in long rows. Most of a transformer's
# other operations are slow for one reason: they read and write the same numbers again and again. This notebook takes
# one of them, a norm, from its formula to a kernel of a few lines, runs it on a CPU in an emulator of a GPU's threads,
# breaks it, looks at how a tensor core holds a matrix, and ends with what fits on a card.
#
# You need: 04_block_body_head, and a little C. Reading time: about 18 minutes. Letters for shapes: `N` rows, `D` width.
#
# The emulator needs the compiler `g++`; without one the cells that run kernels say so and go on. No number here was
# measured on a GPU.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import re
import shutil
import warnings

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.ops import layer_norm_residual, norm, why_not
from minitransfer.ops.kernels import Kernels, folder

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
COMPILER = shutil.which("g++") is not None

# %% [markdown]
# ## 1. What an operation costs
#
# In every block the output of a part is added to the stream, and the sum is normalised (04). As PyTorch operations one
# after another, forward only, each of which reads its inputs from memory and writes its result there:
#
# | operation | reads | writes |
# |---|---|---|
# | dropout of x | 1 | 1 (and a mask) |
# | residual + x | 2 | 1 |
# | LayerNorm | 1 | 1 |
#
# Seven times `N x D` numbers, where four are enough: read x and the residual, write the sum and the norm. `cost` of an
# operation says what its kernel moves and computes:

# %% tags=["compare"]
N, D, size = 32_768, 768, 2                                            # rows, width, bytes a number
one_by_one, fused = 7 * N * D * size, norm.cost(N, D, size)["bytes_forward"]
flop = norm.cost(N, D, size)["flop_forward"]
print(f"one by one {one_by_one / 1e6:.0f} MB, in one pass {fused / 1e6:.0f} MB, {flop / 1e6:.0f} million operations")
print(f"operations for each byte: {flop / fused:.1f}")

# %% [markdown]
# What a card could do at best is set by two numbers: how many bytes a second it reads, how many operations a second it
# does. An operation with few operations a byte is limited by memory however clever its arithmetic (the roofline model).

# %%
cards = {"T4": (320e9, 65e12), "A100": (2.0e12, 312e12), "H100": (3.35e12, 989e12)}                        # bytes/s and 16-bit operations/s, as the vendor has them
work = {"norm": flop / fused, "D x D product, 1 row": 2 * D * D / (D * D * size), "D x D product, all rows": 2 * N * D * D / (size * (2 * N * D + D * D))}
fig, ax = plt.subplots(figsize=(6, 2.6))
intensity = torch.logspace(-1, 4, 200)
for (name, (bandwidth, rate)), colour in zip(cards.items(), (GREY, "#7aa6d6", BLUE), strict=True):
    ax.plot(intensity, torch.minimum(intensity * bandwidth, torch.tensor(rate)) / 1e12, color=colour, label=name)
for name, x in work.items():
    ax.axvline(x, color=ORANGE, linewidth=0.8)
    ax.text(x * 1.1, 0.15, name, rotation=90, va="bottom", fontsize=7, color=ORANGE)
ax.set(xscale="log", yscale="log", xlabel="operations for each byte", ylabel="TFLOP/s at best")
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# The norm stands far on the left: it will never reach a hundredth of what the card computes, and the only way to make
# it faster is to move fewer bytes. So the goal for such a kernel is not TFLOP/s but a share of the rate at which the
# card copies memory.
#
# ## 2. Who does what
#
# A GPU runs **blocks** of threads. Threads of a block can share a little fast memory and wait for each other; 32 of
# them, a **warp**, go in step. In our norm a block takes one row, and a thread takes pieces of neighbouring numbers, so
# that a warp reads whole lines of memory:

# %%
columns, vector, threads = 96, 4, 16
owner = torch.arange(columns) // vector % threads                       # which thread takes which number
fig, axes = plt.subplots(2, 1, figsize=(8, 1.7), sharex=True)
stretches = torch.arange(columns) // (columns // threads)
for ax, who, title in ((axes[0], owner, "pieces of 4 neighbours: 16 threads read 64 numbers in a row"),
                       (axes[1], stretches, "a stretch for each thread: at any moment 16 places far apart")):
    ax.pcolormesh(who[None].float(), cmap="viridis", edgecolors="white", linewidth=0.3)
    ax.set(title=title, yticks=[])
axes[1].set(xlabel="number of the row (colour: thread)")
plt.tight_layout()
plt.show()

# %% [markdown]
# The kernel itself, forward. Read it slowly; every line is one of the steps of the formula:

# %%
source = (folder() / "norm.cu").read_text(encoding="utf-8")
print(re.search(r'extern "C" __global__ void norm_forward.*?\n}\n', source, re.S)[0])

# %% [markdown]
# * `value` lives in registers: x and the residual are read once, and the row is there for the mean, the variance and
#   the result.
# * `block_sum` adds over all threads: within a warp by passing numbers from thread to thread, between warps through
#   shared memory.
# * `keep_factors` makes dropout's random numbers from (seed, step, place). The backward pass asks again: no mask is
#   stored.
# * Everything is summed in 32 bits, whatever the inputs are.
#
# ## 3. Run it
#
# In the emulator a thread is a fiber with a stack of its own, and one goes on until it meets a barrier. The same source
# runs, unchanged. `why_not` says whether a call took a kernel:

# %% tags=["compare"]
import os

x, residual, weight, bias = torch.randn(5, 97), torch.randn(5, 97), torch.randn(97), torch.randn(97)
plain, total = layer_norm_residual(x, residual, weight, bias)
print("without:", why_not("layer_norm_residual"))
if COMPILER:
    os.environ["MINITRANSFER_KERNELS"] = "emulate"
    y, total_too = layer_norm_residual(x, residual, weight, bias)
    print("with:   ", why_not("layer_norm_residual") or "the kernel ran")
    print("equal within 1e-5:", torch.allclose(y, plain, atol=1e-5), torch.allclose(total_too, total, atol=1e-6))
    del os.environ["MINITRANSFER_KERNELS"]

# %% [markdown]
# ## 4. Break it
#
# Why the barriers in `block_sum`? Each warp leaves its sum in shared memory, then the first warp adds these up. Without
# the first barrier it may add them before they are there. On a real GPU that goes well nearly always, and wrong on some
# other day. The emulator lets threads run in different orders, and fills shared memory with NaN:

# %%
def mean_with(common):
    """A kernel that writes the mean of each row, with this text in the place of common.cuh."""
    text = common + """
extern "C" __global__ void row_mean(float* y, const float* x, int columns) {
  __shared__ float scratch[33];
  float sum = 0.0f;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += x[(u64)blockIdx.x * columns + c];
  float mean = block_sum(sum, scratch) / columns;
  if (threadIdx.x == 0) y[blockIdx.x] = mean;
}
"""
    return Kernels("row_mean.cu", text=text)


if COMPILER:
    x = torch.randn(4, 300)
    common = (folder() / "common.cuh").read_text(encoding="utf-8").replace("#pragma once", "")
    start = common.index("float block_sum(")
    first = common.index("__syncthreads();", start)
    broken = common[:first] + common[first + len("__syncthreads();"):]
    for name, text in (("as it is", common), ("without the first barrier", broken)):
        k, worst = mean_with(text), []
        for order in (0, 1, 7):
            k.order = order
            y = torch.empty(4)
            k("row_mean", (4, 1, 1), (128, 1, 1), y, x, 300)
            worst.append("right" if torch.allclose(y, x.mean(1), atol=1e-5) else "wrong")
        print(f"{name:26}", ", ".join(f"order {order}: {word}" for order, word in zip((0, 1, 7), worst, strict=True)))

# %% [markdown]
# An error that shows in one order of threads and not in another is the usual error of a kernel. So every kernel of the
# project is run in several orders, each of its barriers is taken out once to see that a test notices, and its memory
# stands between forbidden pages.
#
# ## 5. Tensor cores
#
# A product has many operations a byte, and a GPU has units for it: one instruction multiplies a 16 x 16 by a 16 x 8
# matrix. The matrices are not in memory then but **spread over the registers of a warp**: each of 32 threads holds
# eight numbers of the first, four of the second, four of the result. Which ones is fixed by the hardware:

# %%
def fragment_of_a(lane):
    """The (row, column) of the eight numbers of the 16 x 16 matrix that a thread of the warp holds (PTX: mma.m16n8k16)."""
    g, t = lane // 4, lane % 4
    return [(g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)) for i in range(8)]


def fragment_of_c(lane):
    """The same for the four numbers of the 16 x 8 result."""
    g, t = lane // 4, lane % 4
    return [(g + 8 * (i // 2), 2 * t + i % 2) for i in range(4)]


fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), width_ratios=(2, 1))
for ax, shape, fragment, title in ((axes[0], (16, 16), fragment_of_a, "A: which thread holds what"), (axes[1], (16, 8), fragment_of_c, "the result")):
    held = torch.zeros(shape)
    for lane in range(32):
        for row, column in fragment(lane):
            held[row, column] = lane
    ax.pcolormesh(held, cmap="viridis", edgecolors="white", linewidth=0.5)
    for row in range(16):
        for column in range(shape[1]):
            ax.text(column + 0.5, row + 0.5, int(held[row, column]), ha="center", va="center", fontsize=6, color="white")
    ax.set(title=title, xticks=[], yticks=[], ylim=(16, 0), aspect="equal")
plt.tight_layout()
plt.show()

# %% [markdown]
# The result has the layout of A's upper half: what one product leaves in registers can go into the next without
# touching memory. Attention lives from that: scores, softmax, and the product with the values, all in registers
# (`kernels/attention_forward.cu`; the easy version to read first is `attention_simple.cu`).
#
# ## 6. What fits on your card
#
# Before a run: `mt.plan` rehearses a step on tensors without numbers and counts what it would take. Predictions, not
# measurements:

# %%
llama = mt.ModelConfig(vocab_size=32_000, d_model=4096, n_layers=32, n_heads=32, d_ff=11_008, max_len=4096, norm="rms", norm_position="pre",
                       activation="silu", gated=True, qkv_bias=False, o_bias=False, mlp_bias=False, positions="none", rotary=mt.config.Rotary(), causal=True,
                       n_token_types=0, embed_norm=False, final_norm=True, pooler=False, tied=False)
from minitransfer.transfer import lora

print("a step of a 7B LLaMA, one row of 512 tokens, on a card of 8 GB")
for name, strategy in (("full", "full"), ("LoRA", lora(r=16)), ("LoRA over 4 bits", lora(r=16, base="nf4"))):
    found = mt.plan(llama, strategy, batch_size=1, length=512, precision="bf16", checkpointing=True, card="8GB")
    print(f"{name:17} {found.memory / 2**30:6.1f} GiB  {'fits' if found.fits else 'does not fit'}")

# %% [markdown]
# ## What to take with you
#
# * Few operations a byte: move fewer bytes. Many: use tensor cores.
# * A kernel is a decision who takes which numbers, and where they live in between.
# * Barriers are part of the arithmetic. Test with several orders of threads.
# * Count before you run.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 16 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The roofline.** The shortest time in seconds for `bytes` and `flop` on a card of `bandwidth` bytes/s and `rate`
# operations/s, if both go on at once.

# %%
def shortest(bytes, flop, bandwidth, rate):
    raise NotImplementedError


mt.check("16", shortest)

# %% [markdown]
# **2. The bytes of a step.** How many bytes do weights, gradients and AdamW's two moments take, all in 32 bits, for a
# model of `n` numbers of which `trained` train?

# %%
def state_bytes(n, trained):
    raise NotImplementedError


mt.check("16", state_bytes)

# %% [markdown]
# **3. The second matrix.** The (row, column) of the four numbers of the 16 x 8 matrix B that thread `lane` holds. With
# `g = lane // 4` and `t = lane % 4`: all are in column `g`; the first two in rows `2 t` and `2 t + 1`, the others eight
# rows below. The answer multiplies two matrices, thread by thread.

# %%
def fragment_of_b(lane):
    raise NotImplementedError


mt.check("16", fragment_of_b)

# %% [markdown]
# **4. A kernel of yours.** Return the source of a kernel that computes RMSNorm, `y = x / sqrt(mean(x^2) + eps) *
# weight`, a block for each row, with any number of threads that is a multiple of 32: `extern "C" __global__ void
# rms(float* y, const float* x, const float* weight, int columns, float eps)`. `#include "common.cuh"` has `block_sum`.
# It is run in three orders of threads (needs g++).

# %%
def rms_kernel():
    raise NotImplementedError


mt.check("16", rms_kernel)

# %% [markdown]
# ## The same in transformers
#
# The model that uses the norm of this notebook, in the emulator, beside `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers") and COMPILER:
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours, ids = mt.Model.from_pretrained("mini-bert", head="none").eval(), torch.randint(10, 1000, (1, 7), generator=torch.Generator().manual_seed(0))
    ours.save_pretrained("for-transformers")
    theirs = transformers.AutoModel.from_pretrained("for-transformers", attn_implementation="eager").eval()
    os.environ["MINITRANSFER_KERNELS"] = "emulate"
    with torch.no_grad():
        far = (ours(input_ids=ids).last_hidden_state - theirs(input_ids=ids).last_hidden_state).abs().max()
    print("the norm:", why_not("layer_norm_residual") or "took its kernel", "| states equal within 1e-5:", bool(far < 1e-5))
    del os.environ["MINITRANSFER_KERNELS"]
    assert far < 1e-5
