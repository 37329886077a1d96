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
# # First run: from a pretrained model to your own classifier
#
# Transfer learning in one sentence: a model that has read much text learns a task from few labelled rows. This notebook
# does it once from beginning to end on a laptop: look at a small pretrained model, tune it to tell good reviews from
# bad ones in four ways, compare the ways honestly, use the result, save it, read its mistakes.
#
# You need: Python, and a rough idea of what a neural network is. Reading time: about 10 minutes. Nothing is downloaded.
#
# Letters for shapes: `B` texts in a batch, `T` tokens in a text, `D` width of the model, `V` size of the vocabulary.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import math
import textwrap
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.tasks.metrics import wilson
from minitransfer.text import read_rows

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here, so their absence is no news
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. A pretrained model
#
# `mini-bert` comes with the project: a small BERT, pretrained with this engine on books and encyclopedia articles. Its
# folder holds a model card that says on how much, and for how long. A model is a **body** (the embeddings and a stack
# of blocks) and a **head** that asks the body a question. The head it was pretrained with asks: which word is hidden
# here?

# %%
tok = mt.Tokenizer.from_pretrained("mini-bert")
model = mt.Model.from_pretrained("mini-bert").eval()
c = model.config
print(f"{c.n_layers} blocks, {c.n_heads} heads, D = {c.d_model}, V = {c.vocab_size}, at most {c.max_len} tokens a text")
print("head:", model.head_name)
mt.trainable_report(model)

# %% [markdown]
# Nobody told this model what a noun is. It was given text in which words had been covered, and had to guess them. What
# it learned from that can be asked: put `[MASK]` somewhere and read its five best guesses with their probabilities. The
# sentences below ask for three things: for the right kind of word, for a word that fits the mood, and for a fact.

# %%
questions = {"the kind of word": ["She [MASK] the door and went into the house.", "He put his hand [MASK] the table."],
             "the mood": ["The food was [MASK] and we will come again.", "It was a sad and [MASK] day."],
             "a fact": ["London is the capital of [MASK].", "There are seven days in a [MASK]."]}
for kind, texts in questions.items():
    print(kind)
    for text in texts:
        guesses = mt.fill(model, tok, text, k=5)[0]                 # one list per mask: (token, probability)
        print(f"  {text:46} " + "  ".join(f"{token} {p:.2f}" for token, p in guesses))

# %% [markdown]
# The kind of word is right. The mood is right for the day and hardly for the food. Of facts it has the kind of answer,
# a country or a length of time, more surely than the answer.
#
# ## 2. What a model reads
#
# Not words, but numbers of **tokens** from a fixed vocabulary. A frequent word is one token, a rare one several pieces
# (`##` marks a piece that continues a word), and the text is put between two special tokens: `[CLS]`, whose vector will
# stand for the whole text, and `[SEP]` at the end.

# %%
text = "The waitress was unfriendly."
ids = tok.encode(text)
for i, token in zip(ids, tok.tokens(ids), strict=True):
    print(f"{i:6} {token}")
print("and back:", tok.decode(ids))

# %% [markdown]
# A **batch** is a dict of tensors. Texts differ in length, so the shorter ones are filled up, and `attention_mask` says
# which positions are text.

# %%
texts = ["Not bad at all.", "We waited an hour for cold soup, and nobody said sorry.", "Wonderful!"]
batch = tok(texts)
for name, t in batch.items():
    print(f"{name:15} {tuple(t.shape)} {t.dtype}")                                  # (B, T)


def draw_batch(batch):
    rows, columns = batch["input_ids"].shape
    ax = plt.figure(figsize=(0.72 * columns, 0.36 * rows + 0.3)).subplots()
    for b in range(rows):
        for t, token in enumerate(tok.tokens(batch["input_ids"][b])):
            kept = bool(batch["attention_mask"][b, t])
            ax.add_patch(plt.Rectangle((t, b), 0.96, 0.92, color="#cfe0f3" if kept else "#eceef0"))
            ax.text(t + 0.48, b + 0.46, token, ha="center", va="center", fontsize=7.5, color="k" if kept else "#9aa0a8")
    ax.set(xlim=(0, columns), ylim=(rows, 0), title="blue: attention_mask is True; grey: padding")
    ax.axis("off")


