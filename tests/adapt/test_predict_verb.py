"""The `predict` verb prints what each task answers, from the saved folder alone."""
import json

import pytest

from minitransfer.cli.main import main
from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.tasks import SpanTask, finetune, predict
from minitransfer.text import Tokenizer

TEXT, OTHER = "Ada lives in Oslo", "the rain in Bern"
QUICK = {"steps": 1, "progress": False, "precision": "fp32"}
ROWS = {
    "multilabel": ([{"text": TEXT, "label": ["a", "b"]}, {"text": OTHER, "label": []}], {}),
    "regression": ([{"text": TEXT, "b": OTHER, "label": 1.5}, {"text": OTHER, "b": TEXT, "label": 3}], {"pair": "b"}),
    "token": ([{"words": TEXT.split(), "tags": ["B-PER", "O", "O", "B-LOC"]}], {}),
    "span": ([{"question": OTHER, "context": TEXT, "answers": {"text": ["Oslo"], "answer_start": [13]}}], {}),
}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train([TEXT, OTHER], vocab_size=60, max_len=29, min_count=1)


def body(tok: Tokenizer) -> Model:
    return Model(ModelConfig(vocab_size=tok.vocab_size, d_model=36, n_layers=1, n_heads=3, d_ff=59, max_len=29, n_token_types=2), head="none", seed=1)


@pytest.mark.parametrize("task", list(ROWS))
def test_what_is_printed(tok, tmp_path, capsys, task):
    train, columns = ROWS[task]
    finetune(body(tok), tok, SpanTask(n_best=3) if task == "span" else task, train=train, out=tmp_path / "run", **QUICK, **columns)
    two = task in ("regression", "span")
    (want,) = predict(tmp_path / "run", texts=[OTHER], pairs=[TEXT] if two else None)
    words = [str(tmp_path / "run"), "\t".join((OTHER, TEXT)) if two else OTHER]
    capsys.readouterr()
    assert main(["predict", *words]) == 0
    plain = capsys.readouterr().out
    assert main(["predict", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    if task == "token":
        assert [line.split("\t")[0] for line in plain.split("\n")[:4]] == OTHER.split()
        assert [(one["text"], one["start"], one["end"]) for one in told["entities"]] == [(e.text, e.start, e.end) for e in want.entities]
    elif task == "span":
        assert plain.split("\t")[0] == want.text and (told["question"], told["context"]) == (OTHER, TEXT)
        assert [one["text"] for one in told["others"]] == [one.text for one in want.others] and len(told["others"]) == 3
    elif task == "regression":
        assert plain == f"{want.value:.4f}\t{OTHER}\t{TEXT}\n" and told["value"] == pytest.approx(want.value, abs=1e-6)
    else:
        assert plain.split("\t")[0] == ",".join(want.labels) and told["probabilities"] == pytest.approx(want.probabilities, abs=1e-6)
