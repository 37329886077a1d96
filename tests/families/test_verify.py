"""The parity certificate: every family certifies, planted faults are found where they are, mistakes are explained."""
import importlib.util
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import minitransfer as mt
from minitransfer.cli import main
from minitransfer.families.rules import Rule

from .cases import ALL, CASES, IDS, slow_after_the_first

BY_NAME = {case.name: case for case in CASES}


def saved(name, class_name, folder, **changes):
    BY_NAME[name].reference(class_name, **changes).save_pretrained(folder)
    return folder


def verified(folder, **settings):
    return mt.verify(folder, **{"repeats": 0, "lengths": [13], "gradients": False} | settings)


@pytest.mark.parametrize("case, name", slow_after_the_first(ALL), ids=IDS)
def test_every_case_certifies(case, name, tmp_path):
    case.reference(name).save_pretrained(tmp_path)
    found = mt.verify(tmp_path, repeats=0, lengths=case.lengths, bar=case.bar)
    assert found.holds and found.first is None and found.error <= case.bar, str(found)
    addresses = {row.module.split(" (call")[0].split(".")[0] for row in found.modules.rows}
    parameters = {name.split(".")[0] for name, _ in mt.Model.from_pretrained(tmp_path, head=found.head).named_parameters()}
    uncalled = {"embed"} if case.model_type in ("t5", "mt5") else set()              # there the encoder alone has the table under a second name
    assert parameters - {"head", "relative"} - uncalled <= addresses, found.left_out                       # whatever has weights has rows
    if found.head != "none":
        assert any(one.what == "loss" for one in found.outputs) and any(re.match(r"gradient of ((en|de)coder\.)?blocks", one.what) for one in found.outputs)


# ---- planted faults --------------------------------------------------------------------------------------------------------------------------------

CLASSES = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize("name, module_name, fault", [
    ("bert", "blocks.1.attn.k_proj", lambda m: swap(m.blocks[1].attn.k_proj, m.blocks[1].attn.v_proj)),
    ("bert", "blocks.2.norm_mlp", lambda m: setattr(m.blocks[2].norm_mlp, "eps", 1e-3)),
    ("bert", "blocks.0.mlp.up_proj", lambda m: m.blocks[0].mlp.up_proj.bias[3].add_(0.01)),
    ("bert", "head.transform.norm", lambda m: m.head.transform.norm.weight[0].add_(0.01)),
    ("bert", "embed.positions", lambda m: m.embed.positions.weight[2].add_(0.01)),
    ("gpt2", "blocks.1.attn.v_proj", lambda m: m.blocks[1].attn.v_proj.weight[0, 0].add_(0.5)),
    ("gpt2", "norm", lambda m: m.norm.bias[0].add_(0.01)),
    ("llama", "blocks.1.norm_attn", lambda m: setattr(m.blocks[1].norm_attn, "eps", 1e-2)),
    ("llama", "blocks.0.mlp.gate_proj", lambda m: m.blocks[0].mlp.gate_proj.weight[0, 0].add_(0.5)),
])
def test_a_fault_in_a_module_is_found_there(name, module_name, fault, tmp_path, monkeypatch):
    found = with_fault(name, fault, tmp_path, monkeypatch)
    assert not found.holds and found.first == module_name and found.cause.startswith("what it is given is equal" if "embed" not in module_name else "look at its weights")
    assert f"does not hold: {module_name} is the first that diverges" in str(found)


@pytest.mark.parametrize("name, module_name, before, fault", [
    ("bert", "blocks.0.mlp.down_proj", "blocks.0.mlp.up_proj", lambda m: setattr(m.blocks[0].mlp, "activation", "silu")),
    ("gpt2", "blocks.1.mlp.down_proj", "blocks.1.mlp.up_proj", lambda m: setattr(m.blocks[1].mlp, "activation", "gelu")),
    ("gpt2", "blocks.0.attn.o_proj", "blocks.0.attn.v_proj", lambda m: setattr(m.blocks[0].attn, "stretch", 1.01)),
    ("bert", "embed.norm", "embed.", lambda m: setattr(m.embed, "scale", 1.001)),
])
def test_a_fault_between_modules_is_found_between_them(name, module_name, before, fault, tmp_path, monkeypatch):
    found = with_fault(name, fault, tmp_path, monkeypatch)
    assert found.first == module_name and found.cause.startswith("what it is given already differs") and f"look between {before}" in found.cause, found.cause


