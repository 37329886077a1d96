"""Old checkpoints become safetensors once, bit for bit, and nothing in them is run."""
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForMaskedLM

from minitransfer.nn.model import Model
from minitransfer.weights.convert import convert

BERT = BertConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=19)
GPT2 = GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=3, n_positions=19)

ROBERTA = RobertaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=19)
LLAMA = LlamaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=40, max_position_embeddings=19)


def old_checkpoint(folder: Path, model) -> dict[str, torch.Tensor]:
    """A folder as it was saved before safetensors: every name of the state dict, tied copies included."""
    folder.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = model.state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    return state


@pytest.mark.parametrize("model, copies", [(BertForMaskedLM(BERT), {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
                                                                    "cls.predictions.decoder.bias": "cls.predictions.bias"}),
                                           (GPT2LMHeadModel(GPT2), {"lm_head.weight": "transformer.wte.weight"}),
                                           (RobertaForMaskedLM(ROBERTA), {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
                                                                          "lm_head.decoder.bias": "lm_head.bias"}),
                                           (LlamaForCausalLM(LLAMA), {}),
                                           (LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | {"tie_word_embeddings": True})), {"lm_head.weight": "model.embed_tokens.weight"})],
                         ids=["bert", "gpt2", "roberta", "llama", "llama-tied"])
def test_every_tensor_is_kept_bit_for_bit_and_tied_copies_once(tmp_path, model, copies):
    state = old_checkpoint(tmp_path / "old", model)
    done = convert(tmp_path / "old", tmp_path / "new")
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert done.tied == copies
    assert set(written) == set(state) - set(copies)
    for name, tensor in written.items():
        assert torch.equal(tensor, state[name]), name
    assert done.tensors == len(written) and done.bytes == sum(t.nbytes for t in written.values())
    ids = torch.arange(3, 10)[None]
    ours = Model.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=0)


def test_in_place_by_default_and_only_once(tmp_path):
    old_checkpoint(tmp_path / "old", GPT2LMHeadModel(GPT2))
    before = (tmp_path / "old" / "config.json").read_bytes()
    assert convert(tmp_path / "old").folder == tmp_path / "old"
    assert {path.name for path in (tmp_path / "old").iterdir()} >= {"pytorch_model.bin", "model.safetensors"}
    assert (tmp_path / "old" / "config.json").read_bytes() == before
    with pytest.raises(ValueError, match=r"already has model\.safetensors"):
        convert(tmp_path / "old")