draw_batch(batch)
plt.show()

# %% [markdown]
# If the mask does its work, a text gives the same numbers alone and among longer ones:

# %%
with torch.no_grad():
    together = model(**batch).last_hidden_state[2]                  # (T, D), most of it padding
    alone = model(**tok(texts[2])).last_hidden_state[0]             # (its own T, D)
print(f"largest difference: {(together[:len(alone)] - alone).abs().max():.1e}")
assert torch.allclose(together[:len(alone)], alone, atol=1e-5)

# %% [markdown]
# ## 3. A task: good review or bad review?
#
# The package brings reviews that were written for this project, in three files with three uses: **train** is learned
# from, **validation** is for choosing (here: the epoch whose weights are kept), **test** is looked at once, at the end.

# %%
splits = ("train", "validation", "test")
train, validation, test = (read_rows(mt.samples.path(f"reviews.{split}.tsv")) for split in splits)
labels = sorted({row["label"] for row in train})
for split, rows in zip(splits, (train, validation, test), strict=True):
    print(f"{split:10} {len(rows):4} reviews", {label: sum(row["label"] == label for row in rows) for label in labels})
print()
for row in train[:6]:
    print(f"{row['label']:9} {row['text']}")

# %% [markdown]
# Before any network, the simplest thing that could work: count how often each token occurs in good and in bad reviews,
# and add up the evidence (naive Bayes). Whatever a network reaches has to be seen against this.

# %%
def token_shares(rows):
    """How often each token occurs, as a share of all; one is added to each count, so that none is zero.  (V,)"""
    ids = torch.tensor([i for row in rows for i in tok.encode(row["text"])])
    counts = torch.bincount(ids, minlength=tok.vocab_size) + 1
    return counts / counts.sum()


shares = {label: token_shares([row for row in train if row["label"] == label]) for label in labels}
log_odds = (shares["positive"] / shares["negative"]).log()                             # (V,)


def counts_say(text):
    return "positive" if log_odds[tok.encode(text)].sum() > 0 else "negative"


print("tokens for positive:", " ".join(tok.tokens(log_odds.topk(12).indices)))
print("tokens for negative:", " ".join(tok.tokens((-log_odds).topk(12).indices)))
right = sum(counts_say(row["text"]) == row["label"] for row in validation)
print(f"right on validation: {right} of {len(validation)}")

# %% [markdown]
# ## 4. A new head
#
# The body stays, the head is replaced: instead of a word, it is asked for one of two labels. The report of the load
# says exactly what came from the file, what is new and what was left out. New means random: this model guesses.

# %%
def fresh_model(pretrained=True, seed=0):
    """mini-bert with a new head; or its twin: the same architecture, but a body that has read nothing."""
    model = mt.Model.from_pretrained("mini-bert", head="sequence", labels=labels, seed=seed)
    return model if pretrained else mt.Model(model.config, head="sequence", labels=labels, seed=seed)


untrained = fresh_model()
report = untrained.load_report
print(f"{len(report.loaded)} parameters loaded")
print("new:    ", ", ".join(report.new))
print("dropped:", ", ".join(report.dropped))
said = mt.predict(untrained, tok, [row["text"] for row in validation])
lucky = sum(one.label == row["label"] for one, row in zip(said, validation, strict=True))
print(f"right on validation before any training: {lucky} of {len(validation)}")

