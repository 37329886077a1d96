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
# # Text to ids
#
# A model never sees text. It sees rows of whole numbers, and a table with one vector for each number. This notebook
# goes from a sentence to that row: pieces of words and where their vocabulary comes from, the special tokens, the way
# back to the characters, and batches with padding that must not change a result.
#
# You need: Python lists and dicts. Reading time: about 12 minutes. Letters for shapes: `B` texts in a batch, `T` tokens
# in a text, `V` size of the vocabulary, `D` width of the model.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import warnings
from collections import Counter

import matplotlib.pyplot as plt
import torch

import minitransfer as mt

warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
torch.set_grad_enabled(False)           # nothing is trained in this notebook
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
general = mt.samples.path("general.txt").read_text(encoding="utf-8")

# %% [markdown]
# ## 1. Characters or words?
#
# A vocabulary of characters is small and knows every text, but rows become long, and attention pays for length squared.
# A vocabulary of words makes short rows, but it is never complete. Take the words of the first 300 sentences of the
# bundled text as a vocabulary, and count what it does not know of the last 40:

# %% tags=["compare"]
sentences = general.lower().splitlines()
known = Counter(word for sentence in sentences[:300] for word in sentence.split())
unknown = [word for sentence in sentences[300:] for word in sentence.split() if word not in known]
asked = sum(len(sentence.split()) for sentence in sentences[300:])
print(f"{len(known)} words known; of {asked} further words {len(unknown)} are not among them ({len(unknown) / asked:.0%})")
print(unknown[:8])

# %% [markdown]
# New text always has new words: names, compounds, inflections, typing errors. In between lie **pieces of words**. A
# frequent word is one piece, a rare one several, and since single characters are pieces too, nearly nothing is unknown.

# %% tags=["compare"]
tok = mt.Tokenizer.from_pretrained("mini-bert")
print(f"V = {tok.vocab_size}")
for word in ("house", "houses", "unbelievable", "tokenization", "Zwischenzug"):
    print(f"{word:14}", tok.tokens(tok.encode(word, specials=False)))

# %% [markdown]
# This is **WordPiece**, the vocabulary of BERT: `##` says that a piece goes on with the word before it. It splits a
# word from left to right and takes the longest piece that the vocabulary has (exercise 1). GPT-2's **byte-level BPE**
# has another mark, `Ġ`, for the space before a word, and builds words by merging pairs in the order in which the
# merges were learned. It works on bytes, so no text is unknown to it.

# %% tags=["compare"]
gpt = mt.Tokenizer.from_pretrained("mini-gpt")
for text in ("an unbelievable house", "naïve café", "你好"):
    ids = gpt.encode(text)
    print(gpt.tokens(ids), "->", gpt.decode(ids))
    assert gpt.decode(ids) == text
print(tok.tokens(tok.encode("naïve café 你好", specials=False)))

# %% [markdown]
# Byte-level BPE gives back every text exactly. Our WordPiece does not: it was trained on lower-cased English, takes
# accents away, and has no piece for the Chinese characters. `[UNK]` is what it says then, and the text is lost.
#
# ## 2. Where pieces come from
#
# BPE starts with single characters and merges, again and again, the pair of neighbours that is most frequent. Four
# merges by hand, on a text of five words:

# %% tags=["compare"]
text = "low low low lower lowest newest newest newest widest widest"
words = Counter(tuple(word) for word in text.split())
for _ in range(4):
    pairs = Counter()
    for pieces, count in words.items():
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += count
    best = max(pairs, key=lambda pair: (pairs[pair], pair))             # of equal counts the later in the alphabet
    merged = Counter()
    for pieces, count in words.items():
        new, i = [], 0
        while i < len(pieces):
            both = pieces[i:i + 2] == best
            new.append("".join(best) if both else pieces[i])
            i += 1 + both
        merged[tuple(new)] += count
    words = merged
    print(f"{''.join(best):5} ({pairs[best]} times)   {'  '.join('|'.join(pieces) for pieces in words)}")

# %% [markdown]
# The stem `low` and the ending `est` appear without anybody having said what a stem or an ending is. `mt.Tokenizer.train`
# does this with any text. The larger the vocabulary, the fewer pieces a word has; the number of pieces a word is called
# **fertility**.

# %%
sizes, fertility = (100, 150, 250, 400, 700, 1200), {}
for kind, source in (("wordpiece", sentences[:300]), ("byte_bpe", sentences[:300])):
    fertility[kind] = []
    for size in sizes if kind == "wordpiece" else (300, 400, 700, 1200):
        trained = mt.Tokenizer.train(source, kind=kind, vocab_size=size)
        pieces = sum(map(len, trained.encode_batch(sentences[300:])))
        fertility[kind].append((size, pieces / asked))