def test_a_fault_that_no_module_shows_is_found_in_the_outputs(tmp_path, monkeypatch):
    found = with_fault("gpt2", lambda m: setattr(m.head, "scale", 1.01), tmp_path, monkeypatch)
    assert found.first == "logits" and "every module agrees" in found.cause and "In fp64" in found.cause and "two orders" not in found.cause


def test_rounding_is_told_from_another_computation(tmp_path):
    """Below what fp32 can hold no model agrees; fp64 shows that it is nothing else."""
    found = verified(saved("bert", "BertForMaskedLM", tmp_path), bar=1e-9)
    assert not found.holds and re.search(r"In fp64 the largest relative error is \d\.\de-1[2-9]: both compute the same", found.cause), found.cause


def swap(a, b):
    kept = a.weight.clone()
    a.weight.copy_(b.weight)
    b.weight.copy_(kept)


def with_fault(name, fault, folder, monkeypatch):
    saved(name, CLASSES[name], folder)
    right = mt.Model.from_pretrained

    def wrong(*given, **words):
        model = right(*given, **words)
        with torch.no_grad():
            fault(model)
        return model
    monkeypatch.setattr(mt.Model, "from_pretrained", wrong)
    return verified(folder)


def test_perturbing_shows_tensors_that_were_swapped_while_constant(tmp_path, monkeypatch):
    """At their first values the norms of a fresh model are all alike: loaded crosswise they are right by chance."""
    saved("bert", "BertModel", tmp_path, scale=0.0)
    right, crossed = mt.families.bert.weights, {"norm_attn": "norm_mlp", "norm_mlp": "norm_attn"}

    def crosswise(c):
        return [replace(rule, ours=re.sub("norm_attn|norm_mlp", lambda m: crossed[m[0]], rule.ours)) if isinstance(rule, Rule) else rule for rule in right(c)]
    monkeypatch.setattr(mt.families.bert, "weights", crosswise)
    outputs = {perturb: {one.what: one.error for one in verified(tmp_path, perturb=perturb).outputs} for perturb in (0.0, 0.1)}
    assert outputs[0.0]["state 3"] <= 1e-5 < outputs[0.1]["state 3"]


# ---- the certificate -------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_certificate_is_json_and_reproducible(tmp_path):
    folder = saved("gpt2", "GPT2LMHeadModel", tmp_path / "model")
    first, again = (mt.verify(folder, lengths=[7, 11], perturb=0.05, dtypes=["fp32", "bf16"], repeats=repeats, out=tmp_path / name)
                    for name, repeats in (("a.json", 2), ("b.json", 0)))
    kept, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    cost = kept.pop("cost")
    other.pop("cost")
    assert kept == other and kept == json.loads(json.dumps({key: value for key, value in first.to_dict().items() if key != "cost"}))
    assert kept["holds"] is True and kept["class"] == "GPT2LMHeadModel" and set(kept["versions"]) == {"torch", "transformers", "minitransfer"}
    rows = {row["module"]: row for row in kept["modules"]}
    assert rows["blocks.0.attn.k_proj"]["in_file"] == "transformer.h.0.attn.c_attn (part 2 of 3)" and rows["blocks.1"]["in_file"] == "transformer.h.1"
    order = [row["module"] for row in kept["modules"]]
    assert order.index("embed.tokens") < order.index("blocks.0.norm_attn") < order.index("blocks.0.mlp.down_proj") < order.index("blocks.0") < order.index("blocks.1")
    for side in ("ours", "reference"):
        assert len(cost[side]["readings"]) == 2 and cost[side]["seconds"] > 0 and cost[side]["bytes"] > 0
    assert "holds" in str(again) and "module" in again._repr_html_()


