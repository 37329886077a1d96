"""Ours -> transformers -> ours: the same tensors to the last bit, under the same names, with the same answers."""
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minitransfer as mt
from minitransfer.families import FAMILIES, written_as
from tests.reference import HEADS, LABELS, close, pair, perturbed
from tests.unit.tiny import bert, gpt2, moved

CLASSES = sorted(HEADS)


def same_files(a, b) -> None:
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def facts(config: mt.ModelConfig) -> dict:
    """A config with what None stands for."""
    return {name: config.rate(name) if name.endswith("dropout") else getattr(config, name) for name in config.to_dict()} | {"n_kv_heads": config.kv_heads}


def same_model(a: mt.Model, b: mt.Model) -> None:
    assert (facts(a.config), a.head_name, a.labels) == (facts(b.config), b.head_name, b.labels)
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def theirs_of(class_name: str, folder) -> torch.nn.Module:
    """Their model from our files, with nothing missing, unexpected or misshapen."""
    model, info = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", CLASSES)
def test_round_trip(name, tmp_path):
    reference, ours = pair(name, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    same_files(tmp_path / "ours", tmp_path / "theirs")
    back = theirs_of(name, tmp_path / "ours")
    assert back.config.architectures == [name]
    want = reference.state_dict()
    assert back.state_dict().keys() == want.keys() and all(torch.equal(t, want[key]) for key, t in back.state_dict().items())
    same_model(ours, mt.Model.from_pretrained(tmp_path / "ours"))
    back.save_pretrained(tmp_path / "again")
    same_files(tmp_path / "again", tmp_path / "theirs")


@pytest.mark.parametrize("name", CLASSES)
def test_the_config_keeps_what_we_do_not_use(name, tmp_path):
    _, ours = pair(name, tmp_path / "theirs", pad_token_id=2, bos_token_id=5, use_cache=False, layer_norm_eps=1e-7, layer_norm_epsilon=1e-6)
    ours.save_pretrained(tmp_path / "ours")
    before, after = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "ours"))
    kept = {key: value for key, value in after.items() if key in before}
    assert before == kept


SCRATCH = [("BertModel", bert(), "none", None), ("BertForMaskedLM", bert(activation="relu"), "masked", None), ("BertForPreTraining", bert(), "masked+next", None),
           ("BertForSequenceClassification", bert(head_dropout=0.2), "sequence", list(LABELS.values())), ("BertForTokenClassification", bert(), "token", ["O", "B"]),
           ("BertForQuestionAnswering", bert(n_token_types=3), "span", None),
           ("GPT2Model", gpt2(), "none", None), ("GPT2LMHeadModel", gpt2(activation="silu", dropout=0.2, attn_dropout=0.0), "causal", None),
           ("GPT2ForSequenceClassification", gpt2(), "sequence", ["one", "two", "three", "four"]), ("GPT2ForTokenClassification", gpt2(), "token", ["O", "B"]),
           ("GPT2ForQuestionAnswering", gpt2(), "span", None)]


@pytest.mark.parametrize("name, config, head, labels", SCRATCH, ids=[row[0] for row in SCRATCH])
@torch.no_grad()
def test_from_scratch(name, config, head, labels, tmp_path):
    """A model that no file has described before: transformers reads it and answers the same."""
    ours = moved(mt.Model(config, head, labels))
    ours.save_pretrained(tmp_path)
    theirs, ids = theirs_of(name, tmp_path), torch.randint(101, (1, 13))
    got, want = ours(ids), theirs(ids)
    if head == "span":
        close(got.logits, torch.stack([want.start_logits, want.end_logits], -1), what=name)
    else:
        close(got.last_hidden_state if head == "none" else got.logits, want[0], what=name)
    same_model(ours, mt.Model.from_pretrained(tmp_path))
    if labels is not None:
        assert theirs.config.id2label == dict(enumerate(labels)) and theirs.config.label2id == {label: i for i, label in enumerate(labels)}


@pytest.mark.parametrize("config, message", [
    (bert(window=5), r"no family's files can describe this architecture; it differs from the nearest in\n  bert: window=5 \(has None\)\n"),
    (gpt2(n_kv_heads=2), r"gpt2: n_kv_heads=2 \(has 4\)"),
    (bert(activation="gelu", norm_position="pre"), r"bert: norm_position='pre' \(has 'post'\)"),
    (bert(embed_dropout=0.5), r"bert: embed_dropout=0.5 \(has 0.1\)"),
    (bert(pooler=False), r"bert: pooler=False \(has True\)"),
])
def test_an_architecture_without_a_file_format(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        mt.Model(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="change the fields of one of these lines"):
        written_as(config)
    assert not (tmp_path / "model").exists()


def test_every_family_describes_its_own_defaults():
    assert written_as(bert()) is FAMILIES["bert"] and written_as(gpt2()) is FAMILIES["gpt2"]


def test_a_head_the_files_do_not_know(tmp_path):
    with pytest.raises(ValueError, match='a gpt2 with head="masked"; its files know none, causal, sequence, token, span: put one of these on with set_head'):
        mt.Model(gpt2(), "masked").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_parameter_without_a_name(tmp_path):
    model = mt.Model(bert())
    model.blocks[1].extra = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"blocks.1.extra.bias, blocks.1.extra.weight \(2 in all\) have no name in bert files; .*: merge or remove adapters first"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- shards --------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_their_shards(name, tmp_path):
    reference = perturbed(name)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    reference.save_pretrained(tmp_path / "one")
    same_model(mt.Model.from_pretrained(tmp_path), mt.Model.from_pretrained(tmp_path / "one"))


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_our_shards(name, tmp_path):
    reference, ours = pair(name, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=20_000)
    index, files = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text()), sorted((tmp_path / "ours").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)] and len(files) > 2
    held = {file.name: load_file(file) for file in files}
    assert index["weight_map"] == {key: file for file, tensors in held.items() for key in tensors}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in held.values() for t in tensors.values())
    assert all(len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000 for tensors in held.values())
    want = reference.state_dict()
    assert all(torch.equal(t, want[key]) for key, t in theirs_of(name, tmp_path / "ours").state_dict().items())
    same_model(ours, mt.Model.from_pretrained(tmp_path / "ours"))


