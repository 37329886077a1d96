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
# # Without training: zero-shot, few-shot, instructions
#
# A pretrained model can be asked for a label without a single step of training: write the task so that the label is the
# next word, and see which one it would rather read. This notebook does it by hand, shows the two things that go wrong
# first (long labels, and words that are always likely), gives examples in the prompt, and then trains a model to
# answer. The models here are tiny, and what they say of reviews is hardly better than a guess: the mechanism is what
# can be seen in them.
#
# You need: 07_pretraining. Reading time: about 12 minutes. Letters for shapes: `B` texts, `T` tokens, `V` vocabulary.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import copy
import warnings

import matplotlib.pyplot as plt
import torch

import minitransfer as mt
from minitransfer.objectives import Preference
from minitransfer.tasks import Prompt, label_scores
from minitransfer.tasks.metrics import wilson
from minitransfer.text import InstructionBatches, PreferenceBatches, read_rows
from minitransfer.training import TrainSettings, train as run_training
from minitransfer.objectives import Causal

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
warnings.filterwarnings("ignore", message=".*were shortened to fit")
gpt, words = mt.Model.from_pretrained("mini-gpt").eval(), mt.Tokenizer.from_pretrained("mini-gpt")
bert, pieces = mt.Model.from_pretrained("mini-bert").eval(), mt.Tokenizer.from_pretrained("mini-bert")
train = read_rows(mt.samples.path("reviews.train.tsv"))
test = read_rows(mt.samples.path("reviews.test.tsv"))[::2]
truth = [row["label"] for row in test]
LABELS = {"negative": "bad", "positive": "good"}

# %% [markdown]
# ## 1. Which word would it rather read?
#
# A decoder gives every continuation a probability. Write "... It was good." and "... It was bad." and compare. The
# score of a label is the mean of the log-probabilities of its tokens, each given everything before:

# %% tags=["compare"]
def score_by_hand(text, label):
    before, whole = words.encode(f"{text} It was"), words.encode(f"{text} It was {label}")
    ids = torch.tensor([whole])                                         # (1, T)
    with torch.no_grad():
        log_p = gpt(input_ids=ids).logits[0].log_softmax(-1)            # (T, V)
    places = range(len(before), len(whole))                             # of the label's tokens
    return torch.stack([log_p[t - 1, whole[t]] for t in places]).mean()


text = "We waited an hour for cold soup."
by_hand = torch.stack([score_by_hand(text, label) for label in LABELS.values()]).softmax(0)
(answer,) = label_scores(gpt, words, text, LABELS)
print(answer.label, f"by hand and by label_scores the same: {abs(by_hand.max().item() - answer.probability) < 1e-5}")

# %% [markdown]
# **Why a mean?** "good" is one token, "very disappointing" is several, and every further token can only lower a sum.
# With the mean labels of different lengths can be compared; it is a convention, and not the only one.
#
# An encoder is asked by a cloze: put a mask where the label would stand.

# %% tags=["compare"]
for name, model, tok in (("mini-gpt", gpt, words), ("mini-bert", bert, pieces)):
    found = label_scores(model, tok, [row["text"] for row in test], LABELS)
    said = [one.label for one in found]
    print(f"{name}: says positive to {said.count('positive')} of {len(said)} reviews")

# %% [markdown]
# ## 2. Words that are always likely
#
# A model that says the same to everything has not read the text. Words have a probability of their own, and the prompt
# has another. What the model answers to a text **without content** ("N/A", an empty one) shows it; calibration divides
# by that.

# %%
def accuracy(found):
    hits = sum(one.label == label for one, label in zip(found, truth, strict=True))
    low, high = wilson(hits, len(truth))
    return f"{hits / len(truth):.2f} ({low:.2f} to {high:.2f})"


print(f"{'':26} accuracy and its 95 % interval, {len(test)} reviews")
for name, model, tok in (("mini-gpt", gpt, words), ("mini-bert", bert, pieces)):
    for calibrate in (False, True):
        found = label_scores(model, tok, [row["text"] for row in test], LABELS, calibrate=calibrate)
        print(f"{name:10} {'calibrated' if calibrate else 'as it is':12} {accuracy(found)}   positive: {sum(one.label == 'positive' for one in found)}")

