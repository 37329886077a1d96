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
# # LoRA and its family
#
# Tuning changes every number of a model, and every task then needs a copy of all of them. LoRA leaves the matrices
# alone and adds to each a small change `B A` of low rank: some thousand numbers a task. This notebook builds it by
# hand, shows what a change of low rank can and cannot be, counts what the articles count wrong, and puts its relatives
# beside it.
#
# You need: 04_block_body_head, 09_head_to_full. Reading time: about 15 minutes. Letters for shapes: `B` texts, `T`
# tokens, `in`, `out` the widths of a Linear, `R` the rank.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import warnings

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.text import read_rows
from minitransfer.transfer import lora

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
tok = mt.Tokenizer.from_pretrained("mini-bert")
train = read_rows(mt.samples.path("reviews.train.tsv"))
test = read_rows(mt.samples.path("reviews.test.tsv"))
EPOCHS = 5


def fresh():
    return mt.Model.from_pretrained("mini-bert", head="sequence", labels=["negative", "positive"], seed=0)


# %% [markdown]
# ## 1. What a low rank is
#
# A matrix of rank `R` is a product of a tall and a wide one: `B` (out, R) times `A` (R, in). It holds `R (in + out)`
# numbers instead of `in x out`, and can point in `R` directions only. How much of a real change would fit? Tune a small
# BERT in full, take the change of a matrix, and look at its singular values: the square of each is the part of the
# change that lies in one direction.

# %%
full = mt.finetune(fresh(), tok, train=train, validation=test, strategy="full", epochs=EPOCHS, batch_size=16, lr=1e-4, progress=False)
before, after = dict(fresh().named_parameters()), dict(full.model.named_parameters())
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4))
name = "blocks.2.mlp.up_proj.weight"
change = (after[name] - before[name]).detach()                         # (out, in)
for matrix, colour, label in ((change, BLUE, "the change"), (torch.randn(change.shape) * change.std(), GREY, "a random one of its size")):
    squares = torch.linalg.svdvals(matrix) ** 2
    axes[0].plot(squares.cumsum(0) / squares.sum(), color=colour, label=label)
axes[0].set(title=name, xlabel="directions (rank)", ylabel="share of the change", ylim=(0, 1))
axes[0].legend(frameon=False, loc="lower right")
weights = [n for n in before if n.endswith("_proj.weight")]
shares = []
for n in weights:
    squares = torch.linalg.svdvals((after[n] - before[n]).detach()) ** 2
    shares.append(float(squares[:8].sum() / squares.sum()))
axes[1].bar(range(len(weights)), shares, color=BLUE)
axes[1].set(title="share that rank 8 holds, by matrix", xlabel="matrix, from the lowest block to the highest", ylim=(0, 1))
plt.tight_layout()
plt.show()

# %% [markdown]
# The change is far from random: a few directions hold a large part of it. They do not hold all of it, and LoRA does not
# approximate this change; it looks for another one, of low rank from the start, that lowers the loss as well.
#
# ## 2. By hand
#
# $$y = x W^T + b + \frac{\alpha}{R}\,(x A^T)\, B^T$$
#
# `W` is frozen. `A` starts random and `B` at zero, so at the first step nothing has changed, and `x` passes through `R`
# numbers on its way: the large matrix `B A` is never made.

# %% tags=["compare"]
torch.manual_seed(0)
x, W, b = torch.randn(2, 5, 12), torch.randn(7, 12), torch.randn(7)    # (B, T, in), (out, in), (out,)
R, alpha = 3, 6
A, B = torch.randn(R, 12), torch.zeros(7, R)                           # (R, in), (out, R)
narrow = x @ A.T                                                       # (B, T, R)
y = x @ W.T + b + alpha / R * narrow @ B.T                             # (B, T, out)
print("through", tuple(narrow.shape), "| nothing has changed:", torch.equal(y, x @ W.T + b))
B = torch.randn(7, R)
y = x @ W.T + b + alpha / R * (x @ A.T) @ B.T
merged = x @ (W + alpha / R * B @ A).T + b
print("the same as with the matrix W + s B A:", torch.allclose(y, merged, atol=1e-4))

# %% [markdown]
# In the engine: `add_lora` puts the two matrices beside the chosen Linears and freezes everything else, apart from a
# new head. Targets are the same words for every family.

# %% tags=["compare"]
model = fresh()
plain = model.eval()(**tok(["Not bad at all."])).logits
report = mt.add_lora(model, r=8, alpha=16, targets="q,v")
print(f"{report.trainable:,} of {report.total.parameters:,} parameters train")
print([name for name, p in model.named_parameters() if p.requires_grad and "blocks.0" in name])
print("the same answer as before, bit for bit:", torch.equal(model.eval()(**tok(["Not bad at all."])).logits, plain))

