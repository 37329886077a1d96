"""Lists of labels, and numbers: the loss and the files against the reference library, metrics against scikit-learn and scipy."""
import json
import random

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from sklearn import metrics

from minitransfer.config import ModelConfig
from minitransfer.nn.heads import ANY_CLASS, ONE_CLASS, REGRESSION
from minitransfer.nn.model import Model
from minitransfer.tasks import LabelsPrediction, MultiLabelTask, RegressionTask, SequenceTask, finetune, predict
from minitransfer.tasks.metrics import Numbers, YesNo, ranks, spearman
from minitransfer.text import Tokenizer, read_rows
from tests.reference import close, perturbed

QUICK = {"progress": False, "precision": "fp32", "log_every": 1}
WORDS = "the a this that film book song was is felt seemed very quite rather not too long short old new loud quiet and but with of in on at".split()
TOPICS = {"music": "violin", "food": "bread", "sport": "goal"}


def made(n: int, seed: int) -> list[dict]:
    """A text has the labels of the topics it names, and as its number how many times it says "good" of 5."""
    draw, rows = random.Random(seed), []
    for _ in range(n):
        labels, good = [name for name in TOPICS if draw.random() < 0.4], draw.randint(0, 5)
        words = draw.choices(WORDS, k=draw.randint(3, 13)) + [TOPICS[name] for name in labels] + ["good"] * good
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "other": draw.choice(WORDS), "topics": labels, "score": good / 5})
    return rows


TRAIN, HELD_OUT = made(160, 1), made(53, 2)


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train([row["text"] for row in TRAIN], vocab_size=150, max_len=37, min_count=1)


def body(tok: Tokenizer) -> Model:
    return Model(ModelConfig(vocab_size=tok.vocab_size, d_model=36, n_layers=2, n_heads=3, d_ff=59, max_len=37, n_token_types=2, pooler=True, dropout=0.0), head="none",
                 seed=1)


PROBLEMS = [(ANY_CLASS, 3, lambda: torch.randint(0, 2, (5, 3)).float()), (REGRESSION, 1, lambda: torch.randn(5)), (REGRESSION, 3, lambda: torch.randn(5, 3)),
            (ONE_CLASS, 3, lambda: torch.randint(0, 3, (5,)))]


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2ForSequenceClassification"])
@pytest.mark.parametrize("problem,n,draw", PROBLEMS, ids=[f"{p[:6]}-{n}" for p, n, _ in PROBLEMS])
def test_loss_and_gradients_of_the_reference(name, problem, n, draw, tmp_path):
    labels = {"id2label": {i: f"l{i}" for i in range(n)}, "label2id": {f"l{i}": i for i in range(n)}}
    reference = perturbed(name, problem_type=problem, **labels)
    reference.save_pretrained(tmp_path / "theirs")
    ours = Model.from_pretrained(tmp_path / "theirs")
    assert ours.head.problem == problem
    keep = torch.ones(5, 13, dtype=torch.bool)
    keep[1, 7:] = keep[3, 2:] = False
    ids, wanted = torch.randint(2, 100, (5, 13)) * keep, draw()
    theirs = reference(ids, attention_mask=keep.long(), labels=wanted)
    out = ours(ids, attention_mask=keep, labels=wanted)
    close(out.logits, theirs.logits)
    close(out.loss, theirs.loss)
    out.loss.backward()
    theirs.loss.backward()
    head = "classifier" if name.startswith("Bert") else "score"
    close(ours.head.classifier.weight.grad, getattr(reference, head).weight.grad)

    # and back: the reference takes the file for the same problem
    ours.save_pretrained(tmp_path / "ours")
    told = json.loads((tmp_path / "ours" / "config.json").read_text())
    again = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    assert told.get("problem_type") == (None if problem == ONE_CLASS else problem)
    close(again(ids, attention_mask=keep.long(), labels=wanted).loss, theirs.loss)
    assert Model.from_pretrained(tmp_path / "ours").head.problem == problem


def test_a_single_output_without_a_word_is_a_regression(tmp_path):
    """As the reference library takes it; a head put on by us with one class says so in its file."""
    reference = perturbed("BertForSequenceClassification", id2label={0: "x"}, label2id={"x": 0})
    reference.save_pretrained(tmp_path / "a")
    ours = Model.from_pretrained(tmp_path / "a")
    assert ours.head.problem == REGRESSION
    ours.set_head("sequence", ["x"])
    ours.save_pretrained(tmp_path / "b")
    assert Model.from_pretrained(tmp_path / "b").head.problem == ONE_CLASS
    ours.head.use(ANY_CLASS)
    ours.set_head("token", ["x", "y"])
    ours.save_pretrained(tmp_path / "c")
    assert "problem_type" not in json.loads((tmp_path / "c" / "config.json").read_text())


