"""Tasks by name: the columns they read, what is refused before anything is trained, and what the folder alone gives back."""
import json
import os
import subprocess
import sys
import warnings

import datasets
import jaxtyping
import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.tasks import MultiLabelTask, SimilarityTask, SpanTask, TokenTask, finetune, predict
from minitransfer.tasks.named import named_task
from minitransfer.text.readers import is_test_split
from minitransfer.transfer import lora

from .small import HELD_OUT, QUICK, TRAIN, bert, gpt

ONE = {**QUICK, "steps": 1}


def tagged(rows):
    return [{"words": (words := row["text"].split()), "tags": ["B-X" if word in ("good", "dull") else "O" for word in words]} for row in rows]


def asked(rows):
    return [{"question": "how was it", "context": (text := row["text"]), "answers": {"text": [text.split()[-1]], "answer_start": [text.rindex(" ") + 1]}} for row in rows]


PAIRS = [{"text": row["text"], "pair": TRAIN[i - 1]["text"], "label": (i % 5) / 5} for i, row in enumerate(TRAIN)]
NUMBERS = [{**row, "label": len(row["text"]) / 50} for row in TRAIN]
LISTS = [{**row, "label": [["x"], ["x", "y"], []][i % 3]} for i, row in enumerate(TRAIN)]
ROWS = {"sequence": TRAIN, "multilabel": LISTS, "regression": NUMBERS, "similarity": PAIRS, "token": tagged(TRAIN), "span": asked(TRAIN)}
RENAMED = {"sequence": {"text": "t", "label": "l"}, "similarity": {"text": "t", "pair": "p", "label": "l"}, "token": {"words": "t", "tags": "l"},
           "span": {"question": "t", "context": "p", "answers": "l"}}


@pytest.mark.parametrize("name", RENAMED)
def test_columns_of_every_task_can_be_named(word_tok, name):
    """The same rows under other names give the same weights."""
    rows, other = ROWS[name], [{RENAMED[name][column]: value for column, value in row.items()} for row in ROWS[name]]
    head = "embedding" if name == "similarity" else "masked"
    plain = finetune(bert(word_tok, head), word_tok, name, train=rows, **ONE).model.state_dict()
    named = finetune(bert(word_tok, head), word_tok, name, train=other, text="t", pair="p" if "p" in RENAMED[name].values() else None, label="l", **ONE)
    assert all(torch.equal(tensor, plain[key]) for key, tensor in named.model.state_dict().items())


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_the_folder_alone_answers_as_the_model_does(word_tok, tmp_path, name, strategy):
    """Also of an adapter, after the folder was moved; of an adapter without its base the error says how to mend it."""
    base = tmp_path / "base"
    bert(word_tok, "embedding" if name == "similarity" else "masked").save_pretrained(base)
    model = mt.Model.from_pretrained(base)
    if name == "similarity":
        model.set_head("embedding", pooling="max", normalise=False)
    finetune(model, word_tok, name, train=ROWS[name], strategy=strategy, out=tmp_path / "run", **ONE)
    texts, pairs = ["the film felt good"], ["a song was dull"] if name in ("span", "similarity") else None
    expected = predict(model, word_tok, texts, pairs)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert predict(tmp_path / "moved", texts=texts, pairs=pairs) == expected
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    if strategy == "lora":
        with pytest.raises(ValueError, match=r"is an adapter for .*base, and needs it; .* put the base back, or write where it is now into .*adapter_config\.json"):
            predict(tmp_path / "moved", texts=texts, pairs=pairs)
        config = tmp_path / "moved/model/adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "elsewhere")}))
    assert predict(tmp_path / "moved", texts=texts, pairs=pairs) == expected


