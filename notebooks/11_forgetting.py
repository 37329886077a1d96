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
# # Forgetting, and how to stop it
#
# A model that is tuned on one thing gets worse at others. How much, where in the model, and what helps? This notebook
# measures it on a toy where everything can be seen, then on a pretrained body: the loss on general text while the model
# learns a task, how far each block moves, and four ways to hold it: pulling towards the start (L2-SP, EWC), repeating
# the old (replay), and leaving the body alone (LoRA).
#
# You need: 09_head_to_full, 10_lora. Reading time: about 15 minutes. Letters for shapes: `N` tokens, `D` width of the
# model, `w` a weight and `w0` where it started.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

import minitransfer as mt
from minitransfer.text import read_rows

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
tok = mt.Tokenizer.from_pretrained("mini-bert")
train = read_rows(mt.samples.path("reviews.train.tsv"))[::3]
test = read_rows(mt.samples.path("reviews.test.tsv"))

# %% [markdown]
# ## 1. Two tasks, two weights
#
# A model with two weights has learned task A, and goes on with task B. Each task is a valley of its loss. A's valley is
# narrow in one direction and wide in the other: in the wide direction the weights may move far without hurting A.

# %%
def loss_a(w):
    return 20 * (w[..., 0] - 1) ** 2 + 0.3 * (w[..., 1] - 1) ** 2


def loss_b(w):
    return 2 * (w[..., 0] + 0.5) ** 2 + 2 * (w[..., 1] + 1) ** 2


start = torch.tensor([1.0, 1.0])                                        # the minimum of A
importance = torch.tensor([40.0, 0.6])                                  # how sharply A's loss rises in each direction: its second derivatives
pulls = {"none": lambda w: 0.0, "L2-SP": lambda w: 4 * ((w - start) ** 2).sum(), "EWC": lambda w: (importance * (w - start) ** 2).sum() / 2}
paths = {}
for name, pull in pulls.items():
    w, path = start.clone().requires_grad_(), []
    for _ in range(60):
        path.append(w.detach().clone())
        (slope,) = torch.autograd.grad(loss_b(w) + pull(w), w)
        w = (w - 0.02 * slope).detach().requires_grad_()
    paths[name] = torch.stack(path)
grid = torch.stack(torch.meshgrid(torch.linspace(-1.3, 1.8, 120), torch.linspace(-1.6, 1.8, 120), indexing="xy"), -1)
fig, ax = plt.subplots(figsize=(5, 3.6))
ax.contour(grid[..., 0], grid[..., 1], loss_a(grid), levels=[0.3, 1, 3, 9, 27], colors=BLUE, linewidths=0.8)
ax.contour(grid[..., 0], grid[..., 1], loss_b(grid), levels=[0.3, 1, 3, 9], colors=ORANGE, linewidths=0.8)
for (name, path), style in zip(paths.items(), ("-", "--", ":"), strict=True):
    ax.plot(*path.T, "k" + style, label=f"{name}: A {loss_a(path[-1]):.1f}, B {loss_b(path[-1]):.1f}")
ax.set(xlabel="w1", ylabel="w2", title="blue: A's loss, orange: B's")
ax.legend(frameon=False, fontsize=7, loc="upper left")
plt.show()

# %% [markdown]
# Without a pull the weights run to B's minimum, and A is forgotten. L2-SP (Li et al. 2018) pulls towards the start with
# the same force in every direction, and so gives up a part of B where A would not have minded. **EWC** (Kirkpatrick et
# al. 2017) weighs each direction by how much A cares: it moves along the valley.
#
# How much does a task care for a weight? The Fisher information: the mean square of the slope of the log-probability.
# For a real model it is computed text by text:

# %% tags=["compare"]
from minitransfer.objectives import Masked
from minitransfer.text import PackedBatches, tokenize_corpus
from minitransfer.transfer import fisher, l2sp

model = mt.Model.from_pretrained("mini-bert")
old = PackedBatches(tokenize_corpus(tok, mt.samples.path("general.txt")), tok, 64, 8)
cares = fisher(model, old, Masked(tok), n=16)
by_part = {}
for name, f in cares.items():
    part = name.split(".")[0] + ("." + name.split(".")[1] if name.startswith("blocks") else "")
    by_part.setdefault(part, []).append(f.flatten())
order = sorted(by_part, key=lambda part: -torch.cat(by_part[part]).mean())
print("from the part that general text cares for most to the least, for each weight:", order)

# %% [markdown]
# ## 2. What a pull is
#
# A pull is a term beside the loss of the task, `alpha / 2 sum (w - w0)^2` or `strength / 2 sum F (w - w0)^2`. Its slope
# is a spring: `alpha (w - w0)`. Checked on the engine:

# %% tags=["compare"]
tuned = mt.Model.from_pretrained("mini-bert", head="sequence", labels=["negative", "positive"])
w0 = {name: p.detach().clone() for name, p in tuned.named_parameters()}
with torch.no_grad():
    for p in tuned.parameters():
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.01)


class Nothing:
    """A task without a loss: what is left is the pull."""

    def __call__(self, model, batch, generator):
        return sum(p.sum() for p in model.parameters()) * 0.0, 1


