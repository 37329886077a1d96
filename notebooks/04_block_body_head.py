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
# # A block, a body, a head
#
# Every transformer in this course is the same three things: a table that turns ids into vectors (**embed**), a stack of
# equal **blocks**, and a **head** that asks the result a question. Table and blocks together are the **body**: it is
# what was pretrained, and what is transferred. This notebook computes one block with a few lines and compares it with
# the engine, looks at the stream of vectors through the stack, and puts different heads on one body.
#
# You need: 03_attention_by_hand. Reading time: about 15 minutes. Letters for shapes: `B` texts, `T` tokens, `D` width
# of the model, `F` width inside the feed-forward part, `V` vocabulary, `L` blocks.

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

torch.manual_seed(0)
torch.set_grad_enabled(False)           # nothing is trained in this notebook
warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"

def compare(what, a, b, at_most=1e-5):
    """Compare the largest difference with the largest value (or 1), and fail if it is more than `at_most` of it."""
    gap = ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
    print(f"{what}: equal within {at_most:.0e}: {gap <= at_most}")
    assert gap <= at_most, gap


# %% [markdown]
# ## 1. The parts
#
# `mini-bert` as it was pretrained. `explain` prints what a model is made of, in the words that every tool of this
# project uses as addresses: `embed`, `blocks.2`, `blocks.2.attn.q_proj`, `head`.

# %% tags=["compare"]
model, tok = mt.Model.from_pretrained("mini-bert").eval(), mt.Tokenizer.from_pretrained("mini-bert")
c = model.config
for name, part in model.named_children():
    print(f"{name:8} {sum(p.numel() for p in part.parameters()):10,} parameters")
print(f"L = {c.n_layers}, D = {c.d_model}, F = {c.d_ff}, V = {c.vocab_size}")

# %% [markdown]
# The numbers of one block can be counted on paper: four `D x D` matrices for attention (query, key, value, output), two
# `D x F` matrices for the feed-forward part, their biases, and two norms with a weight and a bias each.

# %% tags=["compare"]
D, F = c.d_model, c.d_ff
attention, feed_forward, norms = 4 * (D * D + D), (D * F + F) + (F * D + D), 2 * 2 * D
print(f"attention {attention:,} + feed-forward {feed_forward:,} + norms {norms:,} = {attention + feed_forward + norms:,}")
assert attention + feed_forward + norms == sum(p.numel() for p in model.blocks[0].parameters())
print(f"the feed-forward part is {feed_forward / (attention + feed_forward + norms):.0%} of a block")

# %% [markdown]
# ## 2. Norm and feed-forward
#
# Attention (notebook 03) is the only part in which positions exchange anything. The other two work on each position by
# itself.
#
# A **layer norm** takes a vector of `D` numbers, subtracts their mean, divides by their standard deviation, and gives
# each number a learned scale and shift. Whatever the size of what came in, the size of what goes out is learned.

