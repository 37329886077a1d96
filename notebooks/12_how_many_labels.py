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
# # How many labels is pretraining worth?
#
# "With transfer learning you need ten to a hundred times fewer labels." What does such a sentence mean, how is it
# measured, and when is it true? This notebook reads the number off a curve, finds how many test sentences it takes to
# see anything, and then measures it three times: where pretraining helps, where the answer hangs on how the other side
# was trained, and where pretraining hurts.
#
# You need: 09_head_to_full. Reading time: about 15 minutes. Letters for shapes: `M` methods, `Z` training sizes, `S`
# seeds, `V` held-out texts.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import random
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

import minitransfer as mt
from minitransfer.study import TransferGain
from minitransfer.tasks.metrics import wilson
from minitransfer.text import sample_rows

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
tok = mt.Tokenizer.from_pretrained("mini-bert")
body = mt.Model.from_pretrained("mini-bert", head="none")

# %% [markdown]
# ## 1. One picture, two readings
#
# Train with `n` labels, once with pretraining and once without, and ask the same held-out texts. Do it for several `n`.
# There are two curves, and two ways to read the space between them. **Upwards**: with the same labels, how much more is
# right? That is the **gain**. **Sideways**: for the same accuracy, how many times as many labels does the other one
# need? That is what pretraining is **worth** in labels.
#
# Here the two true curves are made up, so we know what should come out:

# %%
sizes = (16, 64, 256, 1024)
truth = {"random": np.array([0.55, 0.66, 0.80, 0.90]), "full": np.array([0.70, 0.82, 0.90, 0.93])}         # (Z,) each
fig, ax = plt.subplots(figsize=(5, 2.8))
for (name, curve), colour in zip(truth.items(), (GREY, BLUE), strict=True):
    ax.plot(sizes, curve, "o-", color=colour, label={"random": "without pretraining", "full": "with"}[name])
ax.annotate("", (16, 0.70), (16, 0.55), arrowprops={"arrowstyle": "<->", "color": ORANGE})
ax.text(17.5, 0.60, "gain", color=ORANGE)
ax.annotate("", (256, 0.80), (54, 0.80), arrowprops={"arrowstyle": "<->", "color": ORANGE})
ax.text(90, 0.81, "worth", color=ORANGE)
ax.set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="labels", ylabel="accuracy")
ax.minorticks_off()
ax.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# Sideways by hand. At which number of labels does the lower curve reach what the upper one has at `n`? Between two
# sizes we draw a line over the logarithm of the labels, as in the picture. `TransferGain` does the same with what was
# measured: for each method, size, seed and held-out text, whether the answer was right.

# %% tags=["compare"]
draw = np.random.default_rng(0)
p = np.stack([truth["random"], truth["full"]])                          # (M, Z)
right = draw.random((2, 4, 3, 400)) < p[..., None, None]                # (M, Z, S, V), drawn with the true chances
found = TransferGain(("random", "full"), sizes, (0, 1, 2), right, np.zeros((2, 4, 3)), (0, 0))
print(found)
print()
for z, n in enumerate(sizes[:2]):
    m = np.exp(np.interp(truth["full"][z], truth["random"], np.log(sizes)))
    print(f"true worth at {n} labels: {m / n:.2f}x, measured {found.worth()[z]}")

# %% [markdown]
# Read the last row. At the right end it cannot say more than `> 4x` or `> 1x`: no size was tried at which the lower
# curve is as good. **A worth is bounded by the sizes you tried**, on both sides, and the table prints the bound and not
# a number. It also falls from left to right. "Ten times fewer labels" without an `n` is half a sentence.
#
# ## 2. Four sentences
#
# An article draws such a figure with four test sentences: the pretrained line is flat near the top, words counted climb
# slowly. (Its pretrained line is a model that somebody had tuned on another set of the same task. It sees none of the
# labels, so it is flat whatever they teach.) What can four sentences say?

# %% tags=["compare"]
for rows in (4, 50, 200, 1000, 10_000):
    low, high = wilson(round(0.9 * rows) if rows > 4 else 4, rows)
    print(f"{rows:6,} held-out texts, {'all' if rows == 4 else '90 %'} right: between {low:.1%} and {high:.1%}")

