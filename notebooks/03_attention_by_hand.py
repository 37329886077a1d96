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
# # Attention by hand
#
# Attention is the one step of a transformer in which positions exchange information. Here it is built from one sentence
# and a few lines of tensor algebra, then compared with the engine: with `minitransfer.nn.attention.attend`, with a
# whole block of a pretrained model, with the tiled version that never holds the full matrix, and with the key/value
# cache. Every comparison prints its largest difference.
#
# You need: matrix products and the idea of a probability distribution. Reading time: about 15 minutes. Letters for
# shapes are those of the whole project:
#
# | letter | meaning | letter | meaning |
# |---|---|---|---|
# | `B` | texts in a batch | `H` | heads |
# | `T` | query positions (who looks) | `Dh` | width of a head |
# | `S` | key positions (who is looked at) | `D` | width of the model, `H * Dh` |

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import math
import warnings

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.nn.attention import attend
from minitransfer.nn.masks import Mask
from minitransfer.ops.tiled_attention import tiled_attention

torch.manual_seed(0)
warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
torch.set_grad_enabled(False)           # nothing is trained in this notebook
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"


def compare(what, a, b, at_most=1e-5):
    """Print the largest absolute difference, and fail if it is more than `at_most`."""
    gap = (a - b).abs().max().item()
    print(f"{what}: {gap:.1e}")
    assert gap <= at_most


def draw(ax, matrix, rows, columns, title, signed=False, top=None):
    """A matrix as coloured cells. Darker blue = larger; with `signed`, red = negative; grey = forbidden (-inf or False)."""
    allowed = matrix.isfinite() if matrix.dtype != torch.bool else matrix
    top = top or matrix[allowed].abs().max().item()
    colours = plt.get_cmap("RdBu" if signed else "Blues").with_extremes(bad=GREY)
    image = ax.pcolormesh(matrix.float().masked_fill(~allowed, math.nan), cmap=colours,
                          vmin=-top if signed else 0, vmax=top, edgecolors="white", linewidth=0.5)
    ax.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=90)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(title=title, aspect="equal", ylim=(len(matrix), 0))
    return image


# %% [markdown]
# ## 1. From a sentence to scores
#
# Six words, five different ones: "the" comes twice. Each different word gets a vector; random numbers will do for now,
# since the mechanism does not depend on them. There is nothing about order in these vectors yet: both "the" have the
# same row.

# %%
words = "the cat sat on the mat".split()
T, D = len(words), 8
table = {word: torch.randn(D) for word in sorted(set(words))}
x = torch.stack([table[word] for word in words])            # (T, D)
print("x", tuple(x.shape), "| the two rows of 'the' are equal:", torch.equal(x[0], x[4]))

# %% [markdown]
# Each position is turned into three vectors by three matrices: a **query** (what it looks for), a **key** (what it can
# be found by) and a **value** (what it hands over when found). In a trained model these matrices are learned; nothing
# else in attention is.

# %%
Dh = 8
w_q, w_k, w_v = (torch.randn(D, Dh) / math.sqrt(D) for _ in range(3))
q, k, v = x @ w_q, x @ w_k, x @ w_v                         # (T, Dh) each

# %% [markdown]
# The **score** of a pair is the dot product of the query of one position with the key of the other. One of them by
# hand, then all of them as one product.

# %%
by_hand = sum(float(q[2, i] * k[1, i]) for i in range(Dh))  # how much "sat" looks for "cat"
raw = q @ k.T                                               # (T, S), here S = T
print(f"sat -> cat by hand {by_hand:+.4f}, in the matrix {raw[2, 1]:+.4f}")
assert math.isclose(by_hand, raw[2, 1], abs_tol=1e-5)

# %% [markdown]
# ## 2. Why the scores are divided by sqrt(Dh)
#
# Let the entries of a query and a key be independent with mean 0 and variance 1. Each product of two entries has
# variance 1, and a dot product adds `Dh` of them, so its variance is `Dh`: wide heads have large scores. Softmax turns
# large scores into a distribution with nearly everything on one key, and there it is almost flat: the slope of a
# probability in its own score is `p (1 - p)`, its sum over the keys goes to 0, and with it the gradient that could
# repair the choice.
#
# Measured, with 32 keys and 2,000 random queries:

# %%
def softmax_facts(scores):
    """Largest probability and total slope of the softmax, averaged over rows."""
    p = scores.softmax(-1)
    return p.amax(-1).mean().item(), (p * (1 - p)).sum(-1).mean().item()


print("            raw scores                     divided by sqrt(Dh)")
print("  Dh   variance  largest p  slope      variance  largest p  slope")
for width in (4, 16, 64, 256):
    queries, keys = torch.randn(2000, 1, width), torch.randn(2000, 32, width)
    scores = (queries * keys).sum(-1)                       # (2000, 32)
    scaled = scores / math.sqrt(width)
    cells = [f"{one.var():8.2f}  {p:9.3f}  {slope:5.3f}" for one in (scores, scaled) for p, slope in [softmax_facts(one)]]
    print(f"{width:4}   {'      '.join(cells)}")

# %% [markdown]
# The variance of the raw scores follows `Dh`; divided by its root it stays at 1, and neither the largest probability
# nor the slope depends on the width any more. One query of width 64 before and after:

# %%
query, keys = torch.randn(64), torch.randn(32, 64)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.1), sharey=True)
axes[0].bar(range(32), (keys @ query).softmax(-1), color=ORANGE)
axes[1].bar(range(32), (keys @ query / 8).softmax(-1), color=BLUE)
axes[0].set(title="raw scores", xlabel="key", ylabel="probability", ylim=(0, 1))
axes[1].set(title="divided by sqrt(64) = 8", xlabel="key")
plt.show()

# %% [markdown]
# So these are the scores of our sentence:

# %%
scores = q @ k.T / math.sqrt(Dh)                            # (T, S)

# %% [markdown]
# ## 3. Softmax: scores become weights
#
# Exponentials make everything positive, dividing by the row's sum makes the row sum to 1. Subtracting the row's maximum
# first changes nothing in exact arithmetic (it cancels) and everything in floating point: `exp(100)` does not fit into
# 32 bits.

# %%
def softmax(scores):
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


big = torch.tensor([100.0, 99.0])
print("without subtracting:", torch.exp(big) / torch.exp(big).sum(), "  with:", softmax(big))
probs = softmax(scores)                                     # (T, S)
print("row sums:", probs.sum(-1))
compare("against torch's own", probs, torch.softmax(scores, -1))

# %% [markdown]
# ## 4. The weighted sum
#
# The output of a position is the average of all values with its row of weights. Nothing is invented: each component of
# the output lies between the smallest and the largest value that any position offered. Rows and columns below are
# positions; a row says where that word looks.

# %%
out = probs @ v                                             # (T, Dh)
assert bool((out >= v.amin(0) - 1e-6).all() and (out <= v.amax(0) + 1e-6).all())

fig, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
fig.colorbar(draw(axes[0], scores, words, words, "scores", signed=True), ax=axes[0], shrink=0.8)
fig.colorbar(draw(axes[1], probs, words, words, "probabilities (each row sums to 1)"), ax=axes[1], shrink=0.8)
axes[0].set_ylabel("query: who looks")
axes[0].set_xlabel("key: who is looked at")
plt.show()

# %% [markdown]
# The two "the" have the same row, the same column and so the same output: without positions attention cannot tell them
# apart. Section 10 comes back to this.

# %%
compare("rows", probs[0], probs[4])
compare("columns", probs[:, 0], probs[:, 4])
compare("outputs", out[0], out[4])

# %% [markdown]
# ## 5. Masks: one convention
#
# Some positions must not be looked at: padding, because it is not text, and for a decoder the future, because it is
# what has to be predicted. In this project a mask is always **bool, True = may attend, broadcastable to (B, H, T, S)**,
# masks are combined with `&`, and applied once: the forbidden scores become -inf before the softmax, so their weights
# are exactly 0.

# %%
keep = torch.tensor([[1, 1, 1, 1, 0, 0],                # a text of four tokens, padded on the right
                     [0, 0, 1, 1, 1, 1]]).bool()        # and one padded on the left               (B, S)
padding = keep[:, None, None, :]                        # (B, 1, 1, S): no head and no query sees padding
causal = torch.ones(T, T, dtype=torch.bool).tril()      # (T, S): key j <= query i
both = padding & causal                                 # (B, 1, T, S)

