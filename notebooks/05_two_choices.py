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
# # BERT and GPT-2 are choices
#
# There is one transformer in this project, and every model of it is a list of answers to the same questions: who may
# see whom, where the norms stand, how positions are told, how the feed-forward part bends. The answers are the fields
# of a config. This notebook turns a BERT into a GPT-2 field by field, goes on to LLaMA, and looks at what each choice
# does.
#
# You need: 04_block_body_head. Reading time: about 12 minutes. Letters for shapes: `B` texts, `T` tokens, `D` width of
# the model, `H` heads, `K` key/value heads, `Dh` width of a head, `F` width inside the feed-forward part.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import warnings
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.config import Rotary

torch.set_grad_enabled(False)           # nothing is trained in this notebook
warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"

def moved(config, **more):
    """A model of this architecture with every parameter a little away from its start."""
    model, generator = mt.Model(config, seed=0, **more).eval(), torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


# %% [markdown]
# ## 1. Where the two differ

# %% tags=["compare"]
bert, gpt = (mt.Model.from_pretrained(name).config for name in ("mini-bert", "mini-gpt"))
ours, theirs = asdict(bert), asdict(gpt)
print(f"{'':16}{'BERT':12}GPT-2")
for name in ours:
    if ours[name] != theirs[name]:
        print(f"{name:16}{ours[name]!s:12}{theirs[name]}")

# %% [markdown]
# That is all. Nine fields, and not one of them is a name. Nothing in the body asks "are you BERT?": it asks `causal`,
# `norm_position`, `activation`. So the way from one to the other is a handful of `replace`:

# %% tags=["compare"]
steps = [("a BERT", {}), ("no token types", {"n_token_types": 0}), ("norms before the parts", {"norm_position": "pre", "embed_norm": False, "final_norm": True}),
         ("nobody sees the future", {"causal": True}), ("GPT-2's GELU", {"activation": "gelu_tanh"}), ("no pooler, GPT-2's epsilon", {"pooler": False, "norm_eps": 1e-5})]
config = bert
for what, fields in steps:
    config = replace(config, **fields)
    left = [name for name in ours if asdict(config)[name] != theirs[name]]
    print(f"{what:28} {sum(p.numel() for p in mt.Model(config, seed=None).parameters()):10,} parameters, still other than GPT-2: {', '.join(left) or 'nothing'}")
config = replace(config, embed_dropout=gpt.embed_dropout)
assert config == gpt

# %% [markdown]
# `mini-gpt`'s numbers fit into this model, tensor by tensor. What each step does to behaviour is less visible than what
# it does to names, so look at one choice at a time.
#
# ## 2. Who sees whom
#
# Change one word of a text, and see which states change:

# %%
ids = torch.randint(10, 1000, (1, 9), generator=torch.Generator().manual_seed(0))
other = ids.clone()
other[0, 6] += 1
fig, axes = plt.subplots(1, 3, figsize=(8, 1.9), sharey=True)
choices = (("causal=False", {}), ("causal=True", {"causal": True}), ("causal=True, window=2", {"causal": True, "window": 2}))
for ax, (title, fields) in zip(axes, choices, strict=True):
    model = moved(replace(bert, n_layers=3, **fields))
    a, b = (model(input_ids=x, output_hidden_states=True).hidden_states for x in (ids, other))
    changed = torch.stack([(x - y)[0].abs().amax(-1) > 0 for x, y in zip(a, b, strict=True)])   # (L + 1, T)
    ax.pcolormesh(changed.flip(0), cmap=plt.matplotlib.colors.ListedColormap(["#eceef0", BLUE]), edgecolors="white")
    ax.set(title=title, xlabel="token", xticks=[6.5], xticklabels=["changed"], yticks=[0.5, 1.5, 2.5, 3.5], yticklabels=["block 2", "block 1", "block 0", "embed"])
plt.tight_layout()
plt.show()

# %% [markdown]
# Without a causal mask everything changes from the first block on. With it nothing before the change does, which is
# what makes predicting the next token honest, and cached keys and values possible (03). With a window of two tokens
# news travel one token a block: depth buys reach.
#
# ## 3. Where a token stands
#
# BERT and GPT-2 have a table: position 7 has a vector that is added to the token's. Most models of today **turn**
# queries and keys instead (RoPE): each pair of numbers of a head is a point in a plane, and turns by an angle that
# grows with the position. A dot product of two turned vectors depends on the difference of their angles, so on their
# **distance** only:

# %% tags=["compare"]
Dh = 8
q, k = torch.randn(2, Dh, generator=torch.Generator().manual_seed(0))
w = 1.0 / 10_000 ** (torch.arange(0, Dh, 2) / Dh)                       # radians a position, for each of Dh/2 pairs


def turned(x, position):
    """Pairs (x_j, x_{j + Dh/2}) turned by position * w_j."""
    a, b = x.chunk(2)
    cos, sin = (position * w).cos(), (position * w).sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin])