# %% [markdown]
# Half as wide takes four times as many texts. There is one thing that costs nothing: **ask both methods the same
# texts**. Most texts are easy or hard for both, and what they share falls out of the difference.

# %% tags=["compare"]
easy = draw.random(400) < 0.8                                           # (V,)
one, other = (easy ^ (draw.random(400) < 0.05) for _ in range(2))       # two methods that differ from it on few texts
apart = np.sqrt(one.var() / 400 + other.var() / 400)
paired = (one.astype(float) - other).std() / np.sqrt(400)
print(f"half the interval of the difference: {1.96 * apart:.3f} as if on different texts, {1.96 * paired:.3f} on the same")

# %% [markdown]
# And a third source of chance: **which** labels were drawn. With 16 of them it matters much. So each seed draws its
# own, in equal shares of the classes, larger draws hold the smaller ones, and the intervals of `transfer_gain` come
# from resampling both the held-out texts and the seeds.
#
# ## 3. Where pretraining knows something
#
# Is a sentence about a living being or about a thing? The sentences are made from frames and sixty nouns, so that it
# can be seen what is learned from what.

# %%
LIVING = ("king/queen girl/boy brother/sister aunt/uncle father/mother daughter/son man/woman princess/prince horse/cow cat/dog fox/wolf bird/fish "
          "teacher/doctor captain/soldier farmer/servant")
THINGS = ("lake/river house/cottage window/door table/chair street/road tree/bush letter/book hill/mountain village/town ship/boat field/garden wall/roof "
          "moon/star stone/rock lamp/bell")
MEANING = {"living": LIVING.replace("/", " ").split(), "thing": THINGS.replace("/", " ").split()}
FRAMES = ("I {verb} the {word} {noun} {when}.", "{when} we {verb} a {word} {noun}.", "They {verb} my {noun} {when}.")


def sentences(nouns, n, seed):
    draw, found = random.Random(seed), {}
    while len(found) < n:
        label = draw.choice(list(nouns))
        noun, verb = draw.choice(nouns[label]), draw.choice("saw remember forgot painted mentioned left found loved".split())
        word, when = draw.choice("old small great strange white beautiful poor quiet".split()), draw.choice(["yesterday", "today", "again", "in spring", "last year", "at night"])
        text = draw.choice(FRAMES).format(verb=verb, word=word, noun=noun, when=when)
        found[text[0].upper() + text[1:]] = {"noun": noun, "label": label}
    return [{"text": text, **row} for text, row in found.items()]


rows = sentences(MEANING, 900, 0)
train, held_out = rows[:600], rows[600:]
for row in rows[:4]:
    print(row["label"], "|", row["text"])

# %% [markdown]
# A method that counts words can only know the nouns that stand in its training sentences. How many is that?

# %% tags=["compare"]
for n in (16, 64, 256):
    seen = [{row["noun"] for row in sample_rows(train, n, seed, by="label")} for seed in range(3)]
    share = np.mean([[row["noun"] in nouns for row in held_out] for nouns in seen])
    print(f"{n:3} labels: {np.mean([len(nouns) for nouns in seen]):.0f} of 60 nouns seen, which are in {share:.0%} of the held-out sentences")

# %% [markdown]
# Three methods that take hardly any time: words counted (TF-IDF and a logistic regression), static vectors (the mean of
# the model's own token table), and the mean states of the frozen body, both with the same regression on them.

# %%
cheap = {"sizes": (16, 64, 256), "methods": ("logistic", "vectors", "features"), "max_length": 16}
found = mt.study.transfer_gain(body, tok, train=train, validation=held_out, seeds=3, **cheap)
print(found)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 2))
found.draw(axes[0])
z, shares = found.sizes.index(64), []
for method in ("logistic", "features"):
    parts = {True: [], False: []}
    for s, seed in enumerate(found.seeds):
        nouns = {row["noun"] for row in sample_rows(train, 64, seed, by="label")}
        for row, right in zip(held_out, found.right[found.at(method), z, s], strict=True):
            parts[row["noun"] in nouns].append(right)
    shares.append([np.mean(parts[True]), np.mean(parts[False])])
