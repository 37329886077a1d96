"""What becomes of a head when a checkpoint is loaded, and what the report says about it."""
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import minitransfer as mt
from tests.reference import HEADS, LABELS, pair, perturbed
from tests.unit.tiny import gpt2, moved

NAMES = list(LABELS.values())


def saved(class_name, folder, **changes):
    model = perturbed(class_name, **changes)
    model.save_pretrained(folder)
    return model


def without(folder, *endings):
    tensors = load_file(folder / "model.safetensors")
    kept = {key: t for key, t in tensors.items() if not key.endswith(endings)}
    assert len(kept) == len(tensors) - len(endings)
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_head_of_the_file(name, tmp_path):
    _, ours = pair(name, tmp_path)
    report = ours.load_report
    assert ours.head_name == HEADS[name] and not any(module.training for module in ours.modules())
    assert sorted(report.loaded) == sorted(n for n, _ in ours.named_parameters()) and not report.new and not report.dropped
    assert str(report) == repr(report) == f"{tmp_path}: {len(report.loaded)} parameters loaded"
    assert ours.labels == (NAMES if HEADS[name] in ("sequence", "token") else None)


@pytest.mark.parametrize("name, dropped", [
    ("BertModel", []), ("GPT2Model", []), ("GPT2LMHeadModel", []),
    ("BertForMaskedLM", ["cls.predictions.bias", "cls.predictions.transform.LayerNorm.bias", "cls.predictions.transform.LayerNorm.weight",
                         "cls.predictions.transform.dense.bias", "cls.predictions.transform.dense.weight"]),
    ("BertForQuestionAnswering", ["qa_outputs.bias", "qa_outputs.weight"])])
def test_a_new_head_on_a_loaded_body(name, dropped, tmp_path):
    reference = saved(name, tmp_path)
    model = mt.Model.from_pretrained(tmp_path, head="sequence", labels=["no", "yes"], seed=5)
    report, head = model.load_report, ["head.classifier.bias", "head.classifier.weight"]
    new = head[1:] if name.startswith("GPT2") else head if name == "BertModel" else [*head, "pooler.bias", "pooler.weight"]
    assert sorted(report.new) == new and sorted(report.dropped) == dropped and model.labels == ["no", "yes"]
    assert sorted(report.loaded + report.new) == sorted(n for n, _ in model.named_parameters())
    assert "new, to be trained: head.classifier.weight" in str(report) and ("dropped with the file's own head" in str(report)) == bool(dropped)
    again, other = (mt.Model.from_pretrained(tmp_path, head="sequence", labels=["no", "yes"], seed=seed) for seed in (5, 6))
    assert torch.equal(model.head.classifier.weight, again.head.classifier.weight) and not torch.equal(model.head.classifier.weight, other.head.classifier.weight)
    assert 0.01 < model.head.classifier.weight.std() < 0.03                      # drawn, not what memory held
    ids = torch.randint(101, (1, 7))
    with torch.no_grad():
        want = reference(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(model(ids).last_hidden_state, want, atol=1e-5)


def test_the_same_head_with_other_labels_is_new(tmp_path):
    saved("BertForSequenceClassification", tmp_path)
    for labels, is_new in ((None, False), (NAMES, False), (["a", "b", "c"], True), (["a", "b"], True), (NAMES[::-1], True)):
        model = mt.Model.from_pretrained(tmp_path, head="sequence", labels=labels)
        assert model.load_report.new == (["head.classifier.weight", "head.classifier.bias"] if is_new else [])
        assert sorted(model.load_report.dropped) == (["classifier.bias", "classifier.weight"] if is_new else [])
        assert "pooler.weight" in model.load_report.loaded and model.labels == (labels or NAMES)
    assert mt.Model.from_pretrained(tmp_path, labels=["x", "y"]).labels == ["x", "y"]     # head="auto" takes them too


@pytest.mark.parametrize("head", ["none", "embedding"])
def test_a_pooler_is_left_out_where_the_file_has_none(head, tmp_path):
    saved("BertForMaskedLM", tmp_path)
    model = mt.Model.from_pretrained(tmp_path, head=head)
    assert model.pooler is None and not model.load_report.new


def test_a_pooler_nothing_reads_is_dropped(tmp_path):
    saved("BertForPreTraining", tmp_path)
    model = mt.Model.from_pretrained(tmp_path, head="span")
    assert model.pooler is None and {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} <= set(model.load_report.dropped)


def test_masked_and_next_share_what_they_share(tmp_path):
    saved("BertForPreTraining", tmp_path / "both")
    saved("BertForMaskedLM", tmp_path / "masked")
    fewer = mt.Model.from_pretrained(tmp_path / "both", head="masked")
    assert not fewer.load_report.new and set(fewer.load_report.dropped) == {f"{n}.{p}" for n in ("cls.seq_relationship", "bert.pooler.dense") for p in ("weight", "bias")}
    more = mt.Model.from_pretrained(tmp_path / "masked", head="masked+next")
    assert set(more.load_report.new) == {f"{n}.{p}" for n in ("head.next_sentence", "pooler") for p in ("weight", "bias")} and not more.load_report.dropped
    assert more.head.next_sentence.weight.std() > 0.005 and not more.head.next_sentence.bias.any()


@pytest.mark.parametrize("name, endings", [
    ("BertForSequenceClassification", ["classifier.bias"]), ("BertForSequenceClassification", ["classifier.bias", "classifier.weight"]),
    ("BertForMaskedLM", ["predictions.bias"]), ("BertForPreTraining", ["seq_relationship.weight"]), ("BertForSequenceClassification", ["pooler.dense.bias"]),
    ("BertForSequenceClassification", ["pooler.dense.bias", "pooler.dense.weight"]), ("GPT2ForSequenceClassification", ["score.weight"])])
def test_half_a_head_is_an_error(name, endings, tmp_path):
    saved(name, tmp_path)
    without(tmp_path, *endings)
    with pytest.raises(ValueError) as error:
        mt.Model.from_pretrained(tmp_path)
    for ending in endings:
        assert any(line.startswith("  missing: ") and line.endswith(f"{ending})") for line in str(error.value).splitlines()), error.value


def test_half_a_pooler_is_an_error_also_for_another_head(tmp_path):
    saved("BertModel", tmp_path)
    without(tmp_path, "pooler.dense.bias")
    with pytest.raises(ValueError, match=r"missing: pooler.bias \(in a file: pooler.dense.bias\)"):
        mt.Model.from_pretrained(tmp_path, head="sequence", labels=["a", "b"])


@pytest.mark.parametrize("head, labels, message", [
    ("classifier", None, "head='classifier'; it is one of 'auto', 'none'"),
    ("auto", ["a", "b"], r"labels=\['a', 'b'\] for head=\"masked\"; only sequence and token heads have classes"),
    ("sequence", [], 'head="sequence" without labels'),
])
def test_a_head_that_cannot_be(head, labels, message, tmp_path):
    saved("BertForMaskedLM", tmp_path)
    with pytest.raises(ValueError, match=message):
        mt.Model.from_pretrained(tmp_path, head=head, labels=labels)


@pytest.mark.parametrize("config, labels", [
    ({}, ["LABEL_0", "LABEL_1"]), ({"num_labels": 4}, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]), ({"id2label": None}, ["LABEL_0", "LABEL_1"]),
    ({"id2label": {"10": "k", **{str(i): f"c{i}" for i in range(10)}}}, [*[f"c{i}" for i in range(10)], "k"])], ids=["absent", "number", "null", "ten and more"])
