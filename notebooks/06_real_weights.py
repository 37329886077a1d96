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
# # Real weights, and proof that they work
#
# Transfer learning begins with somebody else's numbers. This notebook opens a checkpoint byte by byte, follows its
# tensors to their places, shows which mistakes go unseen when that is done by hand, and ends with the certificate: the
# same input through this engine and through `transformers`, compared module by module.
#
# You need: 04_block_body_head. Reading time: about 12 minutes. Letters for shapes: `B` texts, `T` tokens, `D` width of
# the model, `V` vocabulary.

# %%
import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)

# %%
import importlib.util
import json
import struct
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import minitransfer as mt

torch.set_grad_enabled(False)           # nothing is trained in this notebook
warnings.filterwarnings("ignore", message="IProgress not found")      # no progress bars here
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#2f6fb2", "#d9722b", "#b9bec6"
have_transformers = importlib.util.find_spec("transformers") is not None
if have_transformers:
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

# %% [markdown]
# ## 1. What is in a folder
#
# A checkpoint is a folder with three things: `config.json` says what the model is, `model.safetensors` holds its
# numbers, `tokenizer.json` its vocabulary. Save one and look:

# %% tags=["compare"]
model, tok = mt.Model.from_pretrained("mini-bert").eval(), mt.Tokenizer.from_pretrained("mini-bert")
folder = Path("checkpoint")
model.save_pretrained(folder)
tok.save_pretrained(folder)
for file in sorted(folder.iterdir()):
    print(f"{file.name:24} {file.stat().st_size / 1e6:6.2f} MB")
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
print({name: config[name] for name in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")})

# %% [markdown]
# A safetensors file is simple enough to read by hand: eight bytes with the length of a header, the header as JSON, then
# the numbers of all tensors one after another. Nothing in it can be executed, which is why it has replaced pickled
# `.bin` files: loading one of those may run any code.

# %% tags=["compare"]
raw = (folder / "model.safetensors").read_bytes()
(length,) = struct.unpack("<Q", raw[:8])
header = json.loads(raw[8:8 + length])
tensors = {name: about for name, about in header.items() if name != "__metadata__"}
print(f"{len(tensors)} tensors, {sum(int(np.prod(about['shape'])) for about in tensors.values()):,} numbers")
name = "bert.encoder.layer.0.attention.self.query.weight"
print(name, tensors[name])

# %%
begin, end = tensors[name]["data_offsets"]
by_hand = torch.from_numpy(np.frombuffer(raw[8 + length + begin:8 + length + end], dtype="<f4").reshape(tensors[name]["shape"]).copy())
print("the same as in the model:", torch.equal(by_hand, model.blocks[0].attn.q_proj.weight))
assert torch.equal(by_hand, model.blocks[0].attn.q_proj.weight)

# %% [markdown]
# ## 2. Names
#
# Every family names its tensors in its own way. Here a family is one page, `families/bert.py` or `families/gpt2.py`,
# with a table: their name, our name, and what has to be done to the numbers. GPT-2 is the odd one: its files hold
# query, key and value as **one** matrix, and it is **turned round** (input x output, since its layers were written as a
# convolution).

# %% tags=["compare"]
from minitransfer.families import bert, gpt2

for page, c in ((bert, model.config), (gpt2, mt.Model.from_pretrained("mini-gpt").config)):
    print(page.__name__.split(".")[-1])
    for rule in [rule for rule in page.weights(c) if "attn" in getattr(rule, "ours", "") and rule.ours.endswith("weight")][:4]:
        ops = {"copy": "as it is", "transpose": "turned round", "transpose_split": "turned round and cut in three"}
        done = next(words for op, words in ops.items() if getattr(gpt2, op, None) is rule.op or (op == "copy" and not rule.op.transposed and not rule.op.folds))
        print(f"  {rule.theirs:44} -> {rule.ours:48} {done}")

# %% [markdown]
# ## 3. Loading is total
#
# The costly mistakes of loading make no noise: a tensor whose name was misspelt stays at its random start, and the
# model is a little worse than it should be. So each tensor of the file is used exactly once or named as unused, and
# each parameter is filled or named as new. A missing or unknown tensor is an error that says which:

# %% tags=["compare"]
from safetensors.torch import load_file, save_file

tensors = load_file(folder / "model.safetensors")
broken = Path("broken")
broken.mkdir(exist_ok=True)
(broken / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")


def attempt(what, changed):
    save_file(changed, broken / "model.safetensors")
    try:
        mt.Model.from_pretrained(broken)
    except (ValueError, KeyError) as error:
        print(f"{what}: {error.args[0].splitlines()[1].strip()[:150]}")
    else:
        print(f"{what}: loaded without a word")


attempt("one is missing", {key: t for key, t in tensors.items() if key != name})
attempt("one is misspelt", {key.replace("layer.0.attention.self.query.weight", "layer.0.attention.self.qurey.weight"): t for key, t in tensors.items()})
attempt("one is cut", {key: (t[:-1].contiguous() if key == name else t) for key, t in tensors.items()})

# %% [markdown]
# A head that does not fit the task is dropped, and the report says that too (04). What no loader can see is a tensor
# that has the right name and shape and the wrong numbers:

# %% tags=["compare"]
key = name.replace("query", "key")
attempt("query and key are swapped", {**tensors, name: tensors[key], key: tensors[name]})

# %% [markdown]
# ## 4. Mistakes that nobody sees
#
# How bad is a swap? The masks that `mini-bert` fills, before and after:

# %%
def best(model, text):
    return ", ".join(f"{token} {p:.2f}" for token, p in mt.fill(model, tok, text, k=4)[0])


swapped = mt.Model.from_pretrained(broken).eval()
for text in ("She opened the [MASK] and went in.", "The king and the [MASK] lived in a castle."):
    print(f"{text}\n   right    {best(model, text)}\n   swapped  {best(swapped, text)}")

# %% [markdown]
# Sensible words come out: nothing stops, and tuning would learn to work around the rest. Such a model is found only by
# comparing numbers, and not by comparing any numbers. Swap the two norms of a block in a model that was **not** trained
# yet, and compare outputs:

# %% tags=["compare"]
fresh = mt.Model(model.config, head="masked", seed=0).eval()
batch = tok(["The key is under the mat.", "Nobody could say why."])
before = fresh(**batch).logits                                          # (B, T, V)
first, second = fresh.blocks[0].norm_attn, fresh.blocks[0].norm_mlp
fresh.blocks[0].norm_attn, fresh.blocks[0].norm_mlp = second, first
print("swapped norms change the output of a fresh model:", not torch.equal(fresh(**batch).logits, before))
moved = torch.Generator().manual_seed(0)
for p in fresh.parameters():
    p.add_(torch.randn(p.shape, generator=moved) * 0.1)
before = fresh(**batch).logits
fresh.blocks[0].norm_attn, fresh.blocks[0].norm_mlp = first, second
print("and after every parameter was moved a little:", not torch.allclose(fresh(**batch).logits, before, atol=1e-3))

# %% [markdown]
# At its start every norm is a 1 and a 0, every bias a 0, and whatever they are swapped with, nothing changes. A
# comparison on a fresh model proves little. Every comparison of this project moves all parameters first.
#
# ## 5. The certificate
#
# `mt.verify` puts the same ids through the checkpoint as `transformers` loads it and as this engine does, with padding
# on either side, and compares what **every** module makes, every attention map, the loss and every gradient.

# %% tags=["compare"]
if have_transformers:
    certificate = mt.verify(folder, perturb=0.02, repeats=0)
    print("holds:", certificate.holds, "| modules compared:", len(certificate.modules.rows), "| largest error below 1e-5:", certificate.error < 1e-5)

# %% [markdown]
# An error of some `1e-6` is the rounding of 32-bit numbers: sums taken in another order. What is above it is a
# difference in the maths, however small. Plant one: GPT-2's approximation of GELU in the place of BERT's exact one. The
# two curves cannot be told apart by eye.

# %%
z = torch.linspace(-4, 4, 400)
exact, rough = torch.nn.functional.gelu(z), torch.nn.functional.gelu(z, approximate="tanh")
fig, axes = plt.subplots(1, 2, figsize=(7, 2.1))
axes[0].plot(z, exact, color=GREY, linewidth=4, label="exact")
axes[0].plot(z, rough, color=BLUE, linewidth=1, label="approximation")
axes[1].plot(z, rough - exact, color=ORANGE)
axes[0].set(title="GELU", xlabel="z")
axes[1].set(title="difference", xlabel="z")
axes[0].legend(frameon=False)
plt.tight_layout()
plt.show()

# %% tags=["compare"]
if have_transformers:
    other = Path("other")
    other.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(other, attn_implementation="eager").eval()
    changed = mt.Model.from_pretrained(other).eval()
    for block in changed.blocks:
        block.mlp.activation = "gelu_tanh"
    ids = batch["input_ids"]
    keep = batch["attention_mask"]
    a = changed(input_ids=ids, attention_mask=keep).logits
    b = theirs(input_ids=ids, attention_mask=keep.long()).logits
    right = model(input_ids=ids, attention_mask=keep).logits
    print("with the approximation the likeliest words are the same at every position:", torch.equal(a.argmax(-1)[keep], b.argmax(-1)[keep]))
    print("within 1e-5 of the largest value:", bool(((a - b)[keep].abs().max() / b.abs().max()) < 1e-5))
    print("the same with the right GELU:    ", bool(((right - b)[keep].abs().max() / b.abs().max()) < 1e-5))

# %% [markdown]
# A test that looks at the answers passes. A test that looks at the numbers does not, and when it compares module by
# module it also names the first one that differs.
#
# ## 6. There and back
#
# A model that was tuned here has to be read elsewhere. The table of names runs backwards, so what was loaded and saved
# is the file that came in, bit for bit:

# %% tags=["compare"]
for bundled in ("mini-bert", "mini-gpt"):
    one = mt.Model.from_pretrained(bundled)
    one.save_pretrained(f"again/{bundled}")
    again = load_file(f"again/{bundled}/model.safetensors")
    twice = mt.Model.from_pretrained(f"again/{bundled}")
    twice.save_pretrained(f"twice/{bundled}")
    same = all(torch.equal(t, again[key]) for key, t in load_file(f"twice/{bundled}/model.safetensors").items())
    print(f"{bundled}: {len(again)} tensors, the same after another round: {same}")
    assert same

# %% [markdown]
# ## What to take with you
#
# * A checkpoint is a config, named tensors and a vocabulary; safetensors can be read in three lines.
# * Loading has to account for every tensor and every parameter.
# * Wrong numbers make no error. Compare numbers, module by module, on moved parameters, with padding.
# * 1e-6 is rounding, 1e-4 is a mistake.
#
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell: `mt.check` says whether the answer is right. (Or write the
# functions into a file and run `minitransfer check 06 file.py`.) Solutions are in `notebooks/solutions`.
#
# **1. The header.** From the bytes of a safetensors file: a dict with the shape of each tensor, `{name: [..]}`, without
# `__metadata__`.

# %%
def shapes(raw):
    raise NotImplementedError


mt.check("06", shapes)

# %% [markdown]
# **2. Cut in three.** GPT-2's `c_attn.weight` is (D, 3 D): input x output, with the outputs of query, key and value one
# after another. Return three matrices (D, D), output x input, as our Linears hold them. The answer loads `mini-gpt`.

# %%
def split_fused(weight):
    raise NotImplementedError


mt.check("06", split_fused)

# %% [markdown]
# **3. Names.** Our name of a tensor of a BERT file, or None for one that is none of a block:
# `bert.encoder.layer.3.attention.self.query.weight` is `blocks.3.attn.q_proj.weight`. The names of a block are in
# section 2 and in `families/bert.py`.

# %%
def our_name(theirs):
    raise NotImplementedError


mt.check("06", our_name)

# %% [markdown]
# **4. The first that differs.** `ours` and `theirs` map names of modules, in the order of execution, to tensors. Return
# the first name where the largest difference is more than `bar` times the larger of 1 and the largest value of
# `theirs`, or None. Mind a NaN.

# %%
def first_difference(ours, theirs, bar):
    raise NotImplementedError


mt.check("06", first_difference)

# %% [markdown]
# ## The same in transformers

# %%
# The same in transformers
if importlib.util.find_spec("transformers"):
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ours = mt.Model.from_pretrained(folder).eval()
    far = (theirs(input_ids=ids, attention_mask=keep.long()).logits - ours(input_ids=ids, attention_mask=keep).logits)[keep].abs().max()
    theirs.save_pretrained("from-transformers")                         # and a folder that it wrote is read here
    back = mt.Model.from_pretrained("from-transformers").eval()
    far = max(far, (back(input_ids=ids, attention_mask=keep).logits - ours(input_ids=ids, attention_mask=keep).logits)[keep].abs().max())
    print("logits equal within 1e-4, both ways:", bool(far < 1e-4))
    assert far < 1e-4