# %% [markdown]
# ## 5. Four ways to tune it
#
# * **head**: the body is frozen, only what is new learns. Cheapest; the body has to contain the answer already.
# * **LoRA**: the body is frozen too, but beside some of its matrices a small correction of low rank learns.
# * **full**: everything learns.
# * **random start**: full, on the twin that was never pretrained. The difference to *full* is what pretraining was
#   worth.
#
# All see the same rows in the same order for the same number of epochs. Each has a learning rate of its own: the more
# of the pretrained weights may change, the smaller.

# %%
ways = {"random start": ("full", 5e-4), "head": ("head", 5e-3), "LoRA": ("lora", 2e-3), "full": ("full", 2e-4)}
EPOCHS = 5


def tune(way, seed=0, out=None):
    strategy, lr = ways[way]
    model = fresh_model(pretrained=way != "random start", seed=seed)
    return mt.finetune(model, tok, train=train, validation=validation, strategy=strategy, lr=lr, epochs=EPOCHS,
                       batch_size=16, seed=seed, out=out, log_every=4, progress=False)


results = {way: tune(way, out=Path("runs") / way) for way in ways}
results["LoRA"].report

# %% [markdown]
# That table is the one of LoRA: nearly everything is frozen, and the rows with a share say where its corrections sit.
# How the training loss fell, and how many validation reviews were right after each epoch:

# %%
COLOURS = {"word counts": "grey", "random start": "#d55e00", "head": "#e69f00", "LoRA": "#0072b2", "full": "#009e73"}
fig, (losses, accuracies) = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained")
for way, result in results.items():
    per_epoch = max(one["step"] for one in result.history) / EPOCHS
    logged = [(one["step"] / per_epoch, one["loss"]) for one in result.history if "loss" in one]
    checked = [(one["step"] / per_epoch, 100 * one["evaluation"]["accuracy"])
               for one in result.history if "evaluation" in one]
    losses.plot(*zip(*logged, strict=True), color=COLOURS[way])
    accuracies.plot(*zip(*checked, strict=True), color=COLOURS[way], marker="o", markersize=3.5, label=way)
losses.set(title="training loss, nats per review", xlabel="epoch", ylim=(0, None))
accuracies.set(title="accuracy on the validation reviews, %", xlabel="epoch", xticks=range(1, EPOCHS + 1))
accuracies.axhline(50, color="#b9bec6", linewidth=1, linestyle=":")
fig.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# ## 6. The comparison
#
# Now the test reviews, once. An accuracy measured on a few hundred rows is an estimate. Its 95 % interval holds the
# true accuracies with which such a count would be no surprise. It covers the choice of the rows, not the choice of the
# seed.

# %%
def right_ones(answers, rows):
    return [answer.label == row["label"] for answer, row in zip(answers, rows, strict=True)]


answers = {way: mt.predict(result.model, tok, [row["text"] for row in test]) for way, result in results.items()}
hits = {"word counts": [counts_say(row["text"]) == row["label"] for row in test]}
hits |= {way: right_ones(answers[way], test) for way in answers}


def percent(right):
    low, high = wilson(sum(right), len(right))
    return f"{100 * sum(right) / len(right):5.1f} % ({100 * low:4.1f} to {100 * high:4.1f})"


print("way             trainable    share   seconds   right on test   accuracy (95 % interval)")
for way, right in hits.items():
    costs = " " * 29
    if way in results:
        total = results[way].report.total
        costs = f"{total.trainable:10,}  {total.percent:6.2f}%  {results[way].seconds:8.1f}"
    print(f"{way:14} {costs}   {sum(right):6} of {len(right)}   {percent(right)}")

# %%
fig, ax = plt.subplots(figsize=(6.5, 2))
for y, (way, right) in enumerate(hits.items()):
    low, high = wilson(sum(right), len(right))
    ax.plot([100 * low, 100 * high], [y, y], color=COLOURS[way], linewidth=2)
    ax.plot(100 * sum(right) / len(right), y, "o", color=COLOURS[way])
