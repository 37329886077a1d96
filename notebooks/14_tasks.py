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
# # Other questions: words, spans, pairs
#
# A label for a whole text is one question of many. This notebook asks three others on the same body: what is each
# **word** (names of persons and places), **where** is the answer (a span of the text), and how **alike** are two texts.
# In each the head is a single matrix; the work is in carrying labels to tokens and answers back, and in counting what
# is right.
#
# You need: 02_text_to_ids, 04_block_body_head. Reading time: about 15 minutes. Letters for shapes: `B` texts, `T`
# tokens, `D` width of the model, `N` texts of a collection.

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
from minitransfer.tasks import TokenTask
from minitransfer.tasks.entities import spans
from minitransfer.text import read_rows

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
tok = mt.Tokenizer.from_pretrained("mini-bert")
rows = read_rows(mt.samples.path("tagged.conll"))
train, validation = rows[:55], rows[55:]
EPOCHS = 5

# %% [markdown]
# ## 1. Words
#
# The tags say where a name begins (`B-`), goes on (`I-`), and where there is none (`O`). So two names side by side can
# be told apart.

# %% tags=["compare"]
print(" ".join(f"{word}/{tag}" for word, tag in zip(rows[0]["words"], rows[0]["tags"], strict=True)))
print(spans(rows[0]["tags"]))                                           # (type, first word, word after the last one)

# %% [markdown]
# A word may be several pieces. Its tag stands at the first; the others are not asked. What a batch holds:

# %% tags=["compare"]
names = TokenTask().labels(train, [])
batches = TokenTask().batches(train[:2], tok, names, batch_size=2, max_tokens=None, max_length=None, seed=0)
batch = batches[0]
for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
    for piece, label in zip(tok.tokens(ids), labels.tolist(), strict=True):
        if piece not in ("[PAD]", "."):
            print(f"{piece}:{names[label] if label >= 0 else '-'}", end="  ")
    print()

# %%
model = mt.Model.from_pretrained("mini-bert", head="token", labels=names, seed=0)
result = mt.finetune(model, tok, "token", train=train, validation=validation, epochs=2 * EPOCHS, batch_size=8, lr=3e-4, progress=False)
m = result.metrics
print(f"words right {m['accuracy']:.2f}, entities: precision {m['entity_precision']:.2f}, recall {m['entity_recall']:.2f}, F1 {m['entity_f1']:.2f} "
      f"({m['entity_f1_low']:.2f} to {m['entity_f1_high']:.2f})")

# %% [markdown]
# **Why are these numbers so far apart?** Most words are `O`, so a model that always says `O` has most words right and
# finds nothing. An entity counts only if its type, its first and its last word are right. The 75 sentences are few, and
# the interval is wide.

# %% tags=["compare"]
always_o = sum(tag == "O" for row in validation for tag in row["tags"]) / sum(len(row["tags"]) for row in validation)
print(f"words right for a model that always says O: {always_o:.2f}, entities found: 0")

# %%
for found in mt.predict(result.model, tok, [" ".join(row["words"]) for row in validation[:4]], task=TokenTask()):
    print(found.text, [(e.text, e.label, f"{e.probability:.2f}") for e in found.entities])

# %% [markdown]
# ## 2. Where is the answer?
#
# For a question and a text the head gives two numbers for each token: how well the answer begins here, and how well it
# ends here. The best span is the pair with the largest sum, where the end is not before the beginning. The bundled
# samples have no questions, but the tags make some: **who** is in the sentence, and **where** is it?

# %% tags=["compare"]
def questions(rows):
    """A row for each sentence with exactly one person, or exactly one place."""
    made = []
    for row in rows:
        context, starts = "", []
        for word in row["words"]:
            context += (" " if context else "") + word
            starts.append(len(context) - len(word))
        for kind, question in (("PER", "Who is it?"), ("LOC", "Where is it?")):
            there = [(a, b) for label, a, b in spans(row["tags"]) if label == kind]
            if len(there) == 1:
                (a, b), = there
                text = context[starts[a]:starts[b - 1] + len(row["words"][b - 1])]
                made.append({"question": question, "context": context, "answers": {"text": [text], "answer_start": [starts[a]]}})
    return made