for i, (name, share, colour) in enumerate(zip(("TF-IDF", "features"), shares, (GREY, BLUE), strict=True)):
    axes[1].bar(np.arange(2) + 0.35 * (i - 0.5), share, 0.33, color=colour, label=name)
axes[1].axhline(0.5, color="k", linewidth=0.6)
axes[1].set(xticks=(0, 1), xticklabels=("noun was seen", "noun was not"), title="64 labels", ylim=(0, 1.2))
axes[1].legend(frameon=False, loc="upper center", ncols=2)
plt.tight_layout()
plt.show()

# %% [markdown]
# The right-hand picture is the whole of transfer. On nouns that stand in a labelled sentence, counting words does well.
# On the others it guesses. The body has met them in its pretraining, in the places where beings or things stand, and a
# label for "king" also says something of "uncle".
#
# Look at the row of worth: what it is at 16 labels, and what at 256, where nearly every noun was seen and little is
# left to be carried over.
#
# ## 4. Against whom?
#
# The same with the whole model tuned, against a **random twin**: the same architecture, drawn anew. Each gets 30 steps.

# %%
settings = {"sizes": (64, 256), "seeds": 1, "lr": 5e-4, "max_length": 16}
tuned = mt.study.transfer_gain(body, tok, train=train, validation=held_out, methods=("random", "full"), steps=30, batch_size=16, **settings)
print(tuned)

# %% [markdown]
# The twin is hardly better than guessing, and so the worth is beyond what can be seen. But 30 steps are enough for the
# pretrained model, which starts near. The twin starts from nothing. Give it more of them, and larger batches, on the
# very same labels:

# %%
longer = mt.study.transfer_gain(body, tok, train=train, validation=held_out, methods=("random",), steps=60, batch_size=32, **settings)
both = TransferGain(("random", "full"), tuned.sizes, tuned.seeds, np.stack([longer.right[0], tuned.right[1]]), np.stack([longer.seconds[0], tuned.seconds[1]]), tuned.trained)
print(both)

# %% [markdown]
# No label was added, and the worth is another. A part of what looked like labels was **steps**. That is the first
# question to any such figure: was the other side trained until it stopped getting better? The second: is it the best
# that works without pretraining? Words counted learn in a blink, and were ahead of the hurried twin. `transfer_gain`
# compares with both.
#
# With one seed the intervals hold only the chance of the held-out texts. Which labels were drawn is not in them.
#
# ## 5. Where it hurts
#
# The same sentences, the same nouns, other labels. Two teams have shared out the words, and of each pair of words that
# are alike one went to either team:

# %% tags=["compare"]
pairs = [pair.split("/") for pair in f"{LIVING} {THINGS}".split()]
TEAMS = {"red": [pair[0] for pair in pairs], "blue": [pair[1] for pair in pairs]}
teams = sentences(TEAMS, 900, 0)
print("red: ", " ".join(TEAMS["red"][:8]), "...")
print("blue:", " ".join(TEAMS["blue"][:8]), "...")

# %%
against = mt.study.transfer_gain(body, tok, train=teams[:600], validation=teams[600:], seeds=3, **cheap)
print(against)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
for ax, one, title in zip(axes, (found, against), ("living or thing", "red or blue"), strict=True):
    one.draw(ax)
    ax.set(title=title)
plt.tight_layout()
plt.show()

# %% [markdown]
# **Negative transfer**: the interval of the gain lies below zero, and the table says so in these words. It is no
# accident of a bad run. What the body knows is that "king" and "queen" are alike, and here that is exactly what must
# not be believed. Where the worth is below `1x`, fewer labels would have done without pretraining. The line of TF-IDF
# is the same in both pictures: for it the nouns have only changed their names.
#
# Real tasks lie between the two. Labels that follow the meaning of words gain most. Part numbers, codes, the habits of
# one office: there pretraining has nothing to carry over, and a method that counts is the one to beat. It is always
# beside, since one never knows.
#
# ## 6. A real case
#
# Reviews, where the verdict is of the whole text:

# %%
reviews = mt.study.transfer_gain(body, tok, train=mt.samples.path("reviews.train.tsv"), validation=mt.samples.path("reviews.test.tsv"),
                                 sizes=(32, 256), methods=("logistic", "features"), seeds=3)