ax.axvline(50, color="#b9bec6", linewidth=1, linestyle=":")
ax.set_yticks(range(len(hits)), hits)
ax.xaxis.set_major_locator(plt.MultipleLocator(5))
ax.set(title="accuracy on the test reviews, %, with 95 % intervals (dotted: guessing)", ylim=(4.5, -0.5))
ax.spines["left"].set_visible(False)
ax.tick_params(axis="y", length=0)
plt.show()

# %% [markdown]
# When two ways judge the *same* rows, there is a sharper question than whether intervals overlap: look only at the rows
# where exactly one of them is right. If the ways were equally good, each such row would be a toss of a coin (the sign
# test).

# %%
def sign_test(only_a, only_b):
    """The probability of a split at least this uneven if both ways were equally good."""
    n, small = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(small + 1)) / 2**n)


print("a            against b         only a right   only b right   probability if equally good")
pairs = [("full", "random start"), ("full", "head"), ("full", "LoRA"), ("LoRA", "head"), ("full", "word counts")]
for a, b in pairs:
    only_a = sum(x and not y for x, y in zip(hits[a], hits[b], strict=True))
    only_b = sum(y and not x for x, y in zip(hits[a], hits[b], strict=True))
    print(f"{a:12} {b:17} {only_a:12}   {only_b:12}   {sign_test(only_a, only_b):.4f}")

# %% [markdown]
# And the seed: the same way with another start of the head and another order of the rows.

# %%
print(f"head, seed 0: {percent(hits['head'])}")
for seed in (1, 2):
    said = mt.predict(tune("head", seed).model, tok, [row["text"] for row in test])
    print(f"head, seed {seed}: {percent(right_ones(said, test))}")

# %% [markdown]
# ## 7. Your own sentences
#
# Change them and run the cell again.

# %%
mine = ["I would go there again tomorrow.", "The batteries died on the second day.", "Not bad at all.",
        "Good idea, terrible execution.", "I expected to be bored, and I was wrong."]
print("  ".join(f"{way:>12}" for way in results), "   probability of 'positive'")
columns = [mt.predict(result.model, tok, mine) for result in results.values()]
for i, sentence in enumerate(mine):
    print("  ".join(f"{column[i].probabilities['positive']:12.2f}" for column in columns), "  ", sentence)

# %% [markdown]
# ## 8. Save, and load again
#
# `out=` has already saved every result. A fully tuned model is a whole model; of LoRA only the corrections and the head
# are stored, together with the name of the base.

# %%
for way in ("full", "LoRA"):
    folder = Path("runs") / way / "model"
    sizes = {file.name: file.stat().st_size / 1e6 for file in sorted(folder.iterdir())}         # in MB
    print(f"{folder}: " + ", ".join(f"{name} {size:.2f} MB" for name, size in sizes.items() if size > 0.1))

for way in ("full", "LoRA"):
    again = mt.predict(Path("runs") / way, texts=mine)          # model, tokenizer and labels come from the folder alone
    before = mt.predict(results[way].model, tok, mine)
    far = max(abs(x.probability - y.probability) for x, y in zip(again, before, strict=True))
    print(f"{way}: largest difference after loading {far:.1e}")
    assert far < 1e-5

# %% [markdown]
# ## 9. What went wrong
#
# One number hides what a model has not understood. The wrong answers of *full*, the surest first:

# %%
wrong = [(answer, row) for answer, row in zip(answers["full"], test, strict=True) if answer.label != row["label"]]
for answer, row in sorted(wrong, key=lambda pair: -pair[0].probability)[:10]:
    print(f"said {answer.label} ({answer.probability:.2f}): {textwrap.shorten(row['text'], 88, placeholder=' ...')}")

# %% [markdown]
# Reading suggests reasons: negation, praise and blame in one sentence, irony, opinions told as a story without any word
# of praise. A reason can be checked where it can be seen in the text. Is the model worse where there is a negation, or
# a turn ("but", "though")?