# %% [markdown]
# For `mini-bert` it changes much: it said positive to most reviews, and now says it to fewer than half. For `mini-gpt`
# it changes nothing: what makes it one-sided is not what it says to nothing. And neither reads better for it. An
# interval that holds 0.50 says that guessing would do, and all four hold it: less one-sided is not yet right. Both
# models were pretrained on some hundred million tokens, and what is called zero-shot ability begins with models a
# thousand times larger.
#
# The wording counts as much as the model. The same model, the same reviews:

# %%
prompts = {"{text} It was {label}.": LABELS, "{text} I am {label}.": {"negative": "sorry", "positive": "happy"},
           "{text} In a word: {label}": {"negative": "terrible", "positive": "wonderful"}, "Review: {text} Verdict: {label}": {"negative": "no", "positive": "yes"}}
for template, labels in prompts.items():
    found = label_scores(bert, pieces, [row["text"] for row in test], labels, Prompt(template), calibrate=True)
    print(f"{template:34} {accuracy(found)}")

# %% [markdown]
# To choose the best of these by their accuracy on the test reviews would be training on the test set, with a person as
# the optimizer. Prompts are chosen on other rows.
#
# ## 3. Examples in the prompt
#
# Few-shot means: solved examples stand before the question, and nothing is trained.

# %% tags=["compare"]
shots = [row for label in LABELS for row in [one for one in train if one["label"] == label and len(one["text"]) < 60][:2]]
prompt = Prompt("{text} It was {label}.", examples=shots)
print(prompt.write("The soup was cold.", "bad", LABELS)[0])

# %%
for k in (0, 2, 4):
    found = label_scores(gpt, words, [row["text"] for row in test], LABELS, Prompt("{text} It was {label}.", examples=(shots[::2] + shots[1::2])[:k]), calibrate=True)
    print(f"{k} examples: {accuracy(found)}")

# %% [markdown]
# ## 4. Learning to answer
#
# Instruction tuning is ordinary training on pairs of a prompt and a response. Two facts make the difference between a
# model that answers and one that babbles: the loss is on the **response only**, and the **end** is part of the
# response.

# %% tags=["compare"]
rows = [{"prompt": f"Is this review good or bad? {row['text']}", "response": f" {LABELS[row['label']]}"} for row in train if len(row["text"]) < 150]
batches = InstructionBatches(rows, words, batch_size=16)
batch = batches.rows([0, 1])
for shown in batches.show(batch):
    print(shown.replace("\n", " / "))
print("targets a row:", (batch["labels"] != -100).sum(1).tolist(), "of", batch["attention_mask"].sum(1).tolist(), "tokens")

# %%
answering = mt.Model.from_pretrained("mini-gpt")
result = run_training(answering, batches, Causal(), TrainSettings(steps=60, lr=5e-4, log_every=5, progress=False))
fig, ax = plt.subplots(figsize=(4.5, 1.9))
points = [(record["step"], record["loss"]) for record in result.history if "loss" in record]
ax.plot(*zip(*points, strict=True), color=BLUE)
ax.axhline(0.693 / 2, color=GREY)
ax.set(xlabel="step", ylabel="loss", title="two targets a row: good or bad, and the end")
plt.show()

# %% [markdown]
# The grey line is a model that knows that "good" or "bad" follows and then the end, and guesses between the two: half
# of `log 2` for each target. The model comes down to that line within a few steps. That is what instruction tuning
# teaches fast: the **form**. What is on the other side of the line is knowledge, and it has to come from pretraining or
# from many more examples.

# %%
for text in ("Is this review good or bad? The food was wonderful.\n", "Is this review good or bad? We left before the main course.\n"):
    ids = torch.tensor([words.encode(text)])
    for name, model in (("before", gpt), ("after", answering.eval())):
        made = mt.generate(model, ids, max_new_tokens=6, stop=[words.eos_id])[0, ids.shape[1]:]
        print(f"{name}: {words.decode(made)!r}, stops by itself: {words.eos_id in made.tolist()}")