fig, ax = plt.subplots(figsize=(5, 2.4))
for (kind, points), colour in zip(fertility.items(), (BLUE, ORANGE), strict=True):
    ax.plot(*zip(*points, strict=True), "o-", color=colour, label=kind)
ax.set(xlabel="V", ylabel="pieces a word, held-out text", xscale="log", xticks=sizes, xticklabels=sizes, ylim=(0, None))
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Every doubling of `V` buys less than the one before, and costs `V x D` numbers in the table of vectors. For a small
# model that table is a large part of all parameters: published vocabularies have 30,000 to 250,000 rows.

# %% tags=["compare"]
model = mt.Model.from_pretrained("mini-bert")
table = model.embed.tokens.weight                                       # (V, D)
everything = sum(p.numel() for p in model.parameters())
print(f"table {tuple(table.shape)}: {table.numel() / everything:.0%} of all parameters of mini-bert")
base = mt.ModelConfig(vocab_size=30_522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512)
wide = mt.ModelConfig(vocab_size=250_002, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512)
for name, config in (("bert-base", base), ("the same with the vocabulary of XLM-R", wide)):
    whole = sum(p.numel() for p in mt.Model(config, seed=None).parameters())
    print(f"{name}: {config.vocab_size * config.d_model / whole:.0%} of {whole / 1e6:.0f} million")

# %% [markdown]
# Fertility is also a quick check before any training: a domain whose words fall into many pieces is one that the model
# has seen little of, and its texts reach the length limit sooner.
#
# ## 3. Special tokens
#
# Around the text stand tokens that are no text. `[CLS]` opens a row, and classifiers read the state above it; `[SEP]`
# closes a text; `[MASK]` hides a token in pretraining; `[PAD]` fills a batch. Two texts in one row are told apart by
# **token types**.

# %% tags=["compare"]
batch = tok(["Where is the key?"], ["It is under the mat."])
for name, t in batch.items():
    print(f"{name:15} {tuple(t.shape)}")                                # (B, T) each
print(" ".join(f"{piece}/{kind}" for piece, kind in zip(tok.tokens(batch["input_ids"][0]), batch["token_type_ids"][0].tolist(), strict=True)))

# %% [markdown]
# Which tokens stand around a text is a fact of the pretrained model: leave them out, and the model reads something it
# has never seen. So the tokenizer comes with the weights, and the two are always loaded from one place. GPT-2 puts
# nothing around a text:

# %% tags=["compare"]
print("mini-bert", tok.tokens(tok.encode("a text")), "  mini-gpt", gpt.tokens(gpt.encode("a text")))

# %% [markdown]
# ## 4. The way back: offsets
#
# Many tasks have labels on characters or words: this name, that answer. Each piece remembers which characters it came
# from and which word it belongs to, so that labels can be carried to pieces and answers back to the text. Searching
# for the word in the list of pieces does not work: "bank" is also the first piece of "banker".

# %% tags=["compare"]
text = "The banker sat by the bank."
encoding = tok.encodings([text])[0]
for piece, (start, end), word in zip(encoding.tokens, encoding.offsets, encoding.word_ids, strict=True):
    print(f"{piece:6} word {word!s:5} characters {start:2} to {end:2}  {text[start:end]!r}")

# %% [markdown]
# For a task with one label a word (part of speech, entities) the label stands at the first piece of the word, and the
# other pieces get the number -100, which the loss leaves out (exercise 3).
#
# ## 5. From ids to vectors
#
# The first layer is a table: id 17 becomes row 17. It is the same as a product with a row that is 1 at 17 and 0
# elsewhere, only without the product.

# %% tags=["compare"]
ids = tok(["The key is under the mat."])["input_ids"]                   # (B, T)
looked_up = table[ids]                                                  # (B, T, D)
one_hot = torch.nn.functional.one_hot(ids, tok.vocab_size).float()      # (B, T, V)
print(tuple(ids.shape), "->", tuple(looked_up.shape), "| equal to the product:", torch.equal(one_hot @ table, looked_up))
assert torch.equal(model.embed.tokens(ids), looked_up)

# %% [markdown]
# At this point "bank" has one vector, whatever stands around it. All the rest of the model exists to change that
# (08_what_layers_know measures it).
#
# ## 6. Batches, and padding that changes nothing
#
# Texts have different lengths, a tensor has one. Short rows are filled with `[PAD]`, and `attention_mask` says where
# tokens are: True at a token, False at padding.

# %% tags=["compare"]
texts = ["Yes.", "The key is under the mat.", "Nobody could say why."]
batch = tok(texts)
keep = batch["attention_mask"]                                          # (B, T) bool
for row, mask in zip(batch["input_ids"], keep, strict=True):
    print(" ".join(f"{piece:6}" for piece in tok.tokens(row)), "|", "".join("x" if m else "." for m in mask))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 1.9))