# %% [markdown]
# **Why not both at zero?** The gradient of `A` is a product with `B`, and that of `B` one with `A`. At the start `B` is
# zero, so `A` has no gradient yet and `B` has one. With both at zero nothing would ever move.

# %% tags=["compare"]
batch = tok(["Not bad at all.", "We will not come again."])
model.train()(**batch, labels=torch.tensor([1, 0])).loss.backward()
layer = model.blocks[0].attn.q_proj
print("gradient of A is zero:", bool((layer.lora_A.grad == 0).all()), "| of B:", bool((layer.lora_B.grad == 0).all()))

# %% [markdown]
# ## 3. Does it learn as much?

# %%
runs = {"full": full}
for label, strategy, lr in (("head", "head", 1e-3), ("LoRA", lora(r=8, targets="q,v"), 2e-3)):
    runs[label] = mt.finetune(fresh(), tok, train=train, validation=test, strategy=strategy, epochs=EPOCHS, batch_size=16, lr=lr, progress=False)
print(f"{'':20} trained     accuracy and its 95 % interval, {len(test)} reviews")
for label, run in runs.items():
    m = run.metrics
    print(f"{label:20} {run.report.trainable:9,}   {m['accuracy']:.2f} ({m['accuracy_low']:.2f} to {m['accuracy_high']:.2f})")

# %% [markdown]
# With so few reviews and so small a model the intervals overlap, that of the head alone too: these numbers do not say
# which way is better. That LoRA comes near to full tuning with a hundredth of the numbers is shown where there is
# enough to measure, in `docs/results.md`: on 2,000 sentences of sst2, three seeds each, beside `peft`.
#
# ## 4. Merging
#
# Before use the change can be added to the matrix. Then there is no extra work at all, and the file is an ordinary
# checkpoint; unmerging subtracts it again.

# %% tags=["compare"]
tuned = runs["LoRA"].model.eval()
answers = tuned(**batch).logits.detach()
mt.merge_lora(tuned)
print("merged, the same answers:", torch.allclose(tuned(**batch).logits, answers, atol=1e-4))
mt.unmerge_lora(tuned)
print("unmerged again:          ", torch.allclose(tuned(**batch).logits, answers, atol=1e-4))

# %% [markdown]
# Unmerged, several changes can live on one body, and each row of a batch may have its own:

# %% tags=["compare"]
body = mt.Model.from_pretrained("mini-bert").eval()
for which in ("law", "news"):
    mt.add_lora(body, r=4, name=which)
    for name, p in body.named_parameters():
        if name.endswith(f"lora_B_{which}"):
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(len(which)))
texts = ["a contract", "a text", "a headline"]
with torch.no_grad(), mt.transfer.use_adapter(body, ["law", None, "news"]):
    together = body(**tok(texts)).logits
for i, which in enumerate(("law", None, "news")):
    with torch.no_grad(), mt.transfer.use_adapter(body, which):
        alone = body(**tok(texts)).logits[i]
    print(f"row {i} ({which}): as if all rows had it: {torch.allclose(together[i], alone, atol=1e-5)}")

# %% [markdown]
# ## 5. What is counted wrong
#
# Articles on LoRA give numbers that a line of arithmetic can check.
#
# * "Rank 16 on a 7B model trains about 33 million numbers." It depends on the targets:

# %% tags=["compare"]
d, inner, L = 4096, 11_008, 32                                         # LLaMA-2-7B


def trained(r, matrices):
    return L * sum(r * (a + b) for a, b in matrices)


qv, qkvo = [(d, d)] * 2, [(d, d)] * 4
everything = [*qkvo, (d, inner), (d, inner), (inner, d)]
for r, label, matrices in ((16, "q and v", qv), (16, "q, k, v, o", qkvo), (16, "every Linear", everything), (32, "q, k, v, o", qkvo)):
    print(f"rank {r:2}, {label:13} {trained(r, matrices) / 1e6:5.1f} million")

# %% [markdown]
# * "`c_attn` and `c_proj` are GPT-2's attention projections." The name `c_proj` also ends the feed-forward part, so
#   that a list of names takes more than it says. Here targets are `q,k,v,o`:

# %% tags=["compare"]
both = 12 * 16 * ((768 + 3 * 768) + (768 + 768) + (3072 + 768))        # r = 16 on every c_attn and every c_proj
attention = 12 * 16 * ((768 + 3 * 768) + (768 + 768))
print(f"both names: {both:,}; attention alone: {attention:,}")

# %% [markdown]
# * "A thousand times less compute." A thousand times fewer **trained numbers**. The forward pass is the same, and the
#   gradient still has to come down through every block to reach the lowest `A` and `B`. Each Linear takes three
#   products of one size in a full step; which of them are left?