fig, axes = plt.subplots(1, 4, figsize=(8.5, 2.3), layout="constrained")
draw(axes[0], padding[0, 0].expand(T, T), range(T), range(T), "padding (right)", top=1.6)
draw(axes[1], causal, range(T), range(T), "causal", top=1.6)
draw(axes[2], both[0, 0], range(T), range(T), "both, padded right", top=1.6)
draw(axes[3], both[1, 0], range(T), range(T), "both, padded left", top=1.6)
axes[0].set(ylabel="query", xlabel="key")
plt.show()

# %% [markdown]
# Blue: may look; grey: may not. In the picture on the right queries 0 and 1 may look nowhere. A softmax over nothing
# but -inf is 0/0, and one layer later every position has it, because 0 times NaN is NaN:

# %%
hidden = scores.masked_fill(~both[1, 0], -math.inf)
print("softmax of query 0:", hidden.softmax(-1)[0])
spoiled = hidden.softmax(-1) @ v
later = scores.masked_fill(~causal, -math.inf).softmax(-1) @ spoiled
count = [int(one.isnan().any(-1).sum()) for one in (spoiled, later)]
print(f"positions with NaN: {count[0]} of {T}, one layer later {count[1]} of {T}")

# %% [markdown]
# The rule here: **a query with nothing to attend gets zeros.** So that the softmax has something finite to work on, the
# scores of such a row are set to 0, and its weights are multiplied away afterwards.
#
# This is all of attention:

# %%
def attention_by_hand(q, k, v, mask):
    """Mixed values and weights; q (..., T, Dh), k and v (..., S, Dh), mask (..., T, S) or broadcastable to it."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])         # (..., T, S)
    scores = scores.masked_fill(~mask, -math.inf)
    scores = scores.masked_fill(~mask.any(-1, keepdim=True), 0.0)     # empty rows: any finite number
    probs = softmax(scores) * mask                                    # exactly 0 where forbidden
    return probs @ v, probs


masked_out, masked_probs = attention_by_hand(q, k, v, both[1, 0])
print("weights of query 0:", masked_probs[0], " output:", masked_out[0])
print("weights of query 3:", masked_probs[3])

# %% [markdown]
# The engine keeps the facts from which a mask follows, and makes the matrix on demand. It is the same matrix:

# %%
assert torch.equal(Mask(keep=keep, causal=True).dense(T, T, torch.device("cpu")), both)

# %% [markdown]
# ## 6. Heads
#
# One softmax per position is one choice per position. **Heads** make several at once: the `D` numbers of a query are
# cut into `H` pieces of `Dh = D / H`, each piece has its own scores and its own softmax, and the results are laid side
# by side again. No number is added by this: `H * Dh = D`.

# %%
B, H, D, T = 2, 4, 32, 6
Dh = D // H
flat = torch.randn(B, T, D)
heads = flat.unflatten(-1, (H, Dh)).transpose(1, 2)             # (B, T, D) -> (B, T, H, Dh) -> (B, H, T, Dh)
together = heads.transpose(1, 2).flatten(2)                     # and back: (B, T, D)
print(tuple(flat.shape), "->", tuple(heads.shape), "->", tuple(together.shape))
assert torch.equal(flat, together)

q, k, v = (torch.randn(B, H, T, Dh) for _ in range(3))
mine, my_probs = attention_by_hand(q, k, v, both)               # (B, H, T, Dh), (B, H, T, S)
each = torch.stack([attention_by_hand(q[:, h], k[:, h], v[:, h], both[:, 0])[0] for h in range(H)], dim=1)
compare("all heads at once against one after the other", mine, each)

# %% [markdown]
# ## 7. The same numbers as the engine
#
# First the function, with the hardest mask (causal, left padding, two queries that may look nowhere):

# %%
theirs, their_probs, their_scores = attend(q, k, v, both)
compare("outputs", mine, theirs)
compare("probabilities", my_probs, their_probs)

# %% [markdown]
# Then a whole block of a pretrained model, `mini-bert`, on two real texts of different length. A block of this family
# is
#
# ```
# x = norm(x + attention(x))        # positions exchange information
# x = norm(x + mlp(x))              # each position works on its own
# ```
#
# Loading gives the embeddings (`hidden_states[0]`) and what each block made of them (`hidden_states[1]`, ...).

# %%
tok = mt.Tokenizer.from_pretrained("mini-bert")
model = mt.Model.from_pretrained("mini-bert").eval()
sentence = "The old man opened the door and walked into the garden."
batch = tok([sentence, "It was dark."])
seen = model(**batch, output_hidden_states=True, output_attentions=True)
tokens = tok.tokens(batch["input_ids"][0])
L, H, D = len(model.blocks), model.config.n_heads, model.config.d_model
print(f"{L} blocks, H = {H}, D = {D}, Dh = {model.config.d_head}; (B, T) = {tuple(batch['input_ids'].shape)}")
for ids in batch["input_ids"]:
    print(" ".join(tok.tokens(ids)))

# %%
def layer_norm(x, norm):
    """Mean 0 and variance 1 over the D numbers of each position, then a learned scale and shift."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def block_by_hand(x, block, mask, d_head):
    attn, mlp = block.attn, block.mlp
    q, k, v = (linear(x, layer).unflatten(-1, (-1, d_head)).transpose(1, 2)     # (B, T, D) -> (B, H, T, Dh)
               for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
    mixed, probs = attention_by_hand(q, k, v, mask)                             # (B, H, T, Dh), (B, H, T, S)
    x = layer_norm(x + linear(mixed.transpose(1, 2).flatten(2), attn.o_proj), block.norm_attn)
    inner = torch.nn.functional.gelu(linear(x, mlp.up_proj))                    # (B, T, F)
    return layer_norm(x + linear(inner, mlp.down_proj), block.norm_mlp), probs  # (B, T, D)


x = seen.hidden_states[0]                                                       # (B, T, D)
mask = batch["attention_mask"][:, None, None, :]                                # (B, 1, 1, S)
for i, block in enumerate(model.blocks):
    x, probs = block_by_hand(x, block, mask, model.config.d_head)
    compare(f"block {i}, probabilities", probs, seen.attentions[i])
    compare(f"block {i}, what comes out", x, seen.hidden_states[i + 1], at_most=1e-4)

# %% [markdown]
# From the embeddings up, a pretrained encoder is nothing but what stands above, once per block.
#
# ## 8. What a trained model looks at
#
# The probabilities of every head on the first text, all on one scale. Rows are queries, columns keys, in the order of
# the sentence.

# %%
largest = max(a[0].max().item() for a in seen.attentions)
fig, axes = plt.subplots(L, H, figsize=(1.75 * H, 1.75 * L), layout="constrained", squeeze=False)
for i in range(L):
    for h in range(H):
        image = draw(axes[i, h], seen.attentions[i][0, h], [], [], f"block {i}, head {h}", top=largest)
fig.colorbar(image, ax=axes, shrink=0.4, label="probability")
plt.show()

# %% [markdown]
# Pictures invite stories, so here are the same matrices as numbers: which share of each head's attention goes to the
# token itself, to its neighbours, to the two special tokens, and to the rest, averaged over the words of the sentence.
# The last row is what a head with equal weights would give.

# %%
def where_it_looks(probs):
    """Shares of attention, (H, 5): self, previous, next, specials, elsewhere; mean over the queries but the specials."""
    S = probs.shape[-1]
    i, j = torch.arange(S)[:, None], torch.arange(S)[None]
    special = (j == 0) | (j == S - 1)                                            # [CLS] and [SEP]
    kinds = [(j == i) & ~special, (j == i - 1) & ~special, (j == i + 1) & ~special, special.expand(S, S)]
    kinds.append(~torch.stack(kinds).any(0))
    return torch.stack([(probs * kind).sum(-1)[..., 1:-1].mean(-1) for kind in kinds], dim=-1)


shares = torch.cat([where_it_looks(a[0]) for a in seen.attentions])              # (L * H, 5)
equal = where_it_looks(torch.full_like(seen.attentions[0][0, :1], 1 / len(tokens)))[0]
names = [f"{i}.{h}" for i in range(L) for h in range(H)]
print("block.head   self  previous   next  specials  elsewhere")
for name, row in [*zip(names, shares, strict=True), ("equal", equal)]:
    print(f"{name:>10}  {row[0]:5.2f}  {row[1]:8.2f}  {row[2]:5.2f}  {row[3]:8.2f}  {row[4]:9.2f}")

# %% [markdown]
# And one head in full: the one whose distributions are the most concentrated (lowest entropy). On the left its scores,
# on the right what the softmax makes of them. A weight says which values were mixed; it does not say that the model's
# answer depends on them.

# %%
p = torch.cat([a[0] for a in seen.attentions])                                    # (L * H, T, S)
entropy = -(p * p.clamp(min=1e-12).log2()).sum(-1).mean(-1)                       # (L * H,), in bits
i, h = divmod(int(entropy.argmin()), H)
print(f"entropy, bits: lowest {entropy.min():.2f}, highest {entropy.max():.2f}, equal weights {math.log2(len(tokens)):.2f}")
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.3), layout="constrained")
left = draw(axes[0], seen.scores[i][0, h], tokens, tokens, f"block {i}, head {h}: scores", signed=True)
right = draw(axes[1], seen.attentions[i][0, h], tokens, tokens, "probabilities")
fig.colorbar(left, ax=axes[0], shrink=0.75)
fig.colorbar(right, ax=axes[1], shrink=0.75)
axes[0].set(ylabel="query", xlabel="key")
plt.show()