def test_labels_of_a_config(config, labels, tmp_path):
    saved("BertForSequenceClassification", tmp_path, num_labels=len(labels), id2label=None, label2id=None)
    path = tmp_path / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("id2label", "label2id")}
    path.write_text(json.dumps(values | config))
    model = mt.Model.from_pretrained(tmp_path)
    assert model.labels == labels and not model.load_report.new


@pytest.mark.parametrize("value", [["a", "b"], {"first": "a"}])
def test_labels_nobody_understands(value, tmp_path):
    saved("BertForSequenceClassification", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": value}))
    with pytest.raises(ValueError, match=r"id2label=.* in config.json; needed is a table from numbers to names: correct the file, or pass labels="):
        mt.Model.from_pretrained(tmp_path)


def test_a_tuned_model_is_tuned_again_with_other_labels(tmp_path):
    """The road of transfer learning: body -> three classes -> saved -> two classes -> saved -> read by transformers."""
    saved("BertForMaskedLM", tmp_path / "body")
    mt.Model.from_pretrained(tmp_path / "body", head="sequence", labels=NAMES).save_pretrained(tmp_path / "three")
    two = mt.Model.from_pretrained(tmp_path / "three", head="sequence", labels=["no", "yes"])
    two.save_pretrained(tmp_path / "two")
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "two").eval()
    assert theirs.config.id2label == {0: "no", 1: "yes"} and theirs.num_labels == 2
    ids = torch.randint(101, (1, 7))
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, two(ids).logits, atol=1e-5)


def test_set_head_after_loading_saves_as_the_new_head(tmp_path):
    moved(mt.Model(gpt2(), "causal")).save_pretrained(tmp_path)
    model = mt.Model.from_pretrained(tmp_path).set_head("token", ["O", "B"]).resize_vocabulary(103)
    model.save_pretrained(tmp_path / "token")
    theirs, info = transformers.GPT2ForTokenClassification.from_pretrained(tmp_path / "token", output_loading_info=True)
    assert not any(info.values()) and theirs.config.vocab_size == 103
