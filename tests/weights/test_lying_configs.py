"""A config.json that is not the weights', or nobody's: one sentence that names the field, before anything large is made."""
import json
import re

import pytest
import torch
from safetensors.torch import save_file

import minitransfer as mt
from minitransfer.families import read_config

SIZES = dict(vocab_size=30, d_model=16, n_layers=1, n_heads=2, d_ff=24, max_len=16)
BERT = {"model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 16, "architectures": ["BertModel"]}
LLAMA = BERT | {"model_type": "llama", "architectures": ["LlamaModel"]}


@pytest.fixture
def folder(tmp_path):
    mt.Model(mt.ModelConfig(**SIZES), head="embedding").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lie", [{"vocab_size": 10**9, "hidden_size": 10**5, "num_attention_heads": 1}, {"num_hidden_layers": 10**7}, {"intermediate_size": 10**12},
                                 {"max_position_embeddings": 10**10}], ids=lambda lie: next(iter(lie)))
def test_sizes_that_no_file_holds_are_refused(folder, lie):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | lie))
    with pytest.raises(ValueError, match=r"describes a model of far more than the [\d,]+ numbers that its files hold"):
        mt.Model.from_pretrained(folder)


def test_a_lying_dense_module_is_refused(folder):
    rows = json.loads((folder / "modules.json").read_text())
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.zeros(16, 16), "linear.bias": torch.zeros(16)}, folder / "2_Dense/model.safetensors")
    (folder / "2_Dense/config.json").write_text(json.dumps({"in_features": 16, "out_features": 10**13, "activation_function": "torch.nn.modules.linear.Identity"}))
    (folder / "modules.json").write_text(json.dumps([*rows[:2], {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match="2_Dense describes a model of far more"):
        mt.Model.from_pretrained(folder)


@pytest.mark.parametrize("path", ["..", ".", "a/b", "/etc"])
def test_a_module_outside_the_folder_is_refused(folder, path):
    rows = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*rows[:2], {"idx": 9, "name": "9", "path": path, "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match=re.escape(f"names the folder {path!r}")):
        mt.Model.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json"])
def test_json_that_is_too_deep_is_refused(folder, name):
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=name):
        (mt.Tokenizer if name.startswith("tok") else mt.Model).from_pretrained(folder)


@pytest.mark.parametrize("config, said", [
    (BERT | {"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\]"), (BERT | {"model_type": "roberta", "pad_token_id": None}, "pad_token_id=None"),
    (BERT | {"vocab_size": "30"}, "vocab_size='30'"), (BERT | {"num_attention_heads": 0}, "n_heads=0"),
    (LLAMA | {"num_attention_heads": 0}, "num_attention_heads=0"), (LLAMA | {"rope_scaling": "linear"}, "rope_scaling='linear'"),
    (LLAMA | {"hidden_size": [16]}, r"hidden_size=\[16\]"), (LLAMA | {"num_hidden_layers": None}, "num_hidden_layers=None"),
    (BERT | {"architectures": "BertModel"}, "architectures='BertModel'"), (BERT | {"architectures": [None]}, r"architectures=\[None\]")],
    ids=lambda x: x if isinstance(x, str) else "")
def test_a_value_of_the_wrong_kind_is_named(config, said):
    with pytest.raises(ValueError, match=said):
        read_config(config)


def test_a_family_of_the_wrong_kind_is_named():
    with pytest.raises(KeyError, match=r"model_type \['bert'\]"):
        read_config(BERT | {"model_type": ["bert"]})


@pytest.mark.parametrize("n", [10**10, "two", -1])
def test_a_number_of_labels_nobody_has_is_refused(folder, n):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_labels": n}))
    with pytest.raises(ValueError, match="num_labels="):
        mt.Model.from_pretrained(folder, head="sequence")


def test_many_labels_of_ones_own_are_no_lie(folder):
    assert mt.Model.from_pretrained(folder, head="sequence", labels=[str(i) for i in range(7001)]).head.classifier.out_features == 7001
