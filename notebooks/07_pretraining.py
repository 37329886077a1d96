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
# # Pretraining: hide a word, or the next one
#
# Nobody labels the text a model is pretrained on. The text itself is the label: hide some words and ask for them
# (**masked**, BERT), or show the beginning and ask for the next word (**causal**, GPT). Both are the same loss, at
# other positions. This notebook draws the masks and looks at the draw, follows the loss from logits to one number that
# means the same however the batch was cut, packs documents into rows, and trains two tiny models from nothing.
#
# You need: 03_attention_by_hand, 04_block_body_head. Reading time: about 15 minutes. Letters for shapes: `B` rows, `T`
# tokens in a row, `V` vocabulary, `N` positions with a target.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import math
import warnings
from collections import Counter

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.objectives import Causal, Masked
from minitransfer.text import PackedBatches, tokenize_corpus

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
general = mt.samples.path("general.txt")

# %% [markdown]
# ## 1. The draw
#
# Of all tokens 15 % are chosen. If all of them became `[MASK]`, the model would learn to work only where a mask stands,
# and no text of a task has one. So of the chosen 80 % become `[MASK]`, 10 % another word, and 10 % stay, and the model
# never knows which of the words it sees may be wrong. `Masked` is the engine's objective; `draw` is its draw.

# %% tags=["compare"]
tok = mt.Tokenizer.from_pretrained("mini-bert")
objective = Masked(tok, probability=0.15)
batch = tok(["The old man and the boy sat by the river and waited for the evening.", "Nobody came."])
ids, keep = batch["input_ids"], batch["attention_mask"]                 # (B, T) each
inputs, labels = objective.draw(ids, keep, torch.Generator().manual_seed(3))
for shown, asked in zip(inputs, labels, strict=True):
    print("sees  ", " ".join(f"{piece:7}" for piece in tok.tokens(shown) if piece != "[PAD]"))
    print("asked ", " ".join(f"{'' if target == -100 else tok.tokens([target])[0]:7}" for target in asked.tolist()).rstrip())

# %% [markdown]
# `-100` in the labels says that nothing is asked there; the loss leaves these positions out. A single draw says little.
# Over many:

# %% tags=["compare"]
many = ids[:1].expand(20_000, -1)
inputs, labels = objective.draw(many, keep[:1].expand(20_000, -1), torch.Generator().manual_seed(0))
chosen = labels != -100
masked, same = chosen & (inputs == tok.mask_id), chosen & (inputs == many)
ordinary = ~torch.isin(many, torch.tensor(sorted(tok.special_ids)))
print(f"chosen {chosen.sum() / ordinary.sum():.3f} of the ordinary tokens, and {int((chosen & ~ordinary).sum())} special ones")
print(f"of these: mask {masked.sum() / chosen.sum():.3f}, the same {same.sum() / chosen.sum():.3f}, another {1 - (masked.sum() + same.sum()) / chosen.sum():.3f}")

# %% [markdown]
# The draw is made anew at each step, from a seed and the number of the step. The model sees the same sentence with
# other holes in each epoch, and a run that was stopped goes on with the very numbers it would have had.
#
# ## 2. From logits to a loss
#
# At a position with a target, the loss is minus the logarithm of the probability that the model gives to the right
# token. By hand, against the engine:

# %% tags=["compare"]
model = mt.Model.from_pretrained("mini-bert").eval()
inputs, labels = objective.draw(ids, keep, torch.Generator().manual_seed(3))
with torch.no_grad():
    logits = model(input_ids=inputs, attention_mask=keep).logits        # (B, T, V)
    at = labels != -100                                                 # (B, T), True at N positions
    log_p = logits[at].log_softmax(-1)                                  # (N, V)
    losses = -log_p[torch.arange(len(log_p)), labels[at]]               # (N,)
    total, count = model.head.loss(model.body(input_ids=inputs, attention_mask=keep), labels)
