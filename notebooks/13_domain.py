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
# # Another domain
#
# A model was pretrained on books and an encyclopaedia, and your texts are something else. How far are they from what it
# knows? Would it pay to go on with pretraining on them before any label is used? This notebook measures the distance in
# five ways, each beside what chance alone gives, goes on pretraining for some steps, and looks at what that bought and
# what it cost.
#
# You need: 07_pretraining; 11_forgetting helps. Reading time: about 15 minutes. Letters for shapes: `N` texts, `V` size
# of the vocabulary, `D` width of the model.

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
from minitransfer.objectives import Masked
from minitransfer.study.domain import Text, fertility, jensen_shannon, overlap
from minitransfer.study.forgetting import batch_losses, mean_loss, rise
from minitransfer.text import PackedBatches, read_rows, tokenize_corpus
from minitransfer.transfer import extract_features

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
tok, model = mt.Tokenizer.from_pretrained("mini-bert"), mt.Model.from_pretrained("mini-bert")
general = mt.samples.path("general.txt").read_text(encoding="utf-8").splitlines()
train = read_rows(mt.samples.path("reviews.train.tsv"))
reviews = [row["text"] for row in train]

# %% [markdown]
# Two domains. **Reviews** are near: everyday English with opinions. The other is far, and made up here from frames: the
# short **notes** of a clinic.

# %% tags=["compare"]
LISTS = {"drug": "metoprolol lisinopril ibuprofen amoxicillin prednisolone omeprazole furosemide ramipril", "sign": "dyspnoea nausea pruritus oedema vertigo tachycardia myalgia",
         "past": "hypertension asthma gastritis migraine anaemia arthritis", "dose": "5 10 20 40 50", "days": "2 3 5 7 10 14", "rate": "88 92 95 97 99"}
FRAMES = ("Pt c/o {sign} x {days} days, afebrile, sats {rate} % on RA.", "{drug} {dose} mg bid started for {past}, f/u in {days} wks.",
          "Hx of {past}, on {drug} {dose} mg, denies {sign}.",
          "O/E: {sign}, no oedema, HR {rate}, abd soft, NAD.", "CXR clear; {drug} stopped after {days} days because of {sign}.")
draw = random.Random(0)
notes = [draw.choice(FRAMES).format(**{name: draw.choice(words.split()) for name, words in LISTS.items()}) for _ in range(300)]
print(notes[0])
print(notes[1])
print(reviews[0])
print(general[0])

# %% [markdown]
# ## 1. Does the tokenizer know the words?
#
# **Fertility** is the number of tokens a word. Where it is high, words fall into pieces that mean little on their own,
# rows get longer, and the same text costs more.

# %% tags=["compare"]
texts = {"general": general, "reviews": reviews, "notes": notes}
for name, many in texts.items():
    one = Text.of(many, tok)
    by_hand = sum(len(tok.encode(text, specials=False)) for text in many) / sum(map(len, one.words))
    assert by_hand == fertility(one)
    print(f"{name:8} {by_hand:.2f} tokens a word")
for word in ("medicine", "metoprolol", "dyspnoea", "afebrile"):
    print(word, "->", " ".join(tok.tokens(tok.encode(word, specials=False))))

# %% [markdown]
# More pretraining does not change the tokenizer. Tokens can be added (`model.resize_vocabulary`), and their rows start
# knowing nothing. Without that this distance stays, whatever is learned later.
#
# ## 2. Are the words the same?
#
# Two measures of the texts alone. **Overlap**: which share of the commonest words of one is among the commonest words
# of the other (Gururangan et al. 2020)? And the **Jensen-Shannon divergence** of the frequencies of tokens, in bits.
# With `p` and `q` (V,) the frequencies and `m` their mean, it is the entropy of `m` minus the mean entropy of both: 0
# for equal frequencies, 1 if there is no common token. By hand:

# %% tags=["compare"]
def entropy(p):
    return -(p[p > 0] * np.log2(p[p > 0])).sum()


p, q = (np.bincount(np.concatenate([tok.encode(text, specials=False) for text in many]), minlength=tok.vocab_size) for many in (general, notes))
p, q = p / p.sum(), q / q.sum()                                         # (V,)
by_hand = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
a, b = Text.of(general, tok), Text.of(notes, tok)
print("as the library's, within 1e-12:", abs(by_hand - jensen_shannon(a, b)) < 1e-12)
print(f"general text and notes: JSD {by_hand:.2f} bits, overlap {overlap(a, b):.0%}")

# %% [markdown]
# Is that much? **A number without a floor says nothing.** Two halves of one and the same text differ too, since each
# holds rare words that the other lacks, and short halves differ more:

# %% tags=["compare"]
order = np.random.default_rng(0).permutation(len(general))
half, other = (Text.of([general[i] for i in order[k::2]], tok) for k in (0, 1))
curves = {"other half of the general text": other, "reviews": Text.of(reviews, tok), "notes": b}
lengths = (250, 500, 1000, 2000)
fig, ax = plt.subplots(figsize=(5, 2.6))
for (name, one), colour in zip(curves.items(), (GREY, BLUE, ORANGE), strict=True):
    found = [jensen_shannon(half.up_to(n), one.up_to(n)) for n in lengths]
    print(f"{name:31}", "  ".join(f"{value:.2f}" for value in found))
    ax.plot(lengths, found, "o-", color=colour, label=name)
ax.set(xscale="log", xticks=lengths, xticklabels=[f"{n:,}" for n in lengths], xlabel="tokens of each", ylabel="JSD, bits", ylim=(0, 1))
ax.set_title("one half of the general text against")
ax.minorticks_off()
ax.legend(frameon=False, fontsize=7)
plt.show()

# %% [markdown]
# The grey line is what no difference looks like. It falls with the length; it is no constant that could be looked up in
# an article. A JSD that is quoted without the number of tokens and without its floor cannot be read. The reviews are
# not far above the floor. The notes are.
#
# ## 3. Does the model see a difference?
#
# Take the mean of the last states of each text, a point in `D` dimensions. Can a linear classifier tell which domain a
# new text is from? With its error `e` the **proxy-A distance** is `2 (1 - 2 e)`: 0 for coins, 2 if it is never wrong
# (Ben-David et al. 2007).

# %%
points, _ = extract_features(model, tok, [{"text": text} for many in texts.values() for text in many[:100]], label=None, pooling="mean")                       # (3 x 100, D)
centred = points - points.mean(0)
plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T                               # (300, 2)
fig, ax = plt.subplots(figsize=(5, 3))
for i, (name, colour) in enumerate(zip(texts, (GREY, BLUE, ORANGE), strict=True)):
    ax.scatter(*plane[100 * i:100 * (i + 1)].T, s=8, color=colour, label=name)
ax.set(title="mean states, the two directions that vary most", xticks=[], yticks=[])
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The measure has a limit that is easily missed. It says whether the domains **can** be told apart, and a full stop that
# is always followed by a space would do for that. At 2 it cannot grow any more: a domain that is told apart always may
# still be near in all that matters to a task.
#
# ## 4. The report
#
# All of it at once, with intervals, and the loss of the model's own objective. Beside each distance stands the one
# between two halves of the general text on as many tokens; `differ` stands where the intervals do not meet. The loss
# says most about the model, and it is known worst: a few hundred hidden words, some easy and some that nobody could
# guess.

# %%
settings = {"texts": 400, "length": 32, "batch_size": 8, "lr": 3e-4}
near = mt.study.domain_report(model, tok, reviews, general, **settings)
print(near)

# %%
far = mt.study.domain_report(model, tok, notes, general, pilot=20, **settings)
print(far)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.4), sharey=True)
for ax, one, name in zip(axes, (near, far), ("reviews", "notes"), strict=True):
    one.draw(ax)
    ax.set_title(f"{name}, {ax.get_title()}")