asked, held_out = questions(train), questions(validation)
print(len(asked), "questions to learn from, for example", asked[0]["question"], "|", asked[0]["context"], "|", asked[0]["answers"]["text"][0])

# %%
reader = mt.Model.from_pretrained("mini-bert", head="span", seed=0)
found = mt.finetune(reader, tok, "span", train=asked, validation=held_out, epochs=3 * EPOCHS, batch_size=8, lr=3e-4, progress=False).metrics
print(f"exactly right {found['exact']:.2f}, words in common (F1) {found['f1']:.2f} ({found['f1_low']:.2f} to {found['f1_high']:.2f}), {found['n']:.0f} questions")

# %%
one = held_out[0]
inputs = tok([one["question"]], [one["context"]])
with torch.no_grad():
    logits = reader.eval()(**inputs).logits[0]                          # (T, 2)
pieces = tok.tokens(inputs["input_ids"][0])
inside = inputs["token_type_ids"][0].bool() & (inputs["input_ids"][0] != tok.sep_id)            # of the context
both = logits[:, 0, None] + logits[None, :, 1]                          # (T, T): begins here, ends there
allowed = torch.ones(len(pieces), len(pieces), dtype=torch.bool).triu() & inside[:, None] & inside[None]
begin, end = divmod(int(both.masked_fill(~allowed, -torch.inf).argmax()), len(pieces))
fig, ax = plt.subplots(figsize=(5.4, 4.6))
ax.pcolormesh(both.masked_fill(~allowed, torch.nan), cmap="Blues")
ax.set_xticks([i + 0.5 for i in range(len(pieces))], pieces, rotation=90, fontsize=7)
ax.set_yticks([i + 0.5 for i in range(len(pieces))], pieces, fontsize=7)
ax.add_patch(plt.Rectangle((end, begin), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2))
ax.set(xlabel="ends", ylabel="begins", ylim=(len(pieces), 0), title=one["question"])
plt.show()
print("best span:", " ".join(pieces[begin:end + 1]), "| right:", one["answers"]["text"][0])

# %% [markdown]
# A long text is read in windows that overlap, and the best span of all windows is taken; `SpanTask(stride=...)` does
# that. To take the best beginning and the best end on their own would be quicker, and may give a span that ends before
# it begins.
#
# ## 3. How alike?
#
# A vector for a whole text is the mean of the states of its tokens. The cosine of two vectors should say how alike two
# texts are. Does it, without training?

# %%
encoder = mt.Model.from_pretrained("mini-bert", head="embedding")
texts = ["The bank refused him a loan.", "She paid the money into her account.", "They sat on the grassy bank of the river.", "The boat drifted down the stream.",
         "The cat slept.", "A cat was asleep."]
vectors = mt.embed(encoder, tok, texts)                                 # (N, D), each of length 1
general = mt.embed(encoder, tok, mt.samples.path("general.txt").read_text(encoding="utf-8").splitlines())
centred = torch.nn.functional.normalize(vectors - general.mean(0), dim=-1)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6))
for ax, v, title in ((axes[0], vectors, "cosine"), (axes[1], centred, "cosine, mean of all texts taken out")):
    ax.pcolormesh(v @ v.T, cmap="RdBu_r", vmin=-1, vmax=1, edgecolors="white", linewidth=0.5)
    for i in range(len(texts)):
        for j in range(len(texts)):
            ax.text(j + 0.5, i + 0.5, f"{v[i] @ v[j]:.2f}", ha="center", va="center", fontsize=7)
    ax.set(title=title, ylim=(len(texts), 0), xticks=[], yticks=[])
plt.tight_layout()
plt.show()
for i, text in enumerate(texts):
    print(i, text)