# %% [markdown]
# ## 9. Softmax without the whole row
#
# The matrix of weights has `T * S` entries per head: twice the text, four times the memory. It need not exist. Let the
# keys arrive in tiles and carry three things per query: the largest score so far `m`, the sum of exponentials `z` (the
# engine calls it `l`) and the unfinished output `o`, both relative to `m`. When a tile brings a larger score, what was
# summed before is multiplied by `exp(m - new)`, as if the new maximum had been subtracted all along.

# %%
def online_attention(q, k, v, tile):
    scale = 1 / math.sqrt(q.shape[-1])
    m = torch.full((*q.shape[:-1], 1), -math.inf)                                # (..., T, 1) largest score so far
    z, o = torch.zeros_like(m), torch.zeros_like(q)                              # sum of weights, weighted sum of values
    for part in (slice(start, start + tile) for start in range(0, k.shape[-2], tile)):
        s = q @ k[..., part, :].transpose(-2, -1) * scale                        # (..., T, tile): never more than this
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p, shrink = torch.exp(s - new), torch.exp(m - new)
        z, o, m = shrink * z + p.sum(-1, keepdim=True), shrink * o + p @ v[..., part, :], new
    return o / z


q, k, v = torch.randn(2, 3, 50, 16), torch.randn(2, 3, 70, 16), torch.randn(2, 3, 70, 16)
whole, _ = attention_by_hand(q, k, v, torch.ones(50, 70, dtype=torch.bool))
for tile in (1, 7, 32, 70):
    compare(f"tiles of {tile:2} keys", online_attention(q, k, v, tile), whole)
compare("the engine's tiled_attention", tiled_attention(q, k, v, tile=32), whole)

# %% [markdown]
# The first query while the keys arrive, ten at a time. `o / z` is at every moment the attention over the keys seen so
# far.

# %%
m, z = -math.inf, 0.0
print("keys seen   largest m    sum z   total weight of the first ten keys")
first_ten = 0.0
for start in range(0, 70, 10):
    s = (q[0, 0, 0] @ k[0, 0, start:start + 10].T / 4).double()
    new = max(m, s.max().item())
    z = math.exp(m - new) * z + torch.exp(s - new).sum().item()
    first_ten = torch.exp(s - new).sum().item() if start == 0 else math.exp(m - new) * first_ten
    m = new
    print(f"{start + 10:9}   {m:9.3f}  {z:7.3f}   {first_ten / z:8.3f}")

# %% [markdown]
# What this saves, for one text, 12 heads of width 64 and 32-bit numbers: the matrix grows with the square of the text,
# the running sums with the text.

# %%
print("tokens   whole matrix   q, k, v, o, m, z and one tile of 128 x 128")
for n in (128, 1024, 8192, 65536):
    matrix, running = 12 * n * n, 12 * (n * (4 * 64 + 2) + 128 * 128)            # numbers of 4 bytes
    print(f"{n:6}   {4 * matrix / 1e6:9,.1f} MB   {4 * running / 1e6:9,.1f} MB")

# %% [markdown]
# ## 10. Without positions, a set
#
# Change the order of the rows of `x`: queries, keys and values change their order with it, every dot product stays what
# it was, and so does every weighted sum. Attention of a permuted text is the permuted attention of the text. It treats
# its input as a set.