objective = l2sp(alpha=0.5, beta=0.0)(mt.Model.from_pretrained("mini-bert", head="sequence", labels=["negative", "positive"]), Nothing())
total, _ = objective(tuned, {}, torch.Generator())
total.backward()
name = "blocks.1.mlp.up_proj.weight"
spring = 0.5 * (tuned.get_parameter(name) - w0[name])
print("slope of the pull = alpha (w - w0):", torch.allclose(tuned.get_parameter(name).grad, spring, atol=1e-6))

# %% [markdown]
# The spring starts at the **pretrained** weights. Ordinary weight decay is a spring too, but towards zero, where no
# model ever was.
#
# ## 3. Measure it
#
# `mt.study.forgetting` tunes copies of a model in several ways and asks each, before and after, for masked words of
# general text that was not in training. The rise of that loss is what was forgotten; intervals are over rows of text.

# %%
found = mt.study.forgetting(mt.Model.from_pretrained("mini-bert"), tok, train=train, validation=test, general=mt.samples.path("general.txt"),
                            runs=("full", "lora", "ewc", "replay"), rates=(5e-5, 1e-3), lr=5e-4, batch_size=16, epochs=2)
print(found)

# %%
fig = plt.figure(figsize=(9, 5.6))
axes = np.array([[fig.add_subplot(2, 2, 1), fig.add_subplot(2, 2, 2)], [fig.add_subplot(2, 2, 3), fig.add_subplot(2, 2, 4)]])
found.draw(axes)
plt.tight_layout()
plt.show()

# %% [markdown]
# What can be read from it:
#
# * **The learning rate decides more than anything else.** At the usual rate of tuning these few steps forget nothing,
#   and learn a little: the interval of the accuracy is above one half. At twenty times that rate much is forgotten, and
#   the accuracy is not clearly better for it.
# * EWC and replay hold the loss on general text at the same rate as full tuning; replay needs the old text for it, EWC
#   only a measure of what mattered. At this strength EWC holds so hard that the reviews are not learned either; replay
#   learns them.
# * LoRA's frozen body is not moved, and so the change can be taken off again: the old model is still there. What it
#   says **with** the change is another matter.
# * The accuracies on 200 reviews have wide intervals. What holding on to the old costs the new, these reviews cannot
#   tell; `docs/results.md` has twenty epochs on a real set, with the loss on general text at each.
#
# "Catastrophic" is a word of the articles for what happens at the right end of that curve. With the usual rates for
# tuning it is a slow drift.
#
# ## What to take with you
#
# * Measure forgetting with the old objective on old text, with an interval.
# * A pull is a spring to the pretrained weights; EWC makes it stiff where the old task cares.
# * Replay needs old text and works without knowing any weight.
# * Lower the rate before anything else.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 11 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The pull.** From two dicts of tensors, weights now and at the start, and a dict of importances: `strength / 2 sum
# F (w - w0)^2` over the names in `start`. The answer becomes EWC's pull in the engine.

# %%
def ewc_pull(now, start, importance, strength):
    raise NotImplementedError


mt.check("11", ewc_pull)

# %% [markdown]
# **2. The Fisher information.** `slopes` (n, D) are the gradients of the log-probability for n texts, one text each.
# Return the diagonal, (D,).

# %%
def fisher_diagonal(slopes):
    raise NotImplementedError


mt.check("11", fisher_diagonal)

# %% [markdown]
# **3. Linear CKA.** How alike are two sets of states of the same N tokens, x (N, D) and y (N, E)? Centre both over the
# tokens; `|x^T y|^2 / (|x^T x| |y^T y|)` with Frobenius norms (Kornblith et al. 2019).

# %%
def linear_cka(x, y):
    raise NotImplementedError


mt.check("11", linear_cka)

# %% [markdown]
# **4. Shares.** Old rows are to make up `share` of all rows, beside `new` rows of the task. How many old rows is that
# (as a fraction), and what has the mean loss over the old rows to be multiplied by, so that each old row counts as much
# as each new one?

# %%
def old_rows_and_weight(new, share):
    raise NotImplementedError


mt.check("11", old_rows_and_weight)

# %% [markdown]
# ## The same in transformers
#
# The loss on masked general text before and after tuning, asked of `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours = mt.Model.from_pretrained("mini-bert").eval()
    ours.save_pretrained("for-transformers")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained("for-transformers").eval()
    batch = tok(["The old man and the boy sat by the river.", "Nobody came to the house in the evening."])
    shown, asked = Masked(tok, 0.3).draw(batch["input_ids"], batch["attention_mask"], torch.Generator().manual_seed(0))
    with torch.no_grad():
        total, n = ours.head.loss(ours.body(input_ids=shown, attention_mask=batch["attention_mask"]), asked)
        other = theirs(input_ids=shown, attention_mask=batch["attention_mask"].long(), labels=asked).loss
    print("the loss that is watched is equal within 1e-5:", bool(abs(total / n - other) < 1e-5))
    assert abs(total / n - other) < 1e-5