def test_fewer_files_than_before_leave_no_old_ones(tmp_path):
    model = moved(mt.Model(bert()))
    for limit in (20_000, 10**9, 40_000):
        with torch.no_grad():
            model.embed.norm.bias.add_(1)
        model.save_pretrained(tmp_path, max_shard_bytes=limit)
        assert (tmp_path / "model.safetensors").exists() == (limit == 10**9) != (tmp_path / "model.safetensors.index.json").exists()
        assert {file.name[-13:] for file in tmp_path.glob("model-*")} <= {f"{len(list(tmp_path.glob('model-*'))):05d}.safetensors"[-13:]}
        same_model(model, mt.Model.from_pretrained(tmp_path))


# ---- numbers -------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_saving_in_another_dtype(dtype, tmp_path):
    model = moved(mt.Model(bert(), "masked"))
    model.save_pretrained(tmp_path, dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert model.embed.tokens.weight.dtype == torch.float32                      # the model itself is left as it is
    assert theirs_of("BertForMaskedLM", tmp_path).dtype == dtype                # what config.json says
    wide, same = mt.Model.from_pretrained(tmp_path), mt.Model.from_pretrained(tmp_path, dtype=dtype)
    for (name, p), q, r in zip(model.named_parameters(), wide.parameters(), same.parameters(), strict=True):
        assert q.dtype == torch.float32 and r.dtype == dtype, name
        assert torch.equal(q, p.to(dtype).float()) and torch.equal(r, p.to(dtype)), name


def test_a_model_in_bf16_saves_as_bf16(tmp_path):
    model = moved(mt.Model(gpt2(), "causal")).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    same_model(model, mt.Model.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("config, head, absent", [(bert(), "masked", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"]),
                                                  (gpt2(), "causal", ["lm_head.weight"])], ids=["bert", "gpt2"])
def test_tied_tensors_are_written_once(config, head, absent, tmp_path):
    moved(mt.Model(config, head)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not set(absent) & set(file.keys())
        assert sum(file.get_tensor(key).shape == (101, 28) for key in file.keys()) == 1
        assert file.metadata() == {"format": "pt"}


# ---- names of other times and places ---------------------------------------------------------------------------------------------------------------

def rewritten(folder, change) -> None:
    """The same file with other names."""
    save_file({change(key): t for key, t in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")


@pytest.mark.parametrize("change", [
    lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    lambda key: "_orig_mod." + key, lambda key: "module." + key, lambda key: "module._orig_mod." + key, lambda key: key.removeprefix("bert."),
], ids=["gamma and beta", "compiled", "distributed", "both", "no prefix"])
def test_names_of_old_compiled_and_distributed_files(change, tmp_path):
    _, ours = pair("BertForMaskedLM", tmp_path)
    rewritten(tmp_path, change)
    same_model(ours, mt.Model.from_pretrained(tmp_path))


def test_buffers_of_old_files_are_no_parameters(tmp_path):
    _, ours = pair("GPT2LMHeadModel", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 41, 41), "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors | buffers, tmp_path / "model.safetensors")
    again = mt.Model.from_pretrained(tmp_path)
    same_model(ours, again)
    assert again.load_report.ignored == dict(zip(buffers, ("the causal mask, a buffer of old files", "a constant of old files"), strict=True))


@pytest.mark.parametrize("name, kept, tied", [("GPT2LMHeadModel", "transformer.wte.weight", "lm_head.weight"),
                                              ("BertForMaskedLM", "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
                                              ("BertForMaskedLM", "cls.predictions.bias", "cls.predictions.decoder.bias")])
def test_tied_copies(name, kept, tied, tmp_path):
    """A file may hold both copies of a tied tensor if they are equal, or only the second one; two that differ are refused."""
    _, ours = pair(name, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tied not in tensors
    save_file(tensors | {tied: tensors[kept].clone()}, tmp_path / "model.safetensors")
    both = mt.Model.from_pretrained(tmp_path)
    same_model(ours, both)
    assert tied in both.load_report.ignored
    save_file({key: t for key, t in tensors.items() if key != kept} | {tied: tensors[kept].clone()}, tmp_path / "model.safetensors")
    second = mt.Model.from_pretrained(tmp_path)
    same_model(ours, second)
    assert sorted(second.load_report.loaded) == sorted(n for n, _ in ours.named_parameters())
    save_file(tensors | {tied: tensors[kept] + 1e-6}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"tied: {tied} differs from .*, but this family uses one tensor for both"):
        mt.Model.from_pretrained(tmp_path)