plt.tight_layout()
plt.show()

# %% [markdown]
# The last line of the second report is a **pilot**: a copy of the model goes on for a few steps on half of the notes,
# and the other half judges. If the loss on them was still falling in the second half of the steps, more steps would
# give more.
#
# Then comes an extrapolation, and it is there to be distrusted. It draws a line over the doublings of the steps. No
# loss falls along a line for ever, and none below zero, where the library cuts it. Read it as "not reached yet", and
# not as a promise.
#
# ## 5. Go on
#
# `mt.adapt` is the loop of pretraining, started from a pretrained model. Old text can be mixed in, so that the model
# does not forget what it knew (11). Some of the notes and some of the general text are held out:

# %%
def rows_of(many):
    return PackedBatches(tokenize_corpus(tok, many), tok, 32, 8)


masked, held = Masked(tok), {"notes": rows_of(notes[200:]), "general": rows_of(general[200:])}
before = {name: batch_losses(model, rows, masked) for name, rows in held.items()}                   # sums and counts, of each batch
run = {"validation": notes[200:240], "length": 32, "batch_size": 8, "steps": 40, "lr": 3e-4, "schedule": "constant", "best": None, "progress": False}
alone, mixed = (mt.Model.from_pretrained("mini-bert") for _ in range(2))
result = mt.adapt(alone, tok, notes[:200], eval_every=2, **run)
mt.adapt(mixed, tok, notes[:200], general=general[:200], mix=0.5, eval_every=40, **run)
for name, one in (("notes alone", alone), ("half old text", mixed)):
    after = {what: batch_losses(one, rows, masked) for what, rows in held.items()}
    print(f"{name:14}", ", ".join(f"loss on {what} {mean_loss(before[what]):.2f} -> {mean_loss(after[what]):.2f} ({rise(before[what], after[what]).value:+.2f} "
                                f"[{rise(before[what], after[what]).low:+.2f}, {rise(before[what], after[what]).high:+.2f}])" for what in held))

# %%
curve = [(0, result.before["loss"])] + [(record["step"], record["evaluation"]["loss"]) for record in result.history if "evaluation" in record]
steps, losses = np.array(curve).T
share = (losses[0] - losses) / (losses[0] - losses[-1])
fig, ax = plt.subplots(figsize=(5, 2.6))
ax.plot(steps, losses, "o-", color=BLUE, markersize=3)
ax.axvline(0.05 * steps[-1], color=ORANGE, linewidth=0.8)
ax.axhline(losses[0] - 0.8 * (losses[0] - losses[-1]), color=ORANGE, linewidth=0.8)
ax.set(xlabel="steps", ylabel="loss on held-out notes", title="orange: 5 % of the steps, and 80 % of the fall")
plt.show()
early = share[np.searchsorted(steps, 0.05 * steps[-1])]
print(f"5 % of the steps gave {early:.0%} of the fall; 80 % of it came after {steps[np.argmax(share >= 0.8)]:.0f} of {steps[-1]:.0f} steps")

# %% [markdown]
# "80 % of the benefit comes with 5 % of the compute", says an article. The orange lines would have to meet on the
# curve. In this run they do not. And such a share can be made anything: run longer, and the same first steps are fewer
# per cent of the compute. Without the length of the whole run the sentence has no content.
#
# These notes come from five frames, which are learned in no time. Real clinical text is not like that; the loss would
# fall more slowly and not so far.
#
# ## 6. Does it pay?
#
# A lower loss is not what anybody wants. The question is the task. For the reviews there are labels: adapt to the texts
# of the training reviews, without their labels, and compare what the frozen body gives before and after, on the same
# held-out texts (12). An article promises 3 to 8 points.

# %%
from sklearn.linear_model import LogisticRegression