print(reviews)

# %% [markdown]
# Where the table says `not shown`, nothing is claimed: two hundred texts and three draws do not tell these methods
# apart. That is a result too. It does not say that pretraining is worth nothing here. An interval that goes from far
# below `1x` to beyond the largest size says that this experiment cannot know.
#
# So, "ten to a hundred times fewer labels"? In this notebook one and the same body was worth several times the labels,
# or fewer than there were, by task, by `n`, and by how the other side was trained. A large body that has read a
# thousand times more moves the curves up, and not these reasons. `python -m minitransfer.bench.transfer.gain` does the
# same on a real set and a larger body.
#
# ## What to take with you
#
# * Gain is read upwards, worth sideways. A worth has an `n`, an opponent, an interval, and bounds from the sizes tried.
# * Both methods answer the same held-out texts, and several draws of labels.
# * An opponent that was not trained to the end makes labels out of steps.
# * Pretraining carries over what is alike. Where the labels go across that, it hurts.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 12 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. Labels needed.** `curve` are the accuracies at `sizes`, growing numbers of labels. With how many labels is
# `wanted` first reached? Between two sizes by a line over the logarithm of the labels. `0.0` if the smallest size
# reaches it, `math.inf` if none does. A curve that falls has still reached what it had before. The answer gives the
# worth in a `TransferGain`.

# %%
def labels_needed(curve, sizes, wanted):
    raise NotImplementedError


mt.check("12", labels_needed)

# %% [markdown]
# **2. The twin.** A body with the architecture of `model` (its class and its `model.config`), and weights drawn anew
# with `seed`. `model` itself must not change. The answer is what `transfer_gain` compares with.

# %%
def twin(model, seed):
    raise NotImplementedError


mt.check("12", twin)

# %% [markdown]
# **3. A fair draw.** From a list of `labels` draw `n` places, at random by `seed`, as a list of growing numbers. The
# share of each label is kept to within one row, and with one seed the larger draws hold the smaller ones. Hint: give
# each row a key between 0 and 1 by its place in the shuffled rows of its label, and take the rows with the smallest
# keys. The answer draws the labels of a `transfer_gain`.

# %%
def fair_draw(labels, n, seed):
    raise NotImplementedError


mt.check("12", fair_draw)

# %% [markdown]
# **4. The same texts.** `a` and `b` (S, V), bool, say which of the same `V` texts two methods had right with each of
# `S` seeds. Return the gain of `a` over `b`, and half of its 95 % interval (1.96 standard errors) over the texts: take
# the mean over the seeds first.

# %%
def paired_gain(a, b):
    raise NotImplementedError


mt.check("12", paired_gain)

# %% [markdown]
# ## The same in transformers
#
# `features` by hand, from the states of `transformers`, if it is installed: the mean over the tokens, a logistic
# regression, and the same answers.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    from sklearn.linear_model import LogisticRegression
    from minitransfer.transfer import extract_features

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    body.save_pretrained("for-transformers")
    theirs = transformers.AutoModel.from_pretrained("for-transformers").eval()

    def mean_states(rows):
        batch = tok([row["text"] for row in rows])
        with torch.no_grad():
            states = theirs(**{name: t.long() for name, t in batch.items()}).last_hidden_state          # (B, T, D)
        keep = batch["attention_mask"][..., None]
        return ((states * keep).sum(1) / keep.sum(1)).numpy()           # (B, D)
    labelled = sample_rows(train, 64, 0, by="label")
    x, y = extract_features(body, tok, labelled, pooling="mean")
    far = np.abs(mean_states(labelled) - x).max()
    print("features equal within 1e-5:", bool(far < 1e-5))
    ours, other = (LogisticRegression(max_iter=1000).fit(one, y).predict(held) for one, held in (
        (x, extract_features(body, tok, held_out, pooling="mean")[0]), (mean_states(labelled), mean_states(held_out))))
    print(f"the same answer for {np.mean(ours == other):.1%} of the held-out sentences")
    assert far < 1e-5 and np.mean(ours == other) > 0.99