# %%
x, order = torch.randn(6, 8), torch.tensor([3, 0, 5, 1, 4, 2])
free = torch.ones(6, 6, dtype=torch.bool)


def plain(x):
    return attention_by_hand(x @ w_q, x @ w_k, x @ w_v, free)[0]


compare("plain(x[order]) against plain(x)[order]", plain(x[order]), plain(x)[order])

# %% [markdown]
# The rest of a block works on each position alone, so this holds for a whole encoder, whatever it was trained on. What
# tells a transformer about order are its position vectors, and nothing else. The experiment: `mini-bert` reads two
# texts made of the same words, with its position table and with the table set to zero.

# %%
without = mt.Model.from_pretrained("mini-bert").eval()
without.embed.positions.weight.zero_()
one, two = (tok(text)["input_ids"] for text in ("the dog followed the man", "the man followed the dog"))
first, second = tok.tokens(one[0]), tok.tokens(two[0])
place = [second.index(token) for token in first]            # where the tokens of the first text stand in the second
for name, body in (("with positions", model), ("without", without)):
    a, b = body(one).last_hidden_state[0], body(two).last_hidden_state[0, place]        # (T, D) each
    far = (a - b).norm(dim=-1) / a.norm(dim=-1)
    print(f"{name:>15}: " + "  ".join(f"{token} {d:.2f}" for token, d in zip(first, far, strict=True)))
assert far.max() < 1e-4

# %% [markdown]
# Each number is the distance between the vectors of a token in the two texts, relative to their length. Without
# positions who followed whom is gone: the distances are zero.
#
# ## 11. What a decoder computes twice
#
# A decoder writes one token at a time, and runs again on the longer text each time. How much of that is new? Take a
# small decoder and an encoder that differs in the causal mask only (random weights: what follows is true of any), let
# both read 11 tokens, then 12, and compare the keys of the first 11.