adapted = mt.Model.from_pretrained("mini-bert")
moved = mt.adapt(adapted, tok, reviews[:500], validation=reviews[500:], length=32, batch_size=16, steps=30, lr=3e-4, eval_every=30, best=None, progress=False)
test, right = read_rows(mt.samples.path("reviews.test.tsv")), []
for one in (model, adapted):
    x, y = extract_features(one, tok, train, pooling="mean")
    held_x, truth = extract_features(one, tok, test, pooling="mean")
    right.append(LogisticRegression(max_iter=2000).fit(x, y).predict(held_x) == truth)              # (N,)
gain = right[1].astype(float) - right[0]
print(f"loss on held-out reviews: {moved.before['loss']:.2f} -> {moved.after['loss']:.2f}")
print(f"accuracy: {right[0].mean():.3f} before, {right[1].mean():.3f} after, {100 * gain.mean():+.1f} points, give or take {196 * gain.std() / np.sqrt(len(gain)):.1f}")

# %% [markdown]
# Look at the last number first. Two hundred texts show a difference only if it is larger than that. Where the interval
# holds both zero and three points, this run **can neither show the promise nor refute it**. The loss of masked words
# moved, and that is another statement. The same question with larger sets and a larger body, with intervals: the claim
# `adaptive` in `docs/results.md`.
#
# When is it worth trying, then? If the report says `differ` in the loss, if the pilot was still falling, and if there
# is much more text than labels. And mix in old text if the model has to stay of use elsewhere.
#
# ## What to take with you
#
# * Beside each distance belongs the one between two halves of one text, on as many tokens.
# * The tokenizer stays. The model can go on.
# * A pilot on held-out text costs minutes and answers more than any distance.
# * A lower loss is no better task. Measure the task, with an interval.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 13 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The divergence.** From `p_counts` and `q_counts` (V,), how often each token was counted in either text: the
# Jensen-Shannon divergence in bits. The answer gives the distances in a report.

# %%
def divergence(p_counts, q_counts):
    raise NotImplementedError


mt.check("13", divergence)

# %% [markdown]
# **2. The overlap.** From two lists of words: of the `k` commonest words of each, the share that both have. Of equally
# common words those come first that do so in the alphabet; if a list has fewer than `k` different words, `k` is that
# number for both. The answer gives the overlap in a report.

# %%
def common_words(a, b, k):
    raise NotImplementedError


mt.check("13", common_words)

# %% [markdown]
# **3. How far did the loss rise?** `before` and `after` are lists of (sum of losses, number of targets), one for each
# batch, of the same batches. Return how much the mean loss over all targets rose. The answer reads the pilot of a
# report.

# %%
def loss_rise(before, after):
    raise NotImplementedError


mt.check("13", loss_rise)

# %% [markdown]
# **4. Old text.** Batches have `B` rows, and a share of all rows is to be old text. Batch `k` (0 is the first) gets how
# many old rows, so that after any number of batches the old rows so far are the share of all rows so far, rounded down?
# `share` is a string like "0.29". The answer mixes the batches of a run.

# %%
def old_rows(k, B, share):
    raise NotImplementedError


mt.check("13", old_rows)

# %% [markdown]
# ## The same in transformers
#
# The adapted model on the held-out notes, asked of `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    alone.eval().save_pretrained("for-transformers")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained("for-transformers").eval()
    batch = tok(notes[200:232])
    shown, asked = masked.draw(batch["input_ids"], batch["attention_mask"], torch.Generator().manual_seed(0))
    with torch.no_grad():
        total, n = alone.head.loss(alone.body(input_ids=shown, attention_mask=batch["attention_mask"]), asked)
        other = theirs(input_ids=shown, attention_mask=batch["attention_mask"].long(), labels=asked).loss
    print("the loss on the notes is equal within 1e-5:", bool(abs(total / n - other) < 1e-5))
    assert abs(total / n - other) < 1e-5