for target, loss in zip(labels[at].tolist(), losses.tolist(), strict=True):
    print(f"{tok.tokens([target])[0]:8} probability {math.exp(-loss):.3f}, loss {loss:.2f}")
print("sum as the engine's:", torch.allclose(losses.sum(), total, rtol=1e-5), "| targets:", int(count))
assert torch.allclose(losses.sum(), total, rtol=1e-5) and int(count) == len(losses)

# %% [markdown]
# Only `N` of `B x T` states are multiplied with the table of the vocabulary. It is the largest product of a small
# model, and six of seven rows of it would be thrown away.
#
# **Why a sum and a count?** A step may be cut into several batches to save memory. These have different numbers of
# targets. The mean of their means is not the mean:

# %% tags=["compare"]
parts = [losses[:1], losses[1:]]
print("mean of all targets  ", f"{losses.mean():.3f}")
print("mean of two means    ", f"{sum(part.mean() for part in parts) / 2:.3f}")
print("sum of sums / count  ", f"{sum(part.sum() for part in parts) / sum(map(len, parts)):.3f}")

# %% [markdown]
# The difference is not rounding. For years popular training programs computed the second line when gradients were
# accumulated. Here an objective returns a sum and a count, and the loop divides once a step.
#
# ## 3. What is a good loss?
#
# A model that knows nothing gives each of `V` tokens the same probability: a loss of `log V`. One that knows only how
# frequent tokens are has the entropy of the frequencies, and it has learned nothing of language. Only what lies below
# that line is context. `exp(loss)` is called **perplexity**: among how many equally likely words the model hesitates.

# %% tags=["compare"]
corpus = tokenize_corpus(tok, general, documents="line")            # each of the sentences is a document
packed = PackedBatches(corpus, tok, 64, 16)
counts = Counter(i for batch in packed for i in batch["input_ids"][batch["document_ids"] >= 0].tolist() if i not in tok.special_ids)
n = sum(counts.values())
entropy = -sum(c / n * math.log(c / n) for c in counts.values())
print(f"log V = {math.log(tok.vocab_size):.2f}, frequencies of this text alone: {entropy:.2f} nats")

# %%
with torch.no_grad():
    total = count = 0
    for k, batch in enumerate(packed):
        loss, targets = objective(model, batch, torch.Generator().manual_seed(k))
        total, count = total + loss, count + targets
print(f"mini-bert: {total / count:.2f} nats, perplexity {math.exp(total / count):.0f}, over {int(count)} targets")

# %% [markdown]
# ## 4. The next word
#
# A causal model has a target at every position: the token that comes next. Inputs and labels are the same ids, moved by
# one. It may not see what it is asked for, and the mask takes care of that (03). Here `[MASK]` is not needed, and every
# token teaches; on the other hand each is predicted from one side only.

# %% tags=["compare"]
gpt, words = mt.Model.from_pretrained("mini-gpt").eval(), mt.Tokenizer.from_pretrained("mini-gpt")
batch = words(["The old man and the boy sat by the river.", "Nobody came."])
ids, keep = batch["input_ids"], batch["attention_mask"]
with torch.no_grad():
    logits = gpt(**batch).logits                                        # (B, T, V)
    log_p = logits[:, :-1].log_softmax(-1)                              # at T - 1 positions, of the next token
    following, asked = ids[:, 1:], keep[:, 1:]                          # (B, T - 1)
    losses = -log_p.gather(-1, following[..., None])[..., 0][asked]     # (N,)
    total, count = Causal()(gpt, batch, torch.Generator())
print("sum as the engine's:", torch.allclose(losses.sum(), total, rtol=1e-5), "| targets:", int(count), "of", int(keep.sum()), "tokens")
assert torch.allclose(losses.sum(), total, rtol=1e-5) and int(count) == len(losses)

