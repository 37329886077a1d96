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
# # From a new head to the whole model
#
# There is one question behind every way to tune a model: which parameters may move, when, and how fast? This notebook
# goes through the answers from the cheapest to the most expensive, shows for each what it does before anything is
# computed, proves afterwards that what was frozen did not move, and measures what is saved.
#
# You need: 04_block_body_head. Reading time: about 15 minutes. Letters for shapes: `B` texts, `T` tokens, `D` width of
# the model, `L` blocks.

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
from minitransfer.transfer import extract_features, features, plan

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
# ## 1. Groups
#
# The parts of a model are named from the bottom to the top. Every strategy speaks of these groups:

# %% tags=["compare"]
model = fresh()
for group, names in mt.layer_groups(model).items():
    print(f"{group:10} {sum(model.get_parameter(name).numel() for name in names):10,}  {len(names):2} tensors")

# %% [markdown]
# ## 2. Nothing below the head: features
#
# If the body does not change, each text needs to go through it once in its life. What it says of the text is a vector
# of **features**, and any classifier can be put on them. Which state is read is a choice as well:

# %%
from sklearn.linear_model import LogisticRegression

body = mt.Model.from_pretrained("mini-bert", head="none")
print(f"{'':12} accuracy on {len(test)} reviews")
for pooling in ("first", "mean"):
    for layers in (-1, 2):
        x, y = extract_features(body, tok, train, pooling=pooling, layers=layers, cache="features")               # (N, D), N labels
        held, truth = extract_features(body, tok, test, pooling=pooling, layers=layers, cache="features")
        accuracy = LogisticRegression(max_iter=2000, C=0.1).fit(x, y).score(held, truth)
        print(f"{pooling:6} {'last' if layers == -1 else f'block {layers}':8}{accuracy:.2f}")

# %% [markdown]
# The state of `[CLS]` (`first`) was never asked for anything in the pretraining of `mini-bert`. It has gathered
# something of the text all the same, and the mean a little more, by less than these reviews can tell. That is a fact of
# this body and not of feature extraction.
#
# The strategy `features` of `finetune` does the same inside the engine: it stores what the frozen body says and trains
# the head on that. How often does a text pass through the body in three epochs?

# %% tags=["compare"]
for name, strategy in (("features", features(cache="features")), ("head", "head")):
    one, calls = fresh(), []
    one.blocks[0].register_forward_hook(lambda block, given, made, calls=calls: calls.append(len(given[0])))
    mt.finetune(one, tok, train=train[:64], strategy=strategy, epochs=3, batch_size=16, progress=False)
    print(f"{name:8} {sum(calls) / 64:.0f} times")

# %% [markdown]
# `head` trains the same parameters and runs the body anew each time, with its dropout. That is a little better as a
# rule, and costs a forward pass an epoch.
#
# ## 3. The upper blocks, or everything
#
# `last:2` lets the two highest blocks and what stands above them learn. The backward pass stops where nothing below it
# trains: less time, and less memory, since only the blocks that learn have to remember what went through them. `plan`
# shows it before anything is run:

# %% tags=["compare"]
print(plan(fresh(), "last:2", steps=60))

# %% [markdown]
# What each strategy keeps for its backward pass, for one batch:

# %%
batch = tok([row["text"] for row in train[:16]])
labels = torch.zeros(16, dtype=torch.long)
kept = {}
for name, addresses in (("full", ""), ("last:2", "embed, blocks.0-1"), ("last:1", "embed, blocks.0-2"), ("head", "embed, blocks")):
    one = fresh().train()
    if addresses:
        mt.freeze(one, addresses)
    seen, mine = {}, {p.untyped_storage().data_ptr() for p in one.parameters()}

    def keep(t, seen=seen, mine=mine):
        if t.untyped_storage().data_ptr() not in mine:                  # parameters are there anyway
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = one(**batch, labels=labels).loss
    kept[name] = sum(seen.values()) / 1e6
fig, ax = plt.subplots(figsize=(5, 1.7))
ax.barh(list(kept), list(kept.values()), color=BLUE)
ax.set(xlabel="MB kept for the backward pass, 16 texts")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# ## 4. Fast above, slow below
#
# Two ideas of ULMFiT. **Discriminative rates**: the lower a group, the smaller its learning rate, by a factor of 2.6
# for each step down; what it knows is general and should stay. **Gradual unfreezing**: begin with the head, and let one
# more group join with each epoch, so that a random head does not shake the body. Both are drawn before they run:

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.4), sharey=True)
for ax, strategy in zip(axes, ("full", "discriminative", "ulmfit"), strict=True):
    plan(fresh(), strategy, steps=120, epochs=6, lr=1e-3).draw(ax)
    ax.get_legend().remove()
plt.tight_layout()
plt.show()
print(plan(fresh(), "discriminative", steps=60, lr=1e-3))

# %% [markdown]
# ULMFiT's middle picture has one thing that is often missed: with one group an epoch a model of `L` blocks needs more
# than `L` epochs before everything trains. In a run of three epochs the lower blocks never move. The plan says so:

# %% tags=["compare"]
print(plan(fresh(), "ulmfit", steps=60, epochs=3).note)

# %% [markdown]
# ## 5. What moved

# %%
start = {name: p.detach().clone() for name, p in fresh().named_parameters()}
runs = {}
for name, strategy, lr in (("head", "head", 1e-3), ("last:2", "last:2", 1e-4), ("full", "full", 1e-4), ("discriminative", "discriminative", 2e-4)):
    runs[name] = mt.finetune(fresh(), tok, train=train, validation=test, strategy=strategy, epochs=EPOCHS, batch_size=16, lr=lr, progress=False)

