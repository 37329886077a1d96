"""Files that are cut off, lie, or are something else: one clear error each, before a number of theirs is used."""
import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import minitransfer as mt
from tests.unit.tiny import bert, gpt2, moved


@pytest.fixture
def folder(tmp_path):
    moved(mt.Model(bert(), "masked")).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    moved(mt.Model(bert(), "masked")).save_pretrained(tmp_path, max_shard_bytes=20_000)
    return tmp_path


def load(folder):
    return mt.Model.from_pretrained(folder)


def header(raw: bytes) -> tuple[dict, bytes]:
    (n,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def with_header(table: dict, data: bytes) -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def lying(field: str, value):
    """The same bytes with another claim about one tensor."""
    def change(raw: bytes) -> bytes:
        table, data = header(raw)
        table["bert.embeddings.word_embeddings.weight"][field] = value
        return with_header(table, data)
    return change


# ---- the file itself -------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [
    lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-1], lambda raw: raw[:100], lambda raw: raw[:4], lambda raw: b"", lambda raw: raw + b"more",
    lambda raw: b"<!DOCTYPE html><html><body>404: not found</body></html>", lambda raw: pickle.dumps({"weight": [1.0]}),
    lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", lambda raw: struct.pack("<Q", 2**60) + raw[8:],
    lambda raw: raw[:8] + b"[" + raw[9:],
    lying("shape", [102, 28]), lying("shape", [2**40, 2**40]), lying("shape", [-1, 28]), lying("data_offsets", [0, 2**50]), lying("data_offsets", [4, 0]),
    lying("dtype", "F64"), lying("dtype", "COMPLEX"),
], ids=["half", "one byte short", "in the header", "four bytes", "empty", "too long", "html", "pickle", "git lfs", "endless header", "broken header",
        "another shape", "an overflowing shape", "a negative shape", "offsets outside", "offsets reversed", "another dtype", "an unknown dtype"])
def test_a_file_that_is_cut_off_lies_or_is_something_else(folder, change):
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read as safetensors \(.*\); it is cut off, damaged or another kind of file: fetch it again"):
        load(folder)


def test_a_header_that_lies_in_a_possible_way(folder):
    """101 x 28 told as 28 x 101: the file is consistent, the model is not."""
    path = folder / "model.safetensors"
    path.write_bytes(lying("shape", [28, 101])(path.read_bytes()))
    with pytest.raises(ValueError, match=r"shape: bert.embeddings.word_embeddings.weight is \(28, 101\), embed.tokens.weight is \(101, 28\)"):
        load(folder)