# %%
x = torch.randn(2, 5, D) * 30 + 7                                       # (B, T, D), far too large
norm = model.blocks[0].norm_attn
mean = x.mean(-1, keepdim=True)                                         # (B, T, 1)
variance = ((x - mean) ** 2).mean(-1, keepdim=True)                     # (B, T, 1)
by_hand = (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias
compare("norm", by_hand, norm(x), at_most=1e-4)

# %% [markdown]
# The **feed-forward** part widens each vector from `D` to `F` numbers, bends them, and goes back. Without the bend two
# matrices would be one. BERT and GPT-2 bend with GELU: `z` times the probability that a normal number is below `z`.

# %%
z = torch.linspace(-4, 4, 200)
gelu = z * 0.5 * (1 + torch.erf(z / 2**0.5))
fig, ax = plt.subplots(figsize=(3.4, 2.1))
ax.plot(z, gelu, color=BLUE, label="GELU")
ax.plot(z, z.relu(), color=GREY, label="ReLU", zorder=0)
ax.set(xlabel="z")
ax.legend(frameon=False)
plt.show()

mlp, x = model.blocks[0].mlp, torch.randn(2, 5, D)
wide = x @ mlp.up_proj.weight.T + mlp.up_proj.bias                      # (B, T, F)
bent = wide * 0.5 * (1 + torch.erf(wide / 2**0.5))                      # (B, T, F)
by_hand = bent @ mlp.down_proj.weight.T + mlp.down_proj.bias            # (B, T, D)
compare("feed-forward", by_hand, mlp(x))

# %% [markdown]
# ## 3. A block is two additions
#
# What a part makes is **added** to what came in. The running sum is called the stream: embeddings go in at the bottom,
# each block adds two corrections, and what comes out at the top is the input plus all corrections. BERT normalises
# after each addition (post-norm), GPT-2 before each part, and leaves the stream itself alone (pre-norm):
#
# ```
# post-norm (BERT)                      pre-norm (GPT-2)
#
# x --> attention --> + --> norm -->    x --> norm --> attention --> + -->
# |___________________|                 |____________________________|
# x --> mlp --------> + --> norm -->    x --> norm --> mlp --------> + -->
# |___________________|                 |____________________________|
# ```
#
# Both in four lines, with the engine's attention, norms and feed-forward part:

# %% tags=["compare"]
def block_by_hand(block, x, attend):
    """attend: x -> what attention makes of it."""
    if block.pre_norm:
        x = x + attend(block.norm_attn(x))
        return x + block.mlp(block.norm_mlp(x))
    x = block.norm_attn(x + attend(x))
    return block.norm_mlp(x + block.mlp(x))


from minitransfer.nn.masks import Mask

for name in ("mini-bert", "mini-gpt"):
    one = mt.Model.from_pretrained(name, head="none").eval()
    batch = mt.Tokenizer.from_pretrained(name)(["The key is under the mat.", "Nobody could say why they left it there."])
    mask = Mask(batch["attention_mask"], causal=one.config.causal)
    states = one(**batch, output_hidden_states=True).hidden_states                              # L + 1 times (B, T, D)
    keep = batch["attention_mask"][..., None]
    for i, block in enumerate(one.blocks):
        made = block_by_hand(block, states[i], lambda x, block=block, mask=mask: block.attn(x, mask)[0])
        made = made if i + 1 < len(one.blocks) or one.norm is None else one.norm(made)          # GPT-2: one more norm at the top
        compare(f"{name} block {i}", made * keep, states[i + 1] * keep, at_most=1e-4)

# %% [markdown]
# A pre-norm stack needs one more norm at the top, since its stream was never normalised. The loop of the engine is not
# much longer: open `nn/model.py`, `nn/block.py`, `nn/attention.py` and `config.py`, and the whole forward pass is read.
#
# ## 4. The stream
#
# How long are the vectors on their way up, and how much does each part change them? For post-norm and for pre-norm:

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3))
for name, colour in (("mini-bert", BLUE), ("mini-gpt", ORANGE)):
    one = mt.Model.from_pretrained(name, head="none").eval()
    final, one.norm = one.norm, None                                    # look at the stream itself
    batch = mt.Tokenizer.from_pretrained(name)(mt.samples.path("general.txt").read_text(encoding="utf-8").splitlines()[:32])
    keep = batch["attention_mask"]
    states = [state[keep] for state in one(**batch, output_hidden_states=True).hidden_states]   # L + 1 times (N, D)
    axes[0].plot([state.norm(dim=-1).mean() for state in states], "o-", color=colour, label=name)
    axes[1].plot(range(1, len(states)), [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(states, states[1:], strict=False)], "o-", color=colour)
axes[0].set(title="length of the vectors", xlabel="after block", ylim=(0, None))
axes[1].set(title="cosine of before and after a block", xlabel="block", ylim=(0, 1), xticks=range(1, len(states)))
axes[0].legend(frameon=False)
plt.tight_layout()
plt.show()

# %% [markdown]
# Post-norm keeps the length and turns the vectors, pre-norm lets them grow. The first block of `mini-gpt` writes nearly
# the whole stream, since what it adds is long beside the embeddings; every other block changes a part of what is there.
# That is why the layers of a pretrained model can be read one by one (08), why the lower ones can be frozen (09), and
# why leaving a block out need not destroy everything:

# %%
text = "She opened the [MASK] and went in."
for gone in (None, *range(len(model.blocks))):
    shorter = mt.Model.from_pretrained("mini-bert").eval()
    if gone is not None:                                                # this block hands on what it was given
        shorter.blocks[gone].register_forward_hook(lambda block, given, made: (given[0], *made[1:]))
    best = mt.fill(shorter, tok, text, k=3)[0]
    print(f"{'whole' if gone is None else f'without block {gone}':16}", ", ".join(f"{token} {p:.2f}" for token, p in best))

# %% [markdown]
# Without any block but one there is still a noun at the mask. The exception is the block in which a head looks at the
# token just before (08): without it the best guess is a comma.
#
# ## 5. Heads
#
# A head turns `D` numbers a token into an answer. The question decides what it reads and how wide it answers:

# %% tags=["compare"]
batch = tok(["The key is under the mat.", "Nobody could say why."])
for head, labels in (("masked", None), ("sequence", ["bad", "good"]), ("token", ["O", "B-PER", "I-PER"]), ("span", None), ("embedding", None)):
    one = mt.Model.from_pretrained("mini-bert", head=head, labels=labels).eval()
    out = one(**batch)
    shape = tuple((out.embeddings if head == "embedding" else out.logits).shape)
    print(f"{head:10} {shape!s:16} {sum(p.numel() for p in one.head.parameters()):7,} parameters of its own")