lengths = sorted(len(ids) for ids in tok.encode_batch(sentences))
for ax, rows, title in ((axes[0], lengths[::37], "a random batch"), (axes[1], lengths[100:110], "a batch of like lengths")):
    ax.barh(range(len(rows)), max(rows), color=GREY)
    ax.barh(range(len(rows)), rows, color=BLUE)
    ax.set(title=f"{title}: {1 - sum(rows) / (max(rows) * len(rows)):.0%} padding", xlabel="T (blue: tokens, grey: padding)", yticks=[])
plt.tight_layout()
plt.show()

# %% [markdown]
# Padding is work for nothing, so the engine puts texts of like length together. It must also have no influence: the
# same text alone, with padding on the right, with padding on the left. This is one of the silent mistakes of real
# programs, so it is worth a look in numbers:

# %%
body = mt.Model.from_pretrained("mini-bert", head="none").eval()
right, left = tok(texts), tok(texts, padding_side="left")
worst = 0.0
for i, text in enumerate(texts):
    alone = body(**tok([text])).last_hidden_state[0]                                            # (T_i, D)
    for padded in (right, left):
        inside = body(**padded).last_hidden_state[i][padded["attention_mask"][i]]               # (T_i, D)
        worst = max(worst, (inside - alone).abs().max().item())
print(f"largest difference {worst:.1e}")
assert worst < 1e-5

# %% [markdown]
# And what happens without the mask? The padding is read as text:

# %%
ignored = body(input_ids=right["input_ids"]).last_hidden_state[0, :3]
print(f"without attention_mask: {(ignored - body(**tok(texts[:1])).last_hidden_state[0, :3]).abs().max():.2f}")

# %% [markdown]
# Nothing fails, no shape is wrong, the numbers are. That is why a batch here is always a dict with its mask, and why
# padding is told by the mask and never by an id: GPT-2 has no padding token at all, and programs that take its
# end-of-text token for one, and then leave "padding" out of the loss, make models that never stop.
#
# ## 7. What is cut
#
# A model has learned vectors for a number of positions, and no more. Longer texts lose their end, and a warning says
# how much:

# %% tags=["compare"]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    short = tok([general[:3000], "a short one"], max_length=64)
print(tuple(short["input_ids"].shape))
print(said[-1].message)

# %% [markdown]
# ## What to take with you
#
# * A vocabulary of pieces is a compromise between length and completeness; it is learned from counts.
# * A tokenizer belongs to its weights: ids, special tokens and lower-casing are part of what the model learned.
# * Offsets lead back to the text; searching among pieces does not.
# * A mask, and only the mask, says what is padding; with it padding changes no number.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 02 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. WordPiece.** Split a lower-case word without punctuation: from the left, always the longest piece that is in
# `vocab` (a set of str; pieces inside a word begin with `##`). Return a list of pieces, or `["[UNK]"]` if some rest has
# none.

# %%
def wordpiece(word, vocab):
    raise NotImplementedError


mt.check("02", wordpiece)

# %% [markdown]
# **2. A merge.** `words` maps tuples of pieces to counts. Return the pair of neighbours with the largest count over all
# words (of equal ones the later in the alphabet), and the words after merging it.

# %%
def merge(words):
    raise NotImplementedError


mt.check("02", merge)

# %% [markdown]
# **3. Labels to pieces.** `word_ids` as in section 4 (a number, or None at special tokens), `labels` one number for each
# word. Return a list as long as `word_ids`: the label at the first piece of each word, -100 elsewhere. The answer takes
# part in the training of a tagger.

# %%
def align(word_ids, labels):
    raise NotImplementedError


mt.check("02", align)

# %% [markdown]
# **4. A batch.** From rows of ids of different lengths: `input_ids` (B, T) int64, filled with `pad_id`, and
# `attention_mask` (B, T) bool, with the padding on the right or on the left. The answer takes the place of the engine's.

# %%
def collate(rows, pad_id, padding_side):
    raise NotImplementedError


mt.check("02", collate)

# %% [markdown]
# ## The same in transformers
#
# A saved tokenizer is read by `transformers`, if it is installed, and gives the same ids.

# %%
# The same in transformers
import importlib.util

if importlib.util.find_spec("transformers"):
    import transformers
    for name, ours in (("mini-bert", tok), ("mini-gpt", gpt)):
        ours.save_pretrained(f"for-transformers/{name}")
        theirs = transformers.AutoTokenizer.from_pretrained(f"for-transformers/{name}")
        equal = theirs(sentences)["input_ids"] == [ours.encode(sentence) for sentence in sentences]
        print(f"{name}: {len(sentences)} sentences, the same ids: {equal}")
        assert equal