@pytest.mark.slow
def test_another_process_answers_with_names_and_probabilities(word_tok, tmp_path):
    result = finetune(gpt(word_tok, "causal"), word_tok, train=TRAIN, out=tmp_path / "run", **ONE)
    expected, = predict(result.model, word_tok, ["the film felt good"])
    words = [sys.executable, "-m", "minitransfer", "predict", str(tmp_path / "run"), "the film felt good", "--json"]
    told = json.loads(subprocess.run(words, capture_output=True, text=True, env=os.environ, check=True).stdout)
    assert told["label"] == expected.label and told["probabilities"].keys() == {"neg", "pos"}
    assert told["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_a_model_trained_on_pairs_alone_answers(word_tok):
    model = finetune(bert(word_tok, "embedding"), word_tok, SimilarityTask(label=None), train=PAIRS, **ONE).model
    a, b = predict(model, word_tok, ["the film", "the film"], ["the film", "a loud song"])
    assert a.value == pytest.approx(1.0, abs=1e-6) and b.value < 0.9999


def rows_with(name, **columns):
    return [{**ROWS[name][0], **columns}, *ROWS[name][1:]]


def answer(start, text="good"):
    return {"text": [text], "answer_start": [start]}


@pytest.mark.parametrize("task,rows,message", [
    ("sequnce", TRAIN, r"task='sequnce' \(did you mean 'sequence'\?\); there are"),
    (TokenTask, TRAIN, "it is a name .* or a task object such as TokenTask()"),
    ("sequence", rows_with("sequence", label=float("nan")), "training row 0 has no label"),
    ("sequence", rows_with("sequence", text="a \ud800"), "has '.ud800' at character 2, half of a character"),
    ("multilabel", rows_with("multilabel", label=["x", None]), "the labels of a row are a list, each once"),
    ("multilabel", rows_with("multilabel", label=[1, 1.0]), "each once"),
    ("regression", rows_with("regression", label=1e39), "a finite number is needed in every row"), ("regression", rows_with("regression", label=None), "'label' is None"),
    ("token", rows_with("token", words=[None], tags=["O"]), "training row 0: its word 0 is None .NoneType.; words are texts"),
    ("token", rows_with("token", words=["a"], tags=[float("nan")]), "its word 0, 'a', has the tag nan; every word needs one"),
    ("span", rows_with("span", question=None), r"training 'question'\[0\] is None"), ("span", rows_with("span", context=5), r"training 'context'\[0\] is 5"),
    ("span", rows_with("span", answers=answer(None)), "not in the context where it says"),
    ("similarity", [{**row, "label": 1.0} for row in PAIRS], r"all 60 training rows have 'label' 1; .* use SimilarityTask\(label=None\)"),
    (SimilarityTask(label=None), PAIRS[:1], "batch_size=32 of 1 rows without scores; a pair is learned against the other pairs")])
def test_bad_rows_are_sentences(word_tok, task, rows, message):
    with pytest.raises(ValueError, match=message):
        finetune(bert(word_tok, "masked"), word_tok, task, train=rows, **ONE)


@pytest.mark.parametrize("given,message", [
    ({"max_length": 0}, "max_length=0; texts are cut after so many tokens: use 1 to 29"),
    ({"validation": HELD_OUT[:2] * 10}, "the 20 validation rows are 2 different ones"),
    ({"task": TokenTask(), "text": "tokens"}, r"text beside a task object; .* TokenTask\(words=..., tags=...\)"),
    ({"task": "token", "pair": "second"}, "pair for task 'token'; it has broken, label, pieces, text: leave out")])
def test_bad_arguments_are_sentences(word_tok, given, message):
    with pytest.raises(ValueError, match=message):
        finetune(bert(word_tok, "masked"), word_tok, train=TRAIN, **{**ONE, **given})


@pytest.mark.parametrize("given,message", [
    ({"task": None}, "task=None; it is a name .* or a task object"), ({"batch_size": "8"}, "batch_size='8', max_tokens=None; exactly one"),
    ({"strategy": lora}, r"it is a name or a Strategy object: call it, lora\(\)"), ({"strategy": None}, "strategy=None; it is a name or a Strategy object: there are full")])
def test_values_of_a_wrong_type_are_sentences(monkeypatch, word_tok, given, message):
    """As a user sees them: without the checks of types that go along with the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        finetune(bert(word_tok, "masked"), word_tok, train=TRAIN, **{**ONE, **given})


def test_a_missing_column_names_the_split_and_the_nearest(word_tok):
    with pytest.raises(KeyError, match="validation row 1 has no column 'text'; it has 'Text', 'label': did you mean 'Text'"):
        finetune(bert(word_tok, "masked"), word_tok, train=TRAIN, validation=[HELD_OUT[0], {"Text": "a", "label": "pos"}], **ONE)


@pytest.mark.parametrize("make,message", [
    (lambda: MultiLabelTask(threshold=2.0), "threshold=2.0; a probability is between 0 and 1"), (lambda: SpanTask(stride=-1), "stride=-1"),
    (lambda: SpanTask(threshold=float("nan")), "threshold=nan"), (lambda: SimilarityTask(highest=0), "highest=0; scores are divided by it"),
    (lambda: named_task("token", {}, stride=3), "stride for task 'token'; it has broken, label, pieces, text")])
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("split", [[{**row, "label": ["x"]} for row in HELD_OUT], [{**row, "tags": ["O"] * len(row["words"])} for row in tagged(HELD_OUT)]],
                         ids=["multilabel", "token"])
def test_a_held_out_part_with_one_answer_is_refused(word_tok, split):
    name = "token" if "tags" in split[0] else "multilabel"
    with pytest.raises(ValueError, match=r"all \d+ validation (rows|words) have the label '(x|O)'; nothing can be measured"):
        finetune(bert(word_tok, "masked"), word_tok, name, train=ROWS[name], validation=split, **ONE)


def test_whole_numbers_are_one_class_however_they_came(word_tok):
    rows = [{**row, "label": (i % 2, float(i % 2), np.float32(i % 2))[i % 3]} for i, row in enumerate(TRAIN)]
    plain = finetune(bert(word_tok, "masked"), word_tok, train=[{**row, "label": str(i % 2)} for i, row in enumerate(TRAIN)], **ONE)
    mixed = finetune(bert(word_tok, "masked"), word_tok, train=rows, **ONE)
    assert mixed.model.labels == ["0", "1"] and torch.equal(mixed.model.head.classifier.weight, plain.model.head.classifier.weight)


@pytest.mark.parametrize("name,labels,message", [
    ("sequence", ["pos", "Pos ", "neg"], "the labels 'Pos ', 'pos' differ in case, spaces or a final .0 only"),
    ("sequence", ["0", "0.0", "1"], "the labels '0', '0.0' differ"), ("sequence", [i / 7 for i in range(60)], r"60 labels in 60 rows; .* task=\"regression\""),
    ("token", ["B-X", "E-X", "O"], "the tags 'E-X' stand beside B-, I- and O")])
def test_odd_labels_are_told(word_tok, name, labels, message):
    n = len(labels)
    rows = [{**row, "label": labels[i % n]} for i, row in enumerate(TRAIN)] if name == "sequence" else [
        {"words": row["words"], "tags": [labels[k % n] for k in range(len(row["words"]))]} for row in tagged(TRAIN)]
    with pytest.warns(UserWarning, match=message):
        finetune(bert(word_tok, "masked"), word_tok, name, train=rows, **ONE)


def test_a_start_may_be_a_number_of_any_kind():
    row = asked(TRAIN)[0]
    text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
    assert all(SpanTask().stands({**row, "answers": answer(kind(start), text)}) for kind in (int, float, np.int64, np.float64))
    assert not SpanTask().stands({**row, "answers": answer(str(start), text)})


def test_an_answer_on_padding_is_named(word_tok):
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[1, 4:] = False
    with pytest.raises(ValueError, match="row 1 has the label 5, where it has padding"):
        bert(word_tok, "span")(torch.ones(2, 7, dtype=torch.long), attention_mask=keep, labels=torch.tensor([[1, 6], [2, 5]]))


# ---- the best weights are not chosen on a test split -----------------------------------------------------------------------------------------------

def test_what_is_called_a_test_split(tmp_path):
    named = datasets.Dataset.from_dict({"text": ["a"]}, split="test")
    (tmp_path / "a.csv").write_text("text\na\n")
    stream = datasets.load_dataset("csv", data_files={"test": str(tmp_path / "a.csv")}, split="test", streaming=True, cache_dir=str(tmp_path))
    assert all(map(is_test_split, ["reviews.test.tsv", "test.csv", "x/test/rows.jsonl.gz", "sst2_test.jsonl", named, stream]))
    assert not any(map(is_test_split, ["latest.tsv", "contest.csv", "tests/rows.tsv", "validation.tsv", HELD_OUT, None, datasets.Dataset.from_dict({"text": ["a"]})]))


def test_no_weights_are_chosen_on_a_test_split(word_tok, tmp_path):
    rows = datasets.Dataset.from_list(HELD_OUT, split="test")
    best = {**ONE, "best": "accuracy higher"}
    with pytest.raises(ValueError, match="validation=test is a test split by its name, and best='accuracy higher' keeps the weights that do best on it"):
        finetune(bert(word_tok, "masked"), word_tok, train=TRAIN, validation=rows, **best)
    assert finetune(bert(word_tok, "masked"), word_tok, train=TRAIN, validation=rows, **ONE).metrics["n"] == 20
    (tmp_path / "a.test.txt").write_text("a film\n\nanother film")
    with pytest.raises(ValueError, match=r"a\.test\.txt is a test split"):
        mt.pretrain(bert(word_tok, "masked"), word_tok, ["the film"] * 9, validation=tmp_path / "a.test.txt", steps=1)


# ---- ULMFiT's second stage ----------------------------------------------------------------------------------------------------------------------

def test_ulmfit_tunes_the_language_first_and_goes_on_bit_for_bit(word_tok, tmp_path):
    class Stopped(Exception):
        pass

    def run(out, strategy="ulmfit:1", **more):
        return finetune(bert(word_tok, "masked"), word_tok, train=TRAIN, strategy=strategy, out=out, epochs=2, batch_size=30, save_every=1, **QUICK, **more)

    def stopping(record):
        if record["step"] == 2:
            raise Stopped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = run(tmp_path / "whole").model.state_dict()
    language = mt.Model.from_pretrained(tmp_path / "whole/language/model")
    assert language.head_name == "masked" and json.loads((tmp_path / "whole/language/manifest.json").read_text())["after"]["loss"] > 0
    with pytest.raises(Stopped):
        run(tmp_path / "broken", on_step=stopping)
    rest = run(tmp_path / "broken", resume=True).model.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in rest.items())
    assert torch.equal(whole["embed.tokens.weight"], language.embed.tokens.weight)            # two epochs thaw the head and the top block: the rest is as the language left it
    assert not torch.equal(whole["embed.tokens.weight"], run(None, "ulmfit").model.embed.tokens.weight)
    with pytest.raises(ValueError, match='head="sequence"; this objective trains a masked head'):
        finetune(bert(word_tok), word_tok, train=TRAIN, strategy="ulmfit:1", **ONE)
    with pytest.raises(ValueError, match="lm_epochs=-1"):
        mt.transfer.ulmfit(-1)