# %% [markdown]
# * `masked`: for each token a number for each word of the vocabulary. Most of it costs nothing: the table of the
#   embeddings is used a second time, turned round.
# * `sequence`: for each text a number for each class, read from the state of `[CLS]`.
# * `token`: for each token a number for each label; `span`: two numbers a token, begin and end.
# * `embedding`: the mean of all states, made one long.
#
# A new head is random. Everything below it stays as it was pretrained, and the report of loading says so:

# %% tags=["compare"]
tuned = mt.Model.from_pretrained("mini-bert", head="sequence", labels=["bad", "good"]).eval()
print(tuned.load_report)
same = all(torch.equal(a, b) for a, b in zip(tuned.blocks.parameters(), model.blocks.parameters(), strict=True))
print("blocks are those of the pretrained model:", same)

# %% [markdown]
# Why `[CLS]` and not the mean? It is a convention of BERT: in pretraining that state was used for a whole-text
# question. For `mini-bert` nothing of the kind was trained, and for a decoder the first token has seen only itself, so
# it is the last token that has read the text. Which of the texts below would be told apart?

# %% tags=["compare"]
first = {}
for name in ("mini-bert", "mini-gpt"):
    one = mt.Model.from_pretrained(name, head="none").eval()
    batch = mt.Tokenizer.from_pretrained(name)(["The film was good.", "The film was bad."])
    states, keep = one(**batch).last_hidden_state, batch["attention_mask"]                      # (B, T, D)
    last = keep.sum(1) - 1
    readings = {"first token": states[:, 0], "last token": states[torch.arange(2), last], "mean": (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)}
    first[name] = {what: not torch.allclose(a, b, atol=1e-5) for what, (a, b) in readings.items()}
    print(name, first[name])

# %% [markdown]
# ## What to take with you
#
# * A body is a table and a stack of blocks; a block is attention and feed-forward, each added to the stream.
# * Attention mixes positions; norm, feed-forward and heads work on each by itself.
# * Post-norm or pre-norm is one field of the config, and the same code.
# * To transfer is to keep the body and to change the head.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 04 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. Layer norm.** For x (..., D), a weight and a bias (D,), and eps. The answer becomes every norm of `mini-bert` and
# `mini-gpt`. Mind which variance it is.

# %%
def layer_norm(x, weight, bias, eps):
    raise NotImplementedError


mt.check("04", layer_norm)

# %% [markdown]
# **2. A block.** `attention`, `mlp`, `norm_attn` and `norm_mlp` are functions (B, T, D) -> (B, T, D). The answer
# becomes every block of `mini-bert` (`pre_norm` False) and `mini-gpt` (True).

# %%
def block(x, attention, mlp, norm_attn, norm_mlp, pre_norm):
    raise NotImplementedError


mt.check("04", block)

# %% [markdown]
# **3. The mean of a text.** The mean of the states (B, T, D) of each text's tokens, (B, D), where `keep` (B, T) bool is
# True. A text without a token gives zeros. The answer becomes the pooling of an embedding model.

# %%
def mean_token(states, keep):
    raise NotImplementedError


mt.check("04", mean_token)

# %% [markdown]
# **4. Counting.** How many parameters does a body have, without a head: a table of `V x D`, `P` positions, `types`
# token types, with a norm above them; `L` blocks as in section 1; and a pooler, one more `D x D` matrix with a bias?

# %%
def parameters(V, P, types, D, F, L):
    raise NotImplementedError


mt.check("04", parameters)

# %% [markdown]
# ## The same in transformers
#
# The stream of `mini-bert` and `mini-gpt`, state by state, here and there.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("mini-bert", "mini-gpt"):
        ours, batch = mt.Model.from_pretrained(name, head="none").eval(), mt.Tokenizer.from_pretrained(name)(["The key is under the mat.", "No."])
        ours.save_pretrained(f"for-transformers/{name}")
        theirs = transformers.AutoModel.from_pretrained(f"for-transformers/{name}", attn_implementation="eager").eval()
        batch = {key: t.long() for key, t in batch.items()}
        keep = batch["attention_mask"][..., None]
        pairs = zip(ours(**batch, output_hidden_states=True).hidden_states, theirs(**batch, output_hidden_states=True).hidden_states, strict=True)
        for i, (a, b) in enumerate(pairs):                                                      # (B, T, D) each
            compare(f"{name} state {i}", a * keep, b * keep, at_most=1e-4)