def test_yes_or_no_equals_scikit_learn():
    truth, answer = torch.rand(211, 5) < 0.3, torch.rand(211, 5) < 0.4
    counts = YesNo(5)
    for part in range(0, 211, 50):
        counts.add(truth[part : part + 50], answer[part : part + 50])
    found = counts.metrics()
    assert found["f1_micro"] == pytest.approx(metrics.f1_score(truth, answer, average="micro"), abs=1e-12)
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, answer, average="macro"), abs=1e-12)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer), abs=1e-12) and found["n"] == 211


def test_correlations_equal_scipy():
    truth = torch.randint(0, 6, (97,)).double() + 1000                      # many ties, far from zero
    answer = truth + 2 * torch.randn(97).double()
    answer[:20] = answer[0]
    numbers = Numbers()
    for part in range(0, 97, 30):
        numbers.add(truth[part : part + 30], answer[part : part + 30])
    found = numbers.metrics()
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, answer).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, answer).statistic, abs=1e-12)
    assert found["mse"] == pytest.approx(metrics.mean_squared_error(truth, answer)) and found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, answer))
    assert ranks(answer.numpy()).tolist() == stats.rankdata(answer).tolist()
    assert found["pearson_low"] < found["pearson"] < found["pearson_high"] and found["spearman_low"] < found["spearman"] < found["spearman_high"]
    assert spearman(np.full(7, 0.1), np.arange(7.0)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy,bar,more", [("full", 0.7, {"lr": 4e-3, "epochs": 8}), ("lora", 0.0, {"lr": 1e-2, "epochs": 1})])
def test_lists_of_labels(tok, tmp_path, strategy, bar, more):
    base = tmp_path / "base"
    body(tok).save_pretrained(base)
    result = finetune(Model.from_pretrained(base), tok, "multilabel", train=TRAIN, validation=HELD_OUT, label="topics", strategy=strategy, out=tmp_path / "run",
                      batch_size=16, **QUICK, **more)
    assert result.metrics["f1_micro"] == max(one["evaluation"]["f1_micro"] for one in result.history if "evaluation" in one) >= bar
    answers = predict(tmp_path / "run", texts=[row["text"] for row in HELD_OUT])
    exact = sum(set(one.labels) == set(row["topics"]) for one, row in zip(answers, HELD_OUT, strict=True))
    assert result.metrics["accuracy"] == exact / 53
    assert all(isinstance(one, LabelsPrediction) and one.labels == [name for name in sorted(TOPICS) if one.probabilities[name] > 0.5] for one in answers)
    with torch.no_grad():
        logits = result.model(**tok([HELD_OUT[3]["text"]])).logits[0]
    assert list(answers[3].probabilities.values()) == pytest.approx((1 / (1 + (-logits).exp())).tolist(), abs=1e-6)
    if strategy == "full":
        assert transformers.AutoConfig.from_pretrained(tmp_path / "run" / "model").problem_type == "multi_label_classification"
        assert "f1_micro" in str(result)


def test_metrics_are_of_the_answers_at_the_threshold(tok):
    task = MultiLabelTask(label="topics", threshold=0.45)
    result = finetune(body(tok), tok, task, train=TRAIN, validation=HELD_OUT, steps=2, **QUICK)
    answers = [set(one.labels) for one in predict(result.model, tok, [row["text"] for row in HELD_OUT], task=task)]
    both = sum(len(one & set(row["topics"])) for one, row in zip(answers, HELD_OUT, strict=True))
    assert result.metrics["f1_micro"] == pytest.approx(2 * both / sum(len(one) + len(row["topics"]) for one, row in zip(answers, HELD_OUT, strict=True)))
    assert answers != [set(one.labels) for one in predict(result.model, tok, [row["text"] for row in HELD_OUT], task=MultiLabelTask(label="topics"))]


def test_the_threshold_is_saved(tok, tmp_path):
    finetune(body(tok), tok, MultiLabelTask(label="topics", threshold=0.0), train=TRAIN, out=tmp_path, steps=1, **QUICK)
    assert predict(tmp_path, texts=["a"])[0].labels == sorted(TOPICS)


@pytest.mark.slow
def test_numbers(tok, tmp_path):
    result = finetune(body(tok), tok, "regression", train=TRAIN, validation=HELD_OUT, pair="other", label="score", out=tmp_path, lr=3e-3, epochs=6, batch_size=16,
                      **QUICK)
    assert result.metrics["pearson"] >= 0.7 and result.metrics["pearson_low"] < result.metrics["pearson"] and "pearson" in str(result)
    texts, others = [row["text"] for row in HELD_OUT], [row["other"] for row in HELD_OUT]
    values = [one.value for one in predict(tmp_path, texts=texts, pairs=others)]
    truth = np.array([row["score"] for row in HELD_OUT])
    assert np.corrcoef(values, truth)[0, 1] == pytest.approx(result.metrics["pearson"], abs=1e-5)
    assert np.square(values - truth).mean() == pytest.approx(result.metrics["loss"], rel=1e-4)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert reference.config.problem_type == "regression" and reference.config.id2label == {0: "score"}
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(texts, others, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert values == pytest.approx(reference.eval()(**batch).logits[:, 0].tolist(), abs=1e-5)
    again = finetune(result.model, tok, "sequence", train=[{"text": "a", "label": "score"}, {"text": "the", "label": "x"}], steps=1, **QUICK).model
    assert again.head.problem == ONE_CLASS and again.labels == ["score", "x"]


def test_a_head_for_another_problem_is_replaced(tok):
    model = body(tok).set_head("sequence", sorted(TOPICS))
    finetune(model, tok, "multilabel", train=TRAIN, label="topics", steps=1, **QUICK)
    head = model.head
    assert head.problem == ANY_CLASS
    finetune(model, tok, "multilabel", train=TRAIN, label="topics", steps=1, **QUICK)
    assert model.head is head


def test_stsb_is_read(data):
    rows = read_rows(data / "stsb/en/validation.csv")
    task = RegressionTask("sentence1", "sentence2", "score")
    assert task.labels(rows, []) == ["score"] and task.asks == ["sentence1", "sentence2"]
    assert max(float(row["score"]) for row in rows) == 5


ROW = {"text": "a", "topics": ["food"], "score": 1.0}
BAD = [
    (SequenceTask(label="topics"), [ROW], [], "training row 0: 'topics' is .*use task=\"multilabel\" for lists"),
    (MultiLabelTask(label="text"), [ROW], [], "training row 0: 'text' is 'a'; the labels of a row are a list.*use task=\"sequence\""),
    (MultiLabelTask(label="topics"), [{**ROW, "topics": ["a", "a"]}], [], r"a list, each once, \[\] for none: mend the row$"),
    (MultiLabelTask(label="topics"), [ROW, ROW], [], "all 2 training rows have the same labels"),
    (MultiLabelTask(label="topics"), [{**ROW, "topics": []}], [], "all 1 training rows have no label"),
    (MultiLabelTask(label="topics"), [ROW, {**ROW, "topics": []}], [{**ROW, "topics": ["sport"]}], "validation row 0, label row 0 has the unknown label 'sport'"),
    (RegressionTask(label="score"), [{**ROW, "score": "high"}], [], "training row 0: 'score' is 'high'; a finite number is needed in every row"),
    (RegressionTask(label="score"), [ROW], [{**ROW, "score": float("nan")}], "validation row 0: 'score' is nan"),
    (RegressionTask(label="score"), [ROW, ROW], [], "all 2 training rows have 'score' 1; there is nothing to tell apart"),
]


@pytest.mark.parametrize("task,train,validation,message", BAD)
def test_bad_rows(task, train, validation, message):
    with pytest.raises(ValueError, match=message):
        task.labels(train, validation)


def test_bad_labels_of_a_head(tok):
    model, ids = body(tok).set_head("sequence", ["a", "b", "c"]), torch.ones(5, 7, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels of shape \(5, 3\) and torch.float32 for a head with one class a text"):
        model(ids, labels=torch.ones(5, 3))
    with pytest.raises(ValueError, match="problem='multi'; it is one of 'single_label_classification'"):
        model.head.use("multi")
    model.head.use(ANY_CLASS)
    with pytest.raises(ValueError, match=r"labels of shape \(5, 2\) for outputs of shape \(5, 3\)"):
        model(ids, labels=torch.ones(5, 2))
    with pytest.raises(ValueError, match="a label 2 for a head that answers yes or no"):
        model(ids, labels=torch.full((5, 3), 2.0))