# %%
NEGATION = ("not", "n't", "never", "no", "nobody", "nothing", "without", "neither", "nor")
TURN = ("but", "though", "although", "yet", "however", "until", "except")


def has(text, words):
    found = set(text.lower().replace("n't", " n't ").replace(",", " ").replace(".", " ").split())
    return bool(found & set(words))


groups = {"a negation": lambda text: has(text, NEGATION), "a turn": lambda text: has(text, TURN),
          "neither": lambda text: not has(text, NEGATION + TURN),
          "over 20 words": lambda text: len(text.split()) > 20}
print("reviews with     n   " + "   ".join(f"{way:>22}" for way in ("word counts", "head", "full")))
for name, belongs in groups.items():
    rows = [i for i, row in enumerate(test) if belongs(row["text"])]
    cells = [percent([hits[way][i] for i in rows]) for way in ("word counts", "head", "full")]
    print(f"{name:14} {len(rows):3}   " + "   ".join(f"{cell:>22}" for cell in cells))

# %% [markdown]
# The groups are small, so their intervals are wide. Where the intervals of two groups overlap widely, this table is a
# reason to collect more such rows, not a finding.
#
# ## 10. What to conclude, and what not
#
# * The row *random start* against *full* is the measured worth of pretraining **for this model, these rows and these
#   settings**. It is the one comparison that every claim of transfer should come with. The sign test says how often
#   luck alone would make such a difference.
# * A way that trains a small share of the parameters and lands within the interval of *full* has not been shown to be
#   equal; it has not been shown to be worse. More test rows would tell.
# * *Word counts* cost nothing. If a network does not beat them clearly, the body knows too little for this task (it is
#   small and has read little), or the rows are too few.
# * The training loss does not rank the ways. That of *random start* falls furthest: a body that has read nothing can
#   still learn the rows by heart. That of *head* hardly falls, and on the test reviews *head* is not behind: its body
#   had most of the answer already. Rates are compared on the validation rows, and so are ways.
# * One seed is one draw. The three seeds of *head* show how far a count moves by that alone; the intervals do not
#   contain it.
# * These reviews are few, and were written for teaching, to be varied and not easy: the accuracies say nothing about
#   real reviews.
#
# Next: `02_text_to_ids` opens the body and recomputes it.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the functions into a
# file and run `minitransfer check 01 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. What LoRA costs.** A matrix of `d_out x d_in` gets a correction `B A` with `A` of `r x d_in` and `B` of `d_out x
# r`. How many numbers does LoRA train in a body of `blocks` blocks if it corrects the query and the value projection
# (`d x d` each)?

# %%
def lora_numbers(blocks, d, r):
    raise NotImplementedError


mt.check("01", lora_numbers)

# %% [markdown]
# **2. Between head and full.** Prepare the model so that only its last block and what stands above it learn
# (`mt.freeze` takes addresses such as `"embed, blocks.0-1"`).

# %%
def freeze_below_last_block(model):
    raise NotImplementedError


mt.check("01", freeze_below_last_block)

# %% [markdown]
# **3. Sure answers only.** A model may be allowed to say nothing. Given predictions and the true labels, return the
# share of texts answered with at least the probability `threshold`, and the accuracy on these (0.0 if there are none).

# %%
def sure_answers(predictions, truth, threshold):
    raise NotImplementedError


mt.check("01", sure_answers)

# %% [markdown]
# ## The same in transformers
#
# The whole model was saved in the standard layout, so `transformers` reads it, if it is installed here.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained("runs/full/model").eval()
    ours = mt.Model.from_pretrained("runs/full/model").eval()
    batch = tok(mine)
    with torch.no_grad():
        far = (theirs(**batch).logits - ours(**batch).logits).abs().max()                       # (B, 2) each
    print(f"labels {theirs.config.id2label}, logits equal within 1e-5: {bool(far < 1e-5)}")
    assert far < 1e-5
