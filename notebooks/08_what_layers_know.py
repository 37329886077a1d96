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
# # What each layer knows
#
# A pretrained model was asked for hidden words, and for nothing else. What did it learn on the way, and where does it
# keep it? This notebook asks the layers: do they tell two senses of a word apart, what do they say of names, which part
# of the model decides? And for each answer: would a model that knows nothing have given it too?
#
# You need: 04_block_body_head, 07_pretraining. Reading time: about 15 minutes. Letters for shapes: `L` blocks (so `L +
# 1` layers, the first is the embeddings), `N` sentences or words, `T` tokens, `D` width of the model.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import csv
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

import minitransfer as mt

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
model, tok = mt.Model.from_pretrained("mini-bert").eval(), mt.Tokenizer.from_pretrained("mini-bert")
with open(mt.samples.path("senses.tsv"), encoding="utf-8", newline="") as stream:
    rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
senses = {}
for row in rows:
    if row["word"] == "bank":
        senses.setdefault(row["sense"], []).append(row["text"])
for sense, texts in senses.items():
    print(sense, "|", texts[0])

# %% [markdown]
# ## 1. Two senses of "bank"
#
# A table of word vectors has one row for "bank". A layer of a model has another vector in every sentence. If the layer
# tells the senses apart, vectors of one sense lie closer together than vectors of two. The articles measure that by one
# number a layer: the mean distance between senses, divided by the mean distance within.
#
# First, where is the word? By its characters, never by searching the pieces: "bank" is also the first piece of
# "banker". Then the ratio, by hand for the last layer:

# %% tags=["compare"]
texts = [text for group in senses.values() for text in group]
sense = np.array([name for name, group in senses.items() for _ in group])
vectors = []
for text in texts:
    begin = text.index("bank")
    encoding = tok.encodings([text])[0]
    pieces = [i for i, (a, b) in enumerate(encoding.offsets) if a < begin + 4 and b > begin]
    with torch.no_grad():
        states = model(**tok([text]), output_hidden_states=True).hidden_states                  # L + 1 times (1, T, D)
    vectors.append(states[-1][0, pieces].mean(0))
x = torch.stack(vectors).double().numpy()                               # (N, D)
distance = np.linalg.norm(x[:, None] - x[None], axis=-1)                # (N, N)
same, pair = sense[:, None] == sense[None], np.triu(np.ones((len(x), len(x)), bool), 1)
by_hand = distance[pair & ~same].mean() / (distance[pair & same].mean() + 1e-8)
found = mt.study.separation_ratio(model, tok, senses, "bank")
print("by hand and by separation_ratio the same:", bool(abs(by_hand - found.ratio[-1].value) < 1e-5))

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8))
found.draw(axes[0])
for layer, ax in ((len(found.ratio) - 1, axes[1]),):
    plane = found.pca(layer)                                            # (N, 2)
    for name, colour in zip(dict.fromkeys(sense), (ORANGE, BLUE), strict=True):
        here = np.array(found.sense) == name
        ax.scatter(*plane[here].T, color=colour, label=name)
    ax.set(title=f"layer {layer}, the two directions that vary most", xticks=[], yticks=[])
    ax.legend(frameon=False)
plt.tight_layout()
plt.show()
print(found)

# %% [markdown]
# The articles show this ratio climbing through the middle layers of a large BERT. From the first block to the last it
# climbs here too, and in the last layer the interval keeps clear of 1: this layer tells the two senses apart. But the
# highest point of the curve stands in the embeddings, where the vectors of "bank" differ by their position only and
# nothing of a sense is known. Its interval says what that point is worth, and the article draws none. Eight sentences
# are few; the six of an article have bands at least as wide. The right-hand table column divides each dimension by its
# own spread first, since in large models a few dimensions decide on all distances.
#
# What does the word mean to the model in one sentence? Its nearest neighbours, layer by layer:

# %%
general = mt.samples.path("general.txt").read_text(encoding="utf-8").splitlines()[:120]
print(mt.study.neighbours(model, tok, senses["river"][0], "bank", [*general, *texts], k=4))