# %% [markdown]
# ## 5. Preferences
#
# Often nobody can write the right answer, but everybody can say which of two is better. Direct preference optimisation
# raises the chosen response against the rejected one, measured from the model as it was before:
#
# $$-\log\,\sigma\big(\beta\,[\log p(\text{chosen}) - \log p(\text{rejected}) - \text{the same of the reference}]\big)$$

# %%
pairs = [{"prompt": row["prompt"], "chosen": " I would say " + row["response"].strip(), "rejected": row["response"]} for row in rows]
reference = copy.deepcopy(answering)
polite = copy.deepcopy(answering)
objective = Preference(reference, beta=0.1)
result = run_training(polite, PreferenceBatches(pairs, words, batch_size=8), objective, TrainSettings(steps=30, lr=2e-4, log_every=1, progress=False))
losses = [record["loss"] for record in result.history if "loss" in record]
print(f"loss at the first step {losses[0]:.3f} (log 2 = 0.693, but for dropout: it is still the reference), at the last {losses[-1]:.3f}")
ids = torch.tensor([words.encode("Is this review good or bad? The food was wonderful.\n")])
for name, model in (("before", answering), ("after", polite.eval())):
    print(f"{name}: {words.decode(mt.generate(model, ids, max_new_tokens=8, stop=[words.eos_id])[0, ids.shape[1]:])!r}")

# %% [markdown]
# The loss has fallen nearly to nothing, and the model repeats itself: the objective asks that chosen responses become
# likelier **than rejected ones**, and nothing in it asks for a sensible text. That is why `beta`, short runs and a look
# at what is generated belong to it.
#
# ## What to take with you
#
# * A label's score is a likelihood; lengths and words that are always likely have to be taken out of it.
# * Few examples in a prompt train nothing. Small models gain little or nothing from them.
# * Instruction tuning teaches the form quickly; the loss is on the response, and the response ends.
# * Preferences are measured from the model as it was, and a small loss is no proof of a good answer.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 15 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The score of a label.** `logits` (T, V) of one row, `ids` (T,), and the place `first` where the label begins: the
# mean log-probability of the tokens from there on, each given everything before.

# %%
def label_score(logits, ids, first):
    raise NotImplementedError


mt.check("15", label_score)

# %% [markdown]
# **2. Calibration.** `scores` (N, n) of the labels for N texts, `empty` (M, n) for M texts without content.
# Probabilities are the softmax over the labels. Return (N, n): each probability divided by the mean one of the texts
# without content, scaled so that a row sums to 1.

# %%
def calibrated(scores, empty):
    raise NotImplementedError


mt.check("15", calibrated)

# %% [markdown]
# **3. What is learned.** `ids` (B, T) of prompts followed by responses, `keep` (B, T) bool, `prompt_lengths` (B,): the
# labels, -100 at prompts and padding. The answer makes the labels of instruction batches.

# %%
def response_labels(ids, keep, prompt_lengths):
    raise NotImplementedError


mt.check("15", response_labels)

# %% [markdown]
# **4. Preferences.** From the log-likelihoods (B,) of chosen and rejected responses under the model and under the
# reference: the sum of the losses. Large differences must not overflow.

# %%
def preference_loss(chosen, rejected, chosen_before, rejected_before, beta):
    raise NotImplementedError


mt.check("15", preference_loss)

# %% [markdown]
# ## The same in transformers
#
# The score of a label, from the logits of `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gpt.save_pretrained("for-transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained("for-transformers").eval()
    scores = []
    for label in LABELS.values():
        before, whole = words.encode("We waited an hour for cold soup. It was"), torch.tensor([words.encode(f"We waited an hour for cold soup. It was {label}.")])
        labels = whole.clone()
        labels[:, :len(before)] = -100
        labels[:, -1] = -100                                            # the full stop belongs to the template
        with torch.no_grad():
            scores.append(-theirs(input_ids=whole, labels=labels).loss)
    far = abs(torch.stack(scores).softmax(0).max().item() - answer.probability)
    print("probability equal within 1e-5:", far < 1e-5)
    assert far < 1e-5