def edited(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("value, n", [(float("nan"), 1), (float("inf"), 1), (-float("inf"), 2)])
def test_values_that_are_no_numbers(folder, value, n):
    edited(folder, lambda t: t["bert.encoder.layer.1.output.dense.bias"][:n].fill_(value))
    message = f"bert.encoder.layer.1.output.dense.bias has {n} values that are NaN or infinite out of 28; weights are finite numbers: the training"
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("tensor", [torch.zeros(101, 28, dtype=torch.int8), torch.zeros(101, 28, dtype=torch.bool), torch.zeros(101, 28).to(torch.float8_e4m3fn),
                                    torch.zeros(101, 28, 1), torch.tensor(1.0)], ids=["int8", "bool", "float8", "three axes", "a scalar"])
def test_a_tensor_of_another_kind(folder, tensor):
    edited(folder, lambda t: t.update({"bert.embeddings.word_embeddings.weight": tensor}))
    with pytest.raises(ValueError, match=r"shape: bert.embeddings.word_embeddings.weight is .* of torch\..*, needed is embed.tokens.weight in a floating-point type"):
        load(folder)


def test_a_fused_matrix_that_cannot_be_split(tmp_path):
    moved(mt.Model(gpt2())).save_pretrained(tmp_path)
    for shape in ((28, 85), (28, 1), (28, 0), (84,)):
        edited(tmp_path, lambda t, shape=shape: t.update({"h.0.attn.c_attn.weight": torch.zeros(shape)}))
        with pytest.raises(ValueError, match=r"shape: h.0.attn.c_attn.weight is "):
            load(tmp_path)


def test_one_error_lists_everything(folder):
    def change(tensors):
        tensors["bert.encoder.layer.0.attention.self.quary.weight"] = tensors.pop("bert.encoder.layer.0.attention.self.query.weight")
        tensors["bert.embeddings.LayerNorm.bias"] = torch.zeros(29)
        del tensors["cls.predictions.transform.dense.weight"]
        tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(28)
        tensors["embeddings.position_embeddings.weight"] = tensors["bert.embeddings.position_embeddings.weight"].clone()
    edited(folder, change)
    with pytest.raises(ValueError) as error:
        load(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{folder} does not fit the model its config.json describes:"
    assert lines[-1] == "take the config.json that belongs to these weights, or fetch both again"
    assert sorted(line.strip() for line in lines[1:-1]) == [
        "missing: blocks.0.attn.q_proj.weight (in a file: encoder.layer.0.attention.self.query.weight)",
        "missing: head.transform.dense.weight (in a file: cls.predictions.transform.dense.weight)",
        "shape: bert.embeddings.LayerNorm.bias is (29,), embed.norm.bias is (28,)",
        "twice: embeddings.position_embeddings.weight fills embed.positions.weight again",
        "unexpected: bert.encoder.layer.0.attention.self.quary.weight (nearest known: encoder.layer.{i}.attention.self.query.weight)",
        "unexpected: bert.encoder.layer.2.output.dense.bias (the config has no blocks.2.mlp.down_proj.bias)",
    ]


def test_nothing_like_it(folder):
    edited(folder, lambda t: t.update(zzz=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"unexpected: zzz \(nearest known: none\)"):
        load(folder)


# ---- the folder ----------------------------------------------------------------------------------------------------------------------------------

def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model.safetensors and no model.safetensors.index.json; weights are read from safetensors only: give a folder"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"safetensors only: convert pytorch_model.bin once with `minitransfer convert "):
        load(folder)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/outside.safetensors", "sub/inside.safetensors", "..", "./model-00001-of-00004.safetensors",
                                  "config.json", 5, None, "", "model\0.safetensors"])
def test_an_index_that_points_elsewhere(shards, file):
    save_file({"x": torch.zeros(1)}, shards.parent / "outside.safetensors")
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["bert.embeddings.LayerNorm.bias"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model.safetensors.index.json in .* (points bert.embeddings.LayerNorm.bias to .*; a shard is a .safetensors file in the same "
                                         r"folder: do not load this checkpoint|names .*, which is missing)"):
        load(shards)


def test_a_missing_shard(shards):
    (shards / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors.index.json in .* names model-00002-of-00004.safetensors, which is missing: fetch all shards again"):
        load(shards)


def test_an_index_and_a_shard_that_disagree(shards):
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = next(name for name, file in index["weight_map"].items() if file.startswith("model-00001"))
    for change in ({first: "model-00002-of-00004.safetensors"}, {"bert.new.weight": "model-00001-of-00004.safetensors"}):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | change}))
        message = rf"model-0000\d-of-00004.safetensors and model.safetensors.index.json in .* disagree about {next(iter(change))}: fetch the checkpoint again"
        with pytest.raises(ValueError, match=message):
            load(shards)


@pytest.mark.parametrize("text, message", [
    ("{}", "has no weight_map; needed is a table of tensor names and files: fetch the index again"), ('{"weight_map": {}}', "has no weight_map"),
    ('{"weight_map": ["a"]}', "has no weight_map"), ("[1]", r"index.json holds a list; a JSON object \{...\} is needed"), ("{", "index.json is not JSON")])
def test_an_index_that_is_none(shards, text, message):
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(shards)


# ---- config.json ---------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content, message", [
    (None, "no config.json in .*; it describes the other files there: give a folder that has one"),
    (b"{", r"config.json is not JSON \(.*\); it may be cut off or another kind of file: fetch or write it again"),
    (b"\xff\xfe\x00", "config.json is not JSON"), (b"", "config.json is not JSON"),
    (b"[1, 2]", r"config.json holds a list; a JSON object \{...\} is needed"),
], ids=["absent", "cut off", "binary", "empty", "a list"])
def test_a_config_that_cannot_be_read(folder, content, message):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("change, error, message", [
    ({"model_type": "brt"}, KeyError, r"model_type 'brt' in config.json; known are bert, gpt2, .* \(did you mean 'bert'\?\): use a checkpoint of one of these families"),
    ({"model_type": None}, KeyError, "model_type None in config.json; known are bert, gpt2"),
    ({"hidden_size": ...}, KeyError, "config.json of a bert model without 'hidden_size'; needed are the fields transformers writes: take"),
    ({"hidden_act": "mish"}, ValueError, "hidden_act='mish' in config.json; we compute gelu, .*quick_gelu: use another checkpoint"),
    ({"is_decoder": True}, ValueError, "is_decoder=True in config.json; our bert computes is_decoder=False only: use another checkpoint"),
    ({"position_embedding_type": "relative_key"}, ValueError, "position_embedding_type='relative_key' in config.json; our bert computes .*='absolute' only"),
    ({"num_attention_heads": 3}, ValueError, "d_model=28 is not a multiple of n_heads=3"),
    ({"intermediate_size": 54}, ValueError, r"shape: bert.encoder.layer.0.intermediate.dense.bias is \(53,\), blocks.0.mlp.up_proj.bias is \(54,\)"),
    ({"num_hidden_layers": 1}, ValueError, r"unexpected: bert.encoder.layer.1.attention.output.LayerNorm.bias \(the config has no blocks.1.norm_attn.bias\)"),
    ({"num_hidden_layers": 3}, ValueError, r"missing: blocks.2.attn.q_proj.weight \(in a file: encoder.layer.2.attention.self.query.weight\)"),
    ({"vocab_size": 102}, ValueError, r"shape: bert.embeddings.word_embeddings.weight is \(101, 28\), embed.tokens.weight is \(102, 28\)"),
])
def test_a_config_that_does_not_fit(folder, change, error, message):
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(error, match=message):
        load(folder)