# %% [markdown]
# ## 2. Probes
#
# To ask a layer about every word, train a classifier on its states: which tag does this word have? What the classifier
# gets right, the layer knows. Or does it? Two controls decide:
#
# * **A random twin**: the same architecture, never trained. Its states still hold which word it is, and that says a
#   lot.
# * **A control task** (Hewitt & Liang 2019): each word gets a random label, always the same one. A layer knows nothing
#   of it; what the classifier gets right there it has learned by heart. The difference is called **selectivity**.

# %%
probe = mt.study.probe(model, tok, mt.samples.path("tagged.conll"), "ner", sentences=60, folds=3)
fig, ax = plt.subplots(figsize=(5.5, 2.8))
probe.draw(ax)
plt.show()
print(probe)

# %% [markdown]
# Names of persons, places and organisations in sixty sentences. The last line is a classifier without any vector: it
# says `O` to everything. The random twin is below that, since its classifier learns words by heart that do not come
# again; the trained body is above. And the control task? In the embeddings and after the first block it is learned as
# well as the real one: what the classifier gets right there may be its own memory. From the second block on the
# selectivity is above zero with its whole interval, so these layers know something of names that is not in the word
# alone. It is a small part of the accuracy, and the accuracy without a control task would have hidden that.
#
# **A warning.** An article probes 14 words with 768 numbers each and reports 93 %. With more numbers than words a
# linear classifier separates anything. Labels drawn by coin:

# %% tags=["compare"]
draw = np.random.default_rng(0)
for width in (2, 8, 64, 256):
    x, coin = draw.standard_normal((14, width)), draw.permutation([0] * 7 + [1] * 7)
    weights = np.linalg.lstsq(np.c_[x, np.ones(14)], 2.0 * coin - 1, rcond=None)[0]
    right = ((np.c_[x, np.ones(14)] @ weights > 0) == coin).mean()
    print(f"{width:4} numbers a word: {right:.0%} of 14 coins learned by heart")

# %% [markdown]
# That is why every probe here comes with its controls and an interval. On a real treebank (17,000 words, `minitransfer
# bench study`) the curve of parts of speech is clear: in `mini-bert` and in MiniLM it is highest in the **second**
# layer, of four and of six, and falls above. As a share of the depth that is where the articles have it, in the third
# to sixth of twelve. The tables are in `minitransfer/bench/results/study.json`.
#
# ## 3. Looking inside
#
# The head can be put on every layer, not only on the last. What would the model say if it stopped there (the logit
# lens)?

# %%
print(mt.study.logit_lens(model, tok, "She opened the [MASK] and went in."))

# %% [markdown]
# From the second block on a noun stands at the mask, and only the last one finds the noun that fits.
#
# `mt.trace` reads what any part computes, by its address, and can change it. Take out one head after another, and see
# how much the answer at the mask moves:

# %%
text = "She opened the [MASK] and went in."
batch = tok([text])
at = batch["input_ids"][0].tolist().index(tok.mask_id)
with torch.no_grad():
    whole = model(**batch).logits[0, at].log_softmax(-1)                # (V,)
c = model.config
moved = np.zeros((c.n_layers, c.n_heads))
for block in range(c.n_layers):
    for head in range(c.n_heads):
        with torch.no_grad(), mt.trace(model) as t:
            t.ablate(f"blocks.{block}.attn", heads=[head])
            without = model(**batch).logits[0, at].log_softmax(-1)
        moved[block, head] = float((whole.exp() * (whole - without)).sum())                     # KL(whole | without)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
image = axes[0].pcolormesh(moved, cmap="Blues", edgecolors="white")
axes[0].set(xlabel="head", ylabel="block", title="how far the answer moves without it", xticks=np.arange(c.n_heads) + 0.5, xticklabels=range(c.n_heads),
            yticks=np.arange(c.n_layers) + 0.5, yticklabels=range(c.n_layers))
fig.colorbar(image, ax=axes[0])
block, head = np.unravel_index(moved.argmax(), moved.shape)
with torch.no_grad(), mt.trace(model, f"blocks.{block}.attn.probs") as t:
    model(**batch)