fig, ax = plt.subplots(figsize=(6, 2.4))
groups = [group for group in mt.layer_groups(model) if group != "head"]
for (name, run), colour in zip(runs.items(), (GREY, "#7aa6d6", BLUE, ORANGE), strict=True):
    now, drift = dict(run.model.named_parameters()), []
    for group in groups:
        names = mt.layer_groups(run.model)[group]
        moved = torch.cat([(now[n].detach() - start[n]).flatten() for n in names])
        drift.append(float(moved.norm() / torch.cat([start[n].flatten() for n in names]).norm()))
    ax.plot(groups, drift, "o-", color=colour, label=name)
ax.set(ylabel="|change| / |weights|", title="how far each group went")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Frozen means frozen: not "nearly unmoved", but the same bits, and no state in the optimizer. (Weight decay moves
# everything that is in the optimizer, gradient or not. That is how frozen layers move in other people's programs.)

# %% tags=["compare"]
for name in ("head", "last:2"):
    now = dict(runs[name].model.named_parameters())
    frozen = [n for n in start if n.startswith(("embed", "blocks.0", "blocks.1"))]
    print(f"{name}: {sum(torch.equal(now[n], start[n]) for n in frozen)} of {len(frozen)} tensors of embed and the two lower blocks have the same bits")

# %% [markdown]
# "The upper layers change most in fine-tuning": not here. With one rate for all, the blocks of this body went about
# equally far, and only the pooler, which is new, went further. It is a claim about sizes, and it depends on the rate,
# the length of the run and what a change is measured against. With discriminative rates it is true by construction.
#
# ## 6. Which is best?

# %%
print(f"{'':15} trained     accuracy and its 95 % interval, {len(test)} reviews")
for name, run in runs.items():
    m = run.metrics
    print(f"{name:15} {run.report.trainable:9,}   {m['accuracy']:.2f} ({m['accuracy_low']:.2f} to {m['accuracy_high']:.2f})")

# %% [markdown]
# The intervals overlap. Two hundred texts cannot tell 0.62 from 0.66, whatever a table with two decimals suggests. A
# new head alone, with a hundredth of the numbers, is not behind here. It can be otherwise: on 2,000 sentences of sst2
# and a larger body the order is clear (`docs/results.md`): a head on `[CLS]` far behind, the last two blocks near,
# everything and LoRA in front.
#
# How to choose, then? Features if there are very many texts and little time, or if the body must stay; the last blocks
# if memory is short; everything, or LoRA (10), if there is enough of both. And always beside a bag of words, which
# costs nothing: `mt.tasks.baseline`.
#
# ## What to take with you
#
# * A strategy is a table of learning rates: group by step. Look at it before the run.
# * Freezing from below saves memory and time, since the backward pass ends early. Freezing from above saves neither.
# * What is frozen must have the same bits afterwards, and no place in the optimizer.
# * A comparison needs intervals.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 09 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. Which group learns how fast?** `groups` are names from the bottom to the top. Return `{name: rate}`: the highest
# group gets `lr`, each one below it `decay` times less. The answer sets the rates of a run.

# %%
def rates(groups, lr, decay):
    raise NotImplementedError


mt.check("09", rates)

# %% [markdown]
# **2. The slanted triangle.** ULMFiT's rate at step `t` of `T` (Howard & Ruder 2018, equation 3): with `cut = floor(T
# cut_frac)`, `p = t / cut` before the cut and `1 - (t - cut) / (cut (1 / cut_frac - 1))` from it on, the rate is `lr (1
# + p (ratio - 1)) / ratio`. The answer drives a run.

# %%
def slanted(t, T, lr, cut_frac, ratio):
    raise NotImplementedError


mt.check("09", slanted)

# %% [markdown]
# **3. Unfreezing.** With one group joining at each epoch, which groups train in epoch `epoch` (0 is the first)?
# `groups` from the bottom to the top; the highest is the head, and trains from the start. Return a list in the same
# order.

# %%
def thawed(groups, epoch):
    raise NotImplementedError


mt.check("09", thawed)

# %% [markdown]
# **4. Frozen below.** Freeze a model so that its `n` highest blocks and what stands above them learn, without
# `mt.freeze`: set `requires_grad` of `model.named_parameters()`. `n = 0`: only what stands above the blocks.

# %%
def freeze_below(model, n):
    raise NotImplementedError


mt.check("09", freeze_below)

# %% [markdown]
# ## The same in transformers
#
# One step of full tuning, here and in `transformers`, if it is installed: the same loss and the same gradients.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours = fresh().eval()
    ours.save_pretrained("for-transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained("for-transformers").eval()
    labels = torch.tensor([int(row["label"] == "positive") for row in train[:16]])
    a, b = ours(**batch, labels=labels).loss, theirs(**{name: t.long() for name, t in batch.items()}, labels=labels).loss
    a.backward()
    b.backward()
    far = (ours.blocks[0].attn.q_proj.weight.grad - theirs.bert.encoder.layer[0].attention.self.query.weight.grad).abs().max()
    print("loss:", torch.allclose(a, b, atol=1e-5), "| gradient of the lowest query matrix within 1e-5:", bool(far < 1e-5))
    assert torch.allclose(a, b, atol=1e-5) and far < 1e-5