# %% tags=["compare"]
batch = tok([row["text"] for row in train[:16]])
for label, prepare in (("full", lambda m: m), ("LoRA", lambda m: mt.add_lora(m, r=8, targets="all")), ("head", lambda m: mt.freeze(m, "embed, blocks"))):
    one = fresh()
    prepare(one)
    linear, seen = one.blocks[2].mlp.up_proj, {}
    linear.register_forward_hook(lambda m, given, made, seen=seen: seen.update(given=given[0].requires_grad, made=made.requires_grad))
    one.train()(**batch, labels=torch.zeros(16, dtype=torch.long)).loss.backward()
    products = {"forward": True, "gradient of the input": seen["given"], "gradient of the matrix": linear.weight.grad is not None}
    print(f"{label:5} {sum(products.values())} of 3 products:", ", ".join(name for name, done in products.items() if done))

# %% [markdown]
# What LoRA saves is memory: no gradient and no optimizer state for the frozen matrices, and with them 12 of 16 bytes a
# number. It saves a third of the products, not 99.9 %.
#
# ## 6. The family
#
# * **rsLoRA** divides by the root of the rank: `alpha / sqrt(R)`, so that a larger rank does not mean a smaller step.
# * **DoRA** splits the changed matrix into the length of each row and its direction, and trains the lengths beside the
#   direction (exercise 3).
# * **QLoRA** holds the frozen matrices in four bits: `lora(base="nf4")`.
# * **IA3** trains one factor for each key, value and inner number; **BitFit** only the biases; **adapters** are small
#   networks between the parts; a **prefix** is learned keys and values.
#
# What each trains on `mini-bert`, the head included:

# %%
sizes = {}
for label, strategy in (("full", "full"), ("adapter", "adapter"), ("LoRA r=8", lora(r=8)), ("prefix", "prefix"), ("bitfit", "bitfit"), ("IA3", "ia3"), ("head", "head")):
    sizes[label] = mt.finetune(fresh(), tok, train=train[:16], strategy=strategy, steps=1, batch_size=16, progress=False).report.trainable
fig, ax = plt.subplots(figsize=(5, 2.2))
ax.barh(list(sizes), list(sizes.values()), color=[GREY, *[BLUE] * (len(sizes) - 1)])
ax.set(xscale="log", xlabel="numbers that train")
ax.invert_yaxis()
for i, n in enumerate(sizes.values()):
    ax.text(n, i, f" {n:,}", va="center")
ax.set_xlim(right=max(sizes.values()) * 12)
plt.show()

# %% [markdown]
# ## What to take with you
#
# * LoRA adds `s B A` to frozen matrices; `B` starts at zero, so the model starts as it was.
# * It saves memory and files, not most of the arithmetic.
# * Merged it costs nothing; unmerged, many tasks share a body.
# * How many numbers it trains is a product of rank, widths and targets: count them.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 10 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The change.** For x (..., in), A (R, in), B (out, R), alpha: what LoRA adds to the output, (..., out), without
# making the matrix `B A`. The answer becomes every LoRA of a model.

# %%
def lora_change(x, A, B, alpha):
    raise NotImplementedError


mt.check("10", lora_change)

# %% [markdown]
# **2. Merging.** The matrix that gives the same as the frozen one with its LoRA.

# %%
def merged_weight(W, A, B, alpha):
    raise NotImplementedError


mt.check("10", merged_weight)

# %% [markdown]
# **3. DoRA.** `V = W + alpha / R B A`; each row of `V` is made as long as `m` (out,) says. Return that matrix. (`m`
# starts as the lengths of the rows of `W`.)

# %%
def dora_weight(W, A, B, alpha, m):
    raise NotImplementedError


mt.check("10", dora_weight)

# %% [markdown]
# **4. Counting.** How many numbers does LoRA of rank `r` train on a LLaMA with `L` blocks, width `d`, inner width
# `inner`, `H` query heads and `K` key/value heads, if it changes every Linear of the blocks? (q, k, v, o; gate, up,
# down. With fewer key/value heads k and v are narrower.)

# %%
def llama_lora(L, d, inner, H, K, r):
    raise NotImplementedError


mt.check("10", llama_lora)

# %% [markdown]
# ## The same in peft
#
# A saved adapter is read by `peft`, if it is installed, and gives the same answers.

# %%
# The same in peft
import importlib.util

if importlib.util.find_spec("transformers") and importlib.util.find_spec("peft"):
    import peft
    import transformers
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tuned = runs["LoRA"].model.eval()
    mt.save_adapter(tuned, "adapter")
    fresh().save_pretrained("base")
    base = transformers.AutoModelForSequenceClassification.from_pretrained("base")
    theirs = peft.PeftModel.from_pretrained(base, "adapter").eval()
    batch = tok([row["text"] for row in test[:8]])
    with torch.no_grad():
        far = (theirs(**{name: t.long() for name, t in batch.items()}).logits - tuned(**batch).logits).abs().max()
    print("logits equal within 1e-5:", bool(far < 1e-5))
    assert far < 1e-5