axes[1].pcolormesh(t[f"blocks.{block}.attn.probs"][0, head], cmap="Blues", edgecolors="white", linewidth=0.3)
pieces = tok.tokens(batch["input_ids"][0])
axes[1].set_xticks(np.arange(len(pieces)) + 0.5, pieces, rotation=90, fontsize=7)
axes[1].set_yticks(np.arange(len(pieces)) + 0.5, pieces, fontsize=7)
axes[1].set(title=f"block {block}, head {head}: who looks where", ylim=(len(pieces), 0))
plt.tight_layout()
plt.show()

# %% [markdown]
# One sentence shows how it is done and proves nothing about the head: another sentence may have another one. And where
# a head looks is not yet what it does (03).
#
# ## 4. Grammar without labels
#
# Which of two sentences does the model find likelier? Nothing is trained for that, so no classifier can cheat. For a
# masked model each word is hidden in its turn (Salazar et al. 2020):

# %% tags=["compare"]
pairs = [("The dogs near the house are hungry.", "The dogs near the house is hungry."), ("She has opened the door.", "She has opens the door."),
         ("He saw himself in the water.", "He saw herself in the water."), ("There were three men in the room.", "There was three men in the room.")]
for good, bad in pairs:
    a, b = mt.study.log_likelihoods(model, tok, [good, bad])
    print(f"{'right' if a > b else 'wrong'}: {good}")

# %% [markdown]
# On ten thousand such pairs (BLiMP, ten kinds) `mini-gpt` has about three quarters right and `mini-bert` about seven in
# ten; chance is a half, and in three kinds `mini-bert` is below it. The figures by kind are in `study.json` too.
#
# ## What to take with you
#
# * A layer's vector of a word depends on the sentence; how far, is measured with an interval.
# * A probe without a random twin and a control task proves little.
# * Reading, changing and taking out parts needs no change of the model: addresses and `mt.trace`.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 08 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The ratio.** `x` (N, D) and `senses`, a list of N names: mean distance of pairs with different senses divided by
# the mean distance of pairs with the same one (plus 1e-8). Each pair once.

# %%
def separation(x, senses):
    raise NotImplementedError


mt.check("08", separation)

# %% [markdown]
# **2. Where is the word?** `offsets` are (begin, end) of each token in `text` (special tokens have (0, 0)). Return the
# positions of the tokens of the whole word `word`, which stands once in the text; "banker" is not "bank". The answer
# finds the words of a separation.

# %%
def places_of_word(text, word, offsets):
    raise NotImplementedError


mt.check("08", places_of_word)

# %% [markdown]
# **3. A control task.** For a list of words: a list of labels 0 ... n - 1, drawn by `random.Random(seed)` with equal
# chances, the same for equal words wherever they stand.

# %%
def control_task(words, n, seed):
    raise NotImplementedError


mt.check("08", control_task)

# %% [markdown]
# **4. The likelihood of a text.** For a masked model: the sum over its ordinary tokens of log p(token | the text with
# only this token hidden). `ids` (T,), `special` (T,) bool, `logits_of` a function from ids (B, T) to logits (B, T, V).

# %%
def pseudo_likelihood(ids, special, mask_id, logits_of):
    raise NotImplementedError


mt.check("08", pseudo_likelihood)

# %% [markdown]
# ## The same in transformers
#
# The ratio of every layer, from the hidden states of `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained("for-transformers")
    theirs = transformers.AutoModel.from_pretrained("for-transformers").eval()
    layers = []
    for text in texts:
        encoding = tok.encodings([text])[0]
        begin = text.index("bank")
        pieces = [i for i, (a, b) in enumerate(encoding.offsets) if a < begin + 4 and b > begin]
        with torch.no_grad():
            states = theirs(input_ids=torch.tensor([encoding.ids]), output_hidden_states=True).hidden_states
        layers.append(torch.stack([state[0, pieces].mean(0) for state in states]))
    x = torch.stack(layers, 1).double().numpy()                         # (L + 1, N, D)
    for layer, one in enumerate(x):
        distance = np.linalg.norm(one[:, None] - one[None], axis=-1)
        ratio = distance[pair & ~same].mean() / (distance[pair & same].mean() + 1e-8)
        print(f"layer {layer}: equal within 1e-5: {bool(abs(ratio - found.ratio[layer].value) < 1e-5)}")
        assert abs(ratio - found.ratio[layer].value) < 1e-5