# %%
row = losses[:int(asked[0].sum())]
fig, ax = plt.subplots(figsize=(7, 1.9))
ax.bar(range(len(row)), row, color=BLUE)
ax.set_xticks(range(len(row)), [piece.replace("Ġ", "") for piece in words.tokens(following[0, :len(row)])], rotation=45)
ax.set(ylabel="loss", title="what surprises mini-gpt")
plt.show()

# %% [markdown]
# ## 5. Rows without padding
#
# Texts have all lengths. To fill each to the longest wastes most of the work, so documents are **packed**: several in a
# row, one after another. They must not see each other, or the model learns that texts go on in strange ways. Two facts
# a batch has to bring: to which document each position belongs, and where in its document it stands.

# %%
batch = packed[0]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), width_ratios=(3, 2))
documents = batch["document_ids"].float()
documents[documents < 0] = math.nan
axes[0].pcolormesh(documents, cmap=plt.get_cmap("tab20c").with_extremes(bad="white"), edgecolors="white", linewidth=0.2)
axes[0].set(title=f"documents in {len(documents)} rows of {documents.shape[1]} tokens", xlabel="T", ylabel="row", ylim=(len(documents), 0))
d = batch["document_ids"][0]
axes[1].pcolormesh((d[:, None] == d[None]) & (d >= 0), cmap="Blues")
axes[1].set(title="who sees whom in row 0", aspect="equal", ylim=(len(d), 0))
plt.tight_layout()
plt.show()
print(f"padding: {(batch['document_ids'] < 0).float().mean():.1%}")

# %% [markdown]
# Is the border tight? Change a word in one document and look at the others:

# %% tags=["compare"]
body = mt.Model.from_pretrained("mini-bert", head="none").eval()
changed = {name: t.clone() for name, t in batch.items()}
changed["input_ids"][0, 3] = tok.mask_id                                # in document 0 of row 0
with torch.no_grad():
    far = (body(**batch).last_hidden_state - body(**changed).last_hidden_state)[0].abs().amax(-1)       # (T,)
for document in range(int(d.max()) + 1):
    print(f"document {document}: changed: {bool(far[d == document].max() > 1e-6)}")
assert far[d != 0].max() == 0

# %% [markdown]
# ## 6. From nothing
#
# Two small models, a vocabulary of 500 pieces, and the 340 sentences of the bundled text: far too little to learn a
# language, and enough to see a loss fall. The grey line is what frequencies alone would give.

# %%
small = mt.Tokenizer.train(open(general, encoding="utf-8"), kind="wordpiece", vocab_size=500)
pieces = mt.Tokenizer.train(open(general, encoding="utf-8"), kind="byte_bpe", vocab_size=500)
sizes = {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 256, "max_len": 64, "dropout": 0.0}
encoder = mt.Model(mt.ModelConfig(vocab_size=small.vocab_size, **sizes), head="masked", seed=0)
decoder = mt.Model(mt.ModelConfig(vocab_size=pieces.vocab_size, causal=True, norm_position="pre", final_norm=True, embed_norm=False, pooler=False,
                                  n_token_types=0, **sizes), head="causal", seed=0)