@pytest.mark.parametrize("model", [GPT2LMHeadModel(GPT2), RobertaForMaskedLM(ROBERTA), LlamaForCausalLM(LLAMA)], ids=["gpt2", "roberta", "llama"])
def test_shards_and_their_index(tmp_path, model):
    """Shards were written one by one, so that a tied copy in another shard than its twin is a tensor of its own."""
    state = old_checkpoint(tmp_path / "old", model)
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for file, keys in parts.items():
        torch.save({key: state[key].clone() for key in keys}, tmp_path / "old" / file)
    index = '{"weight_map": {' + ", ".join(f'"{key}": "{file}"' for file, keys in parts.items() for key in keys) + "}}"
    (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(index)
    done = convert(tmp_path / "old", tmp_path / "new")
    assert done.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    written = load_file(tmp_path / "new" / done.files[0]) | load_file(tmp_path / "new" / done.files[1])
    assert set(written) == set(state) and all(torch.equal(written[name], state[name]) for name in state)
    ids = torch.arange(3, 10)[None]
    with torch.no_grad():
        torch.testing.assert_close(Model.from_pretrained(tmp_path / "new")(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=0)
    (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(index.replace("pytorch_model-00001-of-00002.bin", "../secret.bin"))
    with pytest.raises(ValueError, match=r"names '\.\./secret\.bin'; a shard is a file in the same folder"):
        convert(tmp_path / "old", tmp_path / "other")


def test_the_loader_says_how(tmp_path):
    old_checkpoint(tmp_path / "old", LlamaForCausalLM(LLAMA))
    with pytest.raises(ValueError, match=r"read from safetensors only: convert pytorch_model\.bin once with `minitransfer convert .*old`") as error:
        Model.from_pretrained(tmp_path / "old")
    convert(*str(error.value).split("`")[1].split()[2:])
    assert Model.from_pretrained(tmp_path / "old").head_name == "causal"


def test_a_repository_of_the_hub(tmp_path, monkeypatch):
    """By its id, from the hub's cache here; it needs a folder to write to, since the cache is not ours."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--some--old"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    state = old_checkpoint(repository / "snapshots" / ("0" * 40), GPT2LMHeadModel(GPT2))
    with pytest.raises(ValueError, match=r"no folder some/old; .* a folder to write to is needed: minitransfer convert some/old FOLDER"):
        convert("some/old")
    convert("some/old", tmp_path / "new")
    assert torch.equal(Model.from_pretrained(tmp_path / "new").embed.tokens.weight, state["transformer.wte.weight"])


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, writer):
    (tmp_path / "old").mkdir()
    evil = {"weight": torch.ones(2), "more": Evil(tmp_path / "ran")}
    if writer == "torch":
        torch.save(evil, tmp_path / "old" / "pytorch_model.bin")
    else:
        (tmp_path / "old" / "pytorch_model.bin").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(ValueError, match=r"holds more than tensors .* was not opened") as error:
        convert(tmp_path / "old", tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    assert not [path.name for path in tmp_path.rglob("*") if path.parent.name != "old" and path.name != "old"]        # nothing half-written


def bin_with(content) -> dict:
    return {"pytorch_model.bin": content}


WHOLE = {"weight": torch.arange(3000.0)}


@pytest.mark.parametrize("files, message", [
    ({}, r"has no pytorch_model\.bin; it has nothing"),
    ({"model.safetensors": b"x"}, r"in safetensors already"),
    (bin_with(b"version https://git-lfs.github.com/spec/v1\n"), r"was not written by torch\.save \(it starts with b'version https"),
    (bin_with(b""), r"was not written by torch\.save"),
    (bin_with("half"), r"cannot be read .* cut off"),
    (bin_with({}), r"is no table of tensors \(it is empty\)"),
    (bin_with([torch.ones(2)]), r"is no table of tensors \(it is a list\)"),
    (bin_with({"model": {"weight": torch.ones(2)}, "epoch": 3}), r"is no table of tensors \('model' is a dict, 'epoch' is a int\)"),
    (bin_with({"weight": torch.tensor([1.0, float("nan")])}), r"weight has 1 values that are NaN or infinite"),
], ids=["nothing", "safetensors", "pointer", "empty", "half", "no tensors", "a list", "a trainer's file", "NaN"])
def test_what_cannot_be_converted_says_why(tmp_path, files, message):
    (tmp_path / "old").mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / "old" / name).write_bytes(content)
        else:
            torch.save(WHOLE if content == "half" else content, tmp_path / "old" / name)
            if content == "half":
                whole = (tmp_path / "old" / name).read_bytes()
                (tmp_path / "old" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "old")
    assert {path.name for path in (tmp_path / "old").iterdir()} == set(files)


def test_a_missing_source_and_a_single_file(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; needed is a folder with pytorch_model\.bin"):
        convert(tmp_path / "nowhere")
    base = torch.arange(12.0).view(3, 4)
    # views of one storage, none of them the same tensor
    torch.save({"a": base, "above": base[:2], "rows": base[1:], "turned": base.T}, tmp_path / "weights.pt")
    done = convert(tmp_path / "weights.pt", tmp_path / "new")
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert done.tied == {} and torch.equal(written["turned"], base.T)
    assert torch.equal(written["above"], base[:2]) and torch.equal(written["rows"], base[1:])
    save_file(written, tmp_path / "again.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