for i, j in ((3, 1), (103, 101), (3, 2)):
    print(f"query at {i:3}, key at {j:3}: {turned(q, i) @ turned(k, j):+.4f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3))
distances = torch.arange(0, 60)
one = torch.ones(64)
w64 = 1.0 / 10_000 ** (torch.arange(0, 64, 2) / 64)
for j, colour in ((0, BLUE), (8, ORANGE), (16, GREY)):
    axes[0].plot(distances, (distances * w64[j]).cos(), color=colour, label=f"pair {j}")
axes[0].set(title="each pair turns at its own speed", xlabel="distance")
axes[0].legend(frameon=False, loc="lower left")
axes[1].plot(distances, [(d * w64).cos().sum() * 2 for d in distances], color=BLUE)
axes[1].set(title="score of two equal vectors", xlabel="distance")
plt.tight_layout()
plt.show()

# %% [markdown]
# Fast pairs tell near tokens apart, slow ones tell far from near. A table ends where its rows end; angles go on,
# although a model that never saw an angle in training does badly with it. In the engine it is one field:

# %% tags=["compare"]
rotary = moved(replace(gpt, positions="none", rotary=Rotary(theta=10_000)), head="causal")
table = moved(gpt, head="causal")
for name, model in (("table", table), ("turned", rotary)):
    far = [model(input_ids=ids, position_ids=torch.arange(9)[None] + start).logits for start in (0, 50)]
    print(f"{name}: the same answers 50 positions further on: {torch.allclose(*far, atol=1e-4)}")

# %% [markdown]
# ## 4. On to LLaMA
#
# Four more answers, and GPT-2 is a LLaMA: RMSNorm (a norm without mean and bias), turned queries and keys, a **gated**
# feed-forward part, and no biases. The gate is a second matrix that decides how much of each inner number passes:
# `down(silu(gate(x)) * up(x))`.

# %% tags=["compare"]
llama = replace(gpt, norm="rms", norm_eps=1e-6, positions="none", rotary=Rotary(), gated=True, activation="silu", qkv_bias=False, o_bias=False, mlp_bias=False, n_kv_heads=2,
                dropout=0.0, attn_dropout=0.0, embed_dropout=None, tied=False)
model = moved(llama)
block, x = model.blocks[0], torch.randn(2, 5, llama.d_model, generator=torch.Generator().manual_seed(0))        # (B, T, D)
by_hand = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + llama.norm_eps) * block.norm_mlp.weight
print("RMSNorm:", torch.allclose(by_hand, block.norm_mlp(x), atol=1e-5))
gate, up = x @ block.mlp.gate_proj.weight.T, x @ block.mlp.up_proj.weight.T                    # (B, T, F) each
by_hand = (gate * gate.sigmoid() * up) @ block.mlp.down_proj.weight.T                          # (B, T, D)
print("gated:", torch.allclose(by_hand, block.mlp(x), atol=1e-4))
print("q", tuple(block.attn.q_proj.weight.shape), "k", tuple(block.attn.k_proj.weight.shape), "v", tuple(block.attn.v_proj.weight.shape))

# %% [markdown]
# With two key/value heads for four query heads, `k_proj` and `v_proj` are half as tall, and so is what is cached during
# generation.
#
# ## 5. A family is a page
#
# What is left of a name is one page: which answers it gives, how its files call things. The page of LLaMA, its own
# config.json read and written:

# %% tags=["compare"]
from minitransfer.families import llama as page

said = page.config_to_hf(llama, "llama")
print({name: said[name] for name in ("hidden_size", "num_key_value_heads", "hidden_act", "rms_norm_eps")})
print("read back, the same architecture:", page.config_from_hf({**said, "model_type": "llama"}) == replace(llama, head_width=64, embed_dropout=None, head_dropout=0.0))

# %% [markdown]
# ## What to take with you
#
# * An architecture is data: BERT, GPT-2 and LLaMA are the same code with other answers.
# * Causal or not decides what a model can be asked; a window and depth decide how far it sees.
# * Turned queries and keys make a score depend on distance; a table makes it depend on places.
# * To add a family is to find its answers, and to write down its names.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 05 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. GPT-2 as answers.** Return a dict of fields for `mt.ModelConfig` that describes GPT-2 with these sizes (dropout
# 0.1 everywhere, `norm_eps` 1e-5, the inner width is four times `D`).

# %%
def gpt2_fields(V, D, L, H, longest):
    raise NotImplementedError


mt.check("05", gpt2_fields)

# %% [markdown]
# **2. Turning.** `x` is (B, H, T, Dh), `cos` and `sin` (B, 1, T, R/2): turn the pairs `(x_j, x_{j + R/2})` of the first
# R numbers of each head, and leave the rest as it is. The answer turns the queries and keys of two models; in one of
# them R is smaller than Dh.

# %%
def turn(x, cos, sin):
    raise NotImplementedError


mt.check("05", turn)

# %% [markdown]
# **3. RMSNorm.** `x / sqrt(mean(x^2) + eps) * weight`, for x (..., D). The answer becomes every norm of a LLaMA.

# %%
def rms_norm(x, weight, eps):
    raise NotImplementedError


mt.check("05", rms_norm)

# %% [markdown]
# **4. The gate.** The feed-forward part of LLaMA from its three matrices (F, D), (F, D), (D, F). The answer becomes
# that of every block.

# %%
def gated_feed_forward(x, gate, up, down):
    raise NotImplementedError


mt.check("05", gated_feed_forward)

# %% [markdown]
# ## The same in transformers
#
# The LLaMA of this notebook, saved here and read by `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name, ours in (("llama", moved(llama, head="causal")), ("gpt2", moved(gpt, head="causal"))):
        ours.save_pretrained(f"for-transformers/{name}")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(f"for-transformers/{name}").eval()
        far = (theirs(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max() / theirs(input_ids=ids).logits.abs().max().clamp(min=1)
        print(f"{type(theirs).__name__}: logits equal within 1e-5: {bool(far < 1e-5)}")
        assert far < 1e-5