runs = {}
for name, one, its in (("masked", encoder, small), ("causal", decoder, pieces)):
    runs[name] = mt.pretrain(one, its, general, objective=name, length=64, batch_size=16, steps=150, lr=3e-3, log_every=5, eval_every=50, progress=False)
    print(f"{name}: held-out loss {runs[name].metrics['loss']:.2f}, frequencies alone {runs[name].metrics['unigram_loss']:.2f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3), sharey=True)
for ax, (name, run), colour in zip(axes, runs.items(), (BLUE, ORANGE), strict=True):
    points = [(record["step"], record["loss"]) for record in run.history if "loss" in record]
    ax.plot(*zip(*points, strict=True), color=colour, label="training")
    ax.axhline(run.metrics["unigram_loss"], color=GREY, label="frequencies alone")
    ax.axhline(run.metrics["loss"], color=colour, linestyle=":", label="held out, at the end")
    ax.set(title=name, xlabel="step")
    ax.legend(frameon=False)
axes[0].set(ylabel="loss (nats)")
plt.tight_layout()
plt.show()

# %% [markdown]
# In these few steps the masked model has learned little more than frequencies: it is asked for one token in seven. The
# causal one, asked at every token, is well below its line. Both read the same sentences again and again and would soon
# know them by heart: pretraining needs far more text. `mini-bert` and `mini-gpt` were made by the same call on more
# than twenty million tokens each, read about a dozen times (their model cards have the figures), the published models
# on billions. The two curves cannot be compared with each other: their vocabularies differ, and with smaller pieces
# each one is easier to guess.
#
# ## What to take with you
#
# * Both objectives are one cross-entropy; they differ in what is hidden and where a target is.
# * 15 %, and of these 80/10/10, drawn anew at each step from (seed, step).
# * A loss is a sum and a count, divided once.
# * Compare a loss with that of frequencies, not with zero.
# * Packed documents must not see each other, and each counts its positions from 0.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 07 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The draw.** `ids` and `ordinary` are (B, T); True where a token may be chosen. Return inputs and labels: choose
# each with `probability`; of the chosen 80 % become `mask_id`, 10 % an id drawn from `others` (a vector of ids), 10 %
# stay. Labels are the true ids at chosen positions and -100 elsewhere. Draw with `generator` only. The answer draws for
# a training run of the engine.

# %%
def draw(ids, ordinary, probability, mask_id, others, generator):
    raise NotImplementedError


mt.check("07", draw)

# %% [markdown]
# **2. The next token.** From logits (B, T, V), ids (B, T) and keep (B, T) bool: the sum of the losses, and how many
# targets there were. Padding is on the right, on the left or nowhere, and is neither asked nor a reason to ask.

# %%
def causal_loss(logits, ids, keep):
    raise NotImplementedError


mt.check("07", causal_loss)

# %% [markdown]
# **3. Perplexity.** `batches` is a list of (sum of losses, number of targets). Return the perplexity of all of them.

# %%
def perplexity(batches):
    raise NotImplementedError


mt.check("07", perplexity)

# %% [markdown]
# **4. Warm-up and decay.** The learning rate of step `step` (from 0) of `total`: for the first `warmup` steps it climbs
# in equal steps, the first one `lr / warmup`, the last one `lr`; after that it falls in a straight line to 0, where
# step `total` would be. The answer drives a run of the engine.

# %%
def learning_rate(step, total, lr, warmup):
    raise NotImplementedError


mt.check("07", learning_rate)

# %% [markdown]
# ## The same in transformers
#
# The loss of `mini-bert` on masked inputs and of `mini-gpt` on a text, computed by `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained("for-transformers/mini-bert")
    gpt.save_pretrained("for-transformers/mini-gpt")
    masked = tok(["The old man and the boy sat by the river and waited.", "Nobody came."])
    shown, asked = objective.draw(masked["input_ids"], masked["attention_mask"], torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = transformers.AutoModelForMaskedLM.from_pretrained("for-transformers/mini-bert").eval()
        a = theirs(input_ids=shown, attention_mask=masked["attention_mask"].long(), labels=asked).loss
        total, count = model.head.loss(model.body(input_ids=shown, attention_mask=masked["attention_mask"]), asked)
        theirs = transformers.AutoModelForCausalLM.from_pretrained("for-transformers/mini-gpt").eval()
        text = words(["The old man and the boy sat by the river and waited."])["input_ids"]
        b = theirs(input_ids=text, labels=text).loss
        causal, n = Causal()(gpt, {"input_ids": text}, torch.Generator())
    print("masked:", torch.allclose(a, total / count, atol=1e-5), "| causal:", torch.allclose(b, causal / n, atol=1e-5))
    assert torch.allclose(a, total / count, atol=1e-5) and torch.allclose(b, causal / n, atol=1e-5)