# %% [markdown]
# All cosines on the left are high, whatever is compared: the vectors lie in a narrow cone, and a cosine of 0.8 means
# little. Their order is another matter: each of these six texts is nearest to the one that belongs with it. Taking out
# the mean of many texts spreads them. What makes a body a sentence encoder is training on pairs: two texts that belong
# together are pulled together, and the other texts of the batch are pushed away. Here the pairs are two halves of one
# sentence:

# %%
halves = []
for line in mt.samples.path("general.txt").read_text(encoding="utf-8").splitlines():
    words = line.split()
    halves.append({"text": " ".join(words[:len(words) // 2]), "pair": " ".join(words[len(words) // 2:])})
from minitransfer.tasks import SimilarityTask

task = SimilarityTask(label=None)
before = mt.embed(encoder, tok, [row["text"] for row in halves[300:]]), mt.embed(encoder, tok, [row["pair"] for row in halves[300:]])
tuned = mt.finetune(encoder, tok, task, train=halves[:300], epochs=EPOCHS, batch_size=32, lr=2e-4, progress=False).model
after = mt.embed(tuned, tok, [row["text"] for row in halves[300:]]), mt.embed(tuned, tok, [row["pair"] for row in halves[300:]])
for name, (a, b) in (("before", before), ("after", after)):
    first = (a @ b.T).argmax(1)                                         # (N,)
    print(f"{name}: the second half of {(first == torch.arange(len(first))).float().mean():.0%} of {len(first)} sentences is found among all (chance {1 / len(first):.0%})")

# %% [markdown]
# ## What to take with you
#
# * The head is the small part. Offsets carry labels to tokens, and answers back to the text.
# * Count what is asked for: entities and not words, spans and not tokens.
# * A cosine of raw states is no similarity; centring helps, training on pairs helps more.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 14 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. From tags to entities.** From a list of tags a list of (type, first word, word after the last one). An `I-` that
# does not go on with an entity of its type begins one, as in CoNLL's own evaluation. The answer counts the entities of
# a tuned model.

# %%
def entities(tags):
    raise NotImplementedError


mt.check("14", entities)

# %% [markdown]
# **2. The best span.** From `start` and `end` (T,), with `allowed` (T,) bool, and at most `longest` tokens: (first,
# last) with the largest sum.

# %%
def best_span(start, end, allowed, longest):
    raise NotImplementedError


mt.check("14", best_span)

# %% [markdown]
# **3. Words in common.** SQuAD's F1 of two answers: lower case, without ASCII punctuation and the words a, an, the;
# then the words both have, as often as both have them; 2 P R / (P + R), and 0 if there are none.

# %%
def answer_f1(answer, truth):
    raise NotImplementedError


mt.check("14", answer_f1)

# %% [markdown]
# **4. Pairs.** Vectors `a` and `b` (B, D) of length 1; `b[i]` belongs to `a[i]`, the others do not. The sum of `-log
# softmax_j(scale a_i b_j)` at `j = i`. The answer is the loss of an embedding model.

# %%
def pair_loss(a, b, scale):
    raise NotImplementedError


mt.check("14", pair_loss)

# %% [markdown]
# ## The same in transformers
#
# The tuned tagger and the tuned reader, read by `transformers`, if it is installed.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name, ours, auto in (("tagger", result.model.eval(), transformers.AutoModelForTokenClassification), ("reader", reader, transformers.AutoModelForQuestionAnswering)):
        ours.save_pretrained(name)
        theirs = auto.from_pretrained(name).eval()
        given = {key: t.long() for key, t in inputs.items()}
        with torch.no_grad():
            out, mine = theirs(**given), ours(**inputs).logits
        far = (mine - (out.logits if name == "tagger" else torch.stack([out.start_logits, out.end_logits], -1))).abs().max()
        print(f"{name}: logits equal within 1e-5: {bool(far < 1e-5)}")
        assert far < 1e-5