# %%
facts = {"vocab_size": 50, "d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 64, "max_len": 64, "init_std": 0.2}
decoder = mt.Model(mt.ModelConfig(**facts, causal=True), head="causal").eval()
encoder = mt.Model(mt.ModelConfig(**facts, causal=False)).eval()
ids = torch.randint(50, (1, 40))


def keys_of(model, ids):
    """What every k_proj gives for these ids, (T, D) per block."""
    found = []
    hooks = [block.attn.k_proj.register_forward_hook(lambda layer, x, keys: found.append(keys[0]))
             for block in model.blocks]
    model(ids)
    for hook in hooks:
        hook.remove()
    return found


print("largest change of the first 11 keys when a 12th token arrives")
for name, body in (("decoder", decoder), ("encoder", encoder)):
    before, after = keys_of(body, ids[:, :11]), keys_of(body, ids[:, :12])
    changes = [(b[:11] - a).abs().max() for a, b in zip(before, after, strict=True)]
    print(f"  {name}: " + "  ".join(f"block {i}: {change:.0e}" for i, change in enumerate(changes)))

# %% [markdown]
# In the encoder every token sees the newcomer, so from the second block on everything changes. In the decoder nothing
# that was computed before can see it, so keys and values of the past stay (up to rounding), and computing them again is
# wasted. Keep them, and a new token costs one query:

# %%
q, k, v = (torch.randn(1, 4, 12, 8) for _ in range(3))
full, _ = attention_by_hand(q, k, v, torch.ones(12, 12, dtype=torch.bool).tril())
kept_k, kept_v = k[:, :, :11], v[:, :, :11]                                     # from the steps before
kept_k, kept_v = torch.cat([kept_k, k[:, :, 11:]], 2), torch.cat([kept_v, v[:, :, 11:]], 2)
last, row = attention_by_hand(q[:, :, 11:], kept_k, kept_v, torch.ones(1, 12, dtype=torch.bool))
print("weights now:", tuple(row.shape))                                         # (B, H, 1, S): one row
compare("against the last row of the whole matrix", last, full[:, :, 11:])

# %% [markdown]
# `mt.Cache` does this for every block. Count the rows that go through all `k_proj` while the decoder reads 8 tokens and
# then takes 32 more, one at a time:

# %%
def rows_through(model, run):
    """How many positions the model's k_proj layers work on during run()."""
    count = 0

    def add(module, inputs, output):
        nonlocal count
        count += output.shape[1]
    hooks = [block.attn.k_proj.register_forward_hook(add) for block in model.blocks]
    result = run()
    for hook in hooks:
        hook.remove()
    return count, result


def from_scratch():
    return torch.stack([decoder(ids[:, :t]).logits[:, -1] for t in range(8, 41)])


def with_cache():
    cache = mt.Cache(len(decoder.blocks))
    logits = [decoder(ids[:, :8], cache=cache).logits[:, -1]]
    logits += [decoder(ids[:, t:t + 1], cache=cache).logits[:, -1] for t in range(8, 40)]
    return torch.stack(logits)


many, slow = rows_through(decoder, from_scratch)
few, quick = rows_through(decoder, with_cache)
print(f"rows without cache {many}, with cache {few}: {many / few:.1f} times fewer")
compare("logits", slow, quick, at_most=1e-4)
assert few == 40 * len(decoder.blocks)

# %% [markdown]
# ## What to take with you
#
# * Attention is `softmax(q k^T / sqrt(Dh)) v`: dot products, weights that sum to 1, an average. The division keeps the
#   softmax where it can learn.
# * One mask convention: bool, True = may attend, combined with `&`, applied once; a row with nothing to attend gives
#   zeros.
# * The matrix of weights is a way to write it down, not something that has to exist: three running quantities per query
#   are enough.
# * Order comes from the position vectors, and from the causal mask. The causal mask is also why a decoder may keep its
#   keys and values.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` puts the answer to the first one into every block of a pretrained
# model, and says of all whether they are right. (Or write the functions into a file and run `minitransfer check 03 file.py`.)
# Solutions are in `notebooks/solutions`.
#
# **1. Attention.** For q (B, H, T, Dh), k and v (B, H, S, Dh) and a bool mask (B or 1, H or 1, T, S), True = may look: return
# the mixed values and the weights. A query that may look nowhere gets zeros.

# %%
def attention(q, k, v, mask):
    raise NotImplementedError


mt.check("03", attention)

# %% [markdown]
# **2. A window.** A bool mask (T, T) with which each token sees itself and the `window - 1` tokens before it.

# %%
def window_mask(T, window):
    raise NotImplementedError


mt.check("03", window_mask)

# %% [markdown]
# **3. Shared keys and values.** Many decoders keep fewer key/value heads than query heads: with `H` query heads and `K`
# key/value heads, query head `h` uses key/value head `h // (H // K)`. The cache becomes `H / K` times smaller. Compute
# attention for q (B, H, T, Dh) and k, v (B, K, S, Dh).

# %%
def grouped_attention(q, k, v, mask):
    raise NotImplementedError


mt.check("03", grouped_attention)

# %% [markdown]
# **4. Two halves.** Two machines have each seen half of the keys and hold `(m, z, o)` as in section 9. Combine them
# into the output over all keys.

# %%
def combine(m1, z1, o1, m2, z2, o2):
    raise NotImplementedError


mt.check("03", combine)

# %% [markdown]
# **5. Order without positions.** Section 10 says that attention treats its input as a set. A decoder without position
# vectors still knows something about order. Return two different orders of 5 rows, as lists of indices that end with the
# same index, after which one layer of causal attention (with residuals, without positions) gives the last row the same
# vector, and a number of layers, 1 or 2, after which it does not.

# %%
def orders_and_depth():
    raise NotImplementedError


mt.check("03", orders_and_depth)

# %% [markdown]
# ## The same in transformers
#
# What `mini-bert` looks at, block by block, here and in `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours, batch = mt.Model.from_pretrained("mini-bert", head="none").eval(), mt.Tokenizer.from_pretrained("mini-bert")(["the cat sat on the mat", "a dog"])
    ours.save_pretrained("for-transformers")
    theirs = transformers.AutoModel.from_pretrained("for-transformers", attn_implementation="eager").eval()
    pairs = zip(ours(**batch, output_attentions=True).attentions, theirs(**batch, output_attentions=True).attentions, strict=True)
    for number, (a, b) in enumerate(pairs):                                                     # (B, H, T, S) each
        far = ((a - b) * batch["attention_mask"][:, None, :, None]).abs().max()
        print(f"block {number}: equal within 1e-5: {bool(far < 1e-5)}")
        assert far < 1e-5