def test_low_precision_is_judged_by_the_distance_from_the_truth(tmp_path, monkeypatch):
    saved("llama", "LlamaForCausalLM", tmp_path)
    rows = verified(tmp_path, dtypes=["bf16", "fp16"]).precision
    assert [(row.dtype, row.what) for row in rows] == [("bf16", "states"), ("bf16", "logits"), ("fp16", "states"), ("fp16", "logits")]
    assert all(row.holds and 0 < row.ours < 0.1 for row in rows) and rows[2].ours < rows[0].ours / 3      # fp16 has three bits more
    found = with_fault("llama", lambda m: m.norm.weight.mul_(1.1 if m.norm.weight.dtype == torch.bfloat16 else 1), tmp_path, monkeypatch)
    assert found.holds
    worse = verified(tmp_path, dtypes=["bf16"])
    assert not worse.holds and worse.first.endswith("in bf16")


def test_texts_go_through_the_tokenizer(tiny_bert):
    found = verified(tiny_bert, texts=["a text", "another one that is longer than the first"])
    assert found.holds and found.settings["texts"] == ["a text", "another one that is longer than the first"]


@pytest.fixture
def tiny_bert(tmp_path):
    tok = mt.Tokenizer.train(["a text", "another one that is longer"], "wordpiece", 90, max_len=30)
    saved("bert", "BertForMaskedLM", tmp_path, vocab_size=max(101, tok.vocab_size))
    tok.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_of_sentence_transformers_is_verified_as_the_bare_model(tmp_path):
    saved("bert", "BertModel", tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    found = verified(tmp_path)
    assert found.holds and (found.class_name, found.head) == ("BertModel", "none")


# ---- mistakes --------------------------------------------------------------------------------------------------------------------------------------

def spoiled(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("spoil, message", [
    (lambda folder: (folder / "config.json").unlink(), r"no config\.json in"),
    (lambda folder: spoiled(folder, model_type="brt"), r"model_type 'brt' in config\.json; known are .*did you mean 'bert'"),
    (lambda folder: spoiled(folder, architectures=["BertForNothing"]), r"transformers [\d.]+ has no such class"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"cannot load .* as BertForMaskedLM|has no model\.safetensors"),
    (lambda folder: save_file(dict(list(load_file(folder / "model.safetensors").items())[1:]), folder / "model.safetensors", {"format": "pt"}), r"missing: "),
    (lambda folder: spoiled(folder, hidden_act="mish"), r"hidden_act='mish'"),
])
def test_mistakes_are_one_line(spoil, message, tmp_path, capsys):
    spoil(saved("bert", "BertForMaskedLM", tmp_path))
    with pytest.raises((ValueError, KeyError), match=message):
        verified(tmp_path)
    capsys.readouterr()                                                          # what the reference said when it was saved
    assert main(["verify", str(tmp_path), "--repeats", "0"]) == 1
    assert capsys.readouterr().err.startswith("minitransfer: ")


def test_without_transformers(tmp_path, monkeypatch):
    saved("bert", "BertModel", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "minitransfer\[verify\]"'):
        verified(tmp_path)


@pytest.mark.parametrize("settings, message", [({"lengths": [13, 99]}, "up to 37 tokens"), ({"lengths": [2]}, "labels need 5"), ({"dtypes": ["int8"]}, "remove int8"),
                                               ({"texts": ["a"]}, "tokenizer")])
def test_settings_that_do_not_fit(settings, message, tmp_path):
    saved("bert", "BertModel", tmp_path)
    with pytest.raises(ValueError, match=message):
        verified(tmp_path, **settings)


def test_the_verb(tmp_path, capsys, monkeypatch):
    folder = saved("bert", "BertForMaskedLM", tmp_path / "model")
    words = ["verify", str(folder), "--lengths", "9", "--repeats", "0", "--out", str(tmp_path / "c.json")]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("holds\n") and json.loads((tmp_path / "c.json").read_text())["holds"]
    shutil.rmtree(tmp_path / "model")
    with_fault("bert", lambda m: m.blocks[1].attn.o_proj.bias[0].add_(0.01), tmp_path / "model", monkeypatch)
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "does not hold: blocks.1.attn.o_proj is the first that diverges" in out and not json.loads((tmp_path / "c.json").read_text())["holds"]
