"""The command line: what it prints where, its exit codes, and that it calls the public functions with what was said."""
from __future__ import annotations

import gzip
import importlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minitransfer import samples
from minitransfer.bench.rows import BERT_BASE, GPT2
from minitransfer.cli import learn, settings
from minitransfer.cli import main as run_main
from minitransfer.cli.keys import Key, gather, keys_of, typed
from minitransfer.cli.main import VERBS
from minitransfer.families import bert, gpt2
from minitransfer.generate import embed, fill, generate
from minitransfer.nn.model import Model
from minitransfer.tasks import SequenceTask, predict
from minitransfer.text import Tokenizer, TruncationWarning, corpus, pydoc_corpus
from minitransfer.training import TrainSettings
from minitransfer.training.run import Run
from minitransfer.transfer.strategies import strategy
from minitransfer.weights.files import write_json
from tests.weights.test_llama2c import write_model

pretraining, tuning = importlib.import_module("minitransfer.training.pretrain"), importlib.import_module("minitransfer.tasks.finetune")

TINY = "d_model=16 n_layers=1 n_heads=2 length=32 vocab_size=300 batch_size=8 progress=no".split()


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".cache" not in path.parts}


def done(capsys, *words: str) -> str:
    """What a command that has to work printed."""
    code = run_main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys, *words: str, code: int = 1) -> str:
    """The one line of an error."""
    assert run_main(words) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minitransfer: ") and err.count("\n") == 1, err
    return err


# ---- settings by name --------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Example:
    steps: int | None = None            # optimizer steps
    lr: float = 5e-4                    # at the peak: "high"
    progress: bool = True
    best: str | None = None             # "loss lower"


KEYS = keys_of(Example) | {"labels": Key("list[str]"), "path": Key("str")}


def test_keys_come_from_the_dataclass_with_their_comments():
    assert keys_of(Example) == {"steps": Key("int | None", None, "optimizer steps"), "lr": Key("float", 5e-4, 'at the peak: "high"'),
                                "progress": Key("bool", True, ""), "best": Key("str | None", None, '"loss lower"')}
    assert set(settings.TRAIN) == set(TrainSettings(steps=1).to_dict()) and settings.TRAIN["steps"].about == "optimizer steps"


def test_the_defaults_in_the_help_texts_are_those_of_the_functions():
    """Whatever a verb does not say, its function decides: the two must not drift apart."""
    shown = {verb: {name: key.default for name, key in keys.items()} for verb, keys in settings.TRAINING.items()}
    assert shown["pretrain"] == TrainSettings.from_dict(pretraining.defaults({})).to_dict()
    assert shown["adapt"] == TrainSettings.from_dict(pretraining.defaults({}, lr=1e-4)).to_dict()
    assert shown["finetune"] == TrainSettings.for_tuning(strategy("full").settings, {}, SequenceTask.best).to_dict()
    for function, keys in ((pretraining.pretrain, settings.PRETRAIN), (pretraining.adapt, settings.ADAPT), (tuning.finetune, settings.FINETUNE)):
        parameters = inspect.signature(function).parameters
        for name in set(keys) & set(parameters) - {"model", "corpus", "train"}:
            assert keys[name].default == parameters[name].default, (function.__name__, name)
        unknown = set(keys) - set(parameters) - {"field", "documents", "device", "tokenizer", "columns", "seeds", "against", "generator"}
        assert not unknown, f"{function.__name__} takes no {unknown}"


@pytest.mark.parametrize("name, word, value", [
    ("steps", "20", 20), ("steps", "2e5", 200_000), ("steps", "none", None), ("lr", "5e-5", 5e-5), ("lr", "1", 1.0), ("progress", "no", False),
    ("progress", "True", True), ("best", "loss lower", "loss lower"), ("best", "null", None), ("labels", "no, yes", ["no", "yes"]),
    ("path", "none", "none"), ("path", "a=b.txt", "a=b.txt")])
def test_words_are_read_by_type(name, word, value):
    found = gather([f"{name}={word}"], (), {}, None, KEYS)[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("name, word, message", [
    ("steps", "many", r"steps=many; needed is a whole number or none"), ("steps", "2.5", r"steps=2\.5; needed is a whole number"),
    ("steps", "1e400", r"steps=1e400; needed is a whole number"),
    ("lr", "none", r"lr=none; needed is a number:"), ("progress", "maybe", r"progress=maybe; needed is true or false")])
def test_a_word_of_another_type_says_what_fits(name, word, message):
    with pytest.raises(ValueError, match=message):
        typed(name, word, KEYS[name].kind)


def test_the_command_line_counts_more_than_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 5e-5\nsteps: 7\nlabels: [no, yes]\nbest: none\n")
    assert gather(["steps=9"], (), {"path": "x", "best": None}, str(tmp_path / "c.yaml"), KEYS) == {
        "lr": 5e-5, "steps": 9, "labels": ["no", "yes"], "best": None, "path": "x"}
    assert gather(["here", "lr=1"], ("path",), {}, None, KEYS) == {"path": "here", "lr": 1.0}


@pytest.mark.parametrize("text, error, message", [
    ("stesp: 3", KeyError, r"the file .*c\.yaml sets 'stesp', and no setting has this name \(did you mean steps\?\)"),
    ("qqqq: 3", KeyError, r"sets 'qqqq', and no setting has this name; there are best, labels, lr"),
    ("training:\n  lr: 3", ValueError, r"is not one flat table"), ("- lr", ValueError, r"is not one flat table"),
    ("lr: [1", ValueError, r"is not YAML"), ("lr: [1, 2]", ValueError, r"lr=1,2; needed is a number")])
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, error, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(error, match=message):
        gather([], (), {}, str(tmp_path / "c.yaml"), KEYS)


def test_words_that_have_no_place():
    with pytest.raises(ValueError, match=r"'more' has no meaning here; settings are written key=value, after PATH"):
        gather(["here", "more"], ("path",), {}, None, KEYS)
    with pytest.raises(ValueError, match=r"path is given twice \(here and there\)"):
        gather(["here"], ("path",), {"path": "there"}, None, KEYS)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.yaml; --config needs"):
        gather([], (), {}, "nowhere.yaml", KEYS)


# ---- help, errors, exit codes ------------------------------------------------------------------------------------------------------------------

def test_overview_and_version(capsys):
    out = done(capsys, "--help")
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in VERBS)
    assert set(VERBS) == {"demo", "pretrain", "adapt", "finetune", "predict", "generate", "fill", "embed", "convert", "inspect", "plan", "verify",
                          "doctor", "why", "recommend", "probe", "claims", "check", "bench"}
    assert re.fullmatch(r"minitransfer \d+\.\d+\.\d+\S*\n", done(capsys, "--version"))
    assert run_main([]) == 2


@pytest.mark.parametrize("name", VERBS)
def test_help_of_every_verb(capsys, name):
    out, verb = done(capsys, name, "--help"), VERBS[name]
    assert out.startswith(f"usage: minitransfer {name}") and verb.summary in out and all(f"  {line}\n" in out for line in verb.examples)
    for keys in verb.keys.values():
        for key in keys:
            assert re.search(rf"^  {key} ", out, re.MULTILINE), key
    for line in verb.examples:                      # every example is a command this verb understands
        words = shlex.split(next(part for part in line.split(" | ") if part.startswith("minitransfer")))
        assert words[1] == name
        verb.parser().parse_intermixed_args(words[2:])


@pytest.mark.parametrize("words, code, message", [
    ("finetun", 2, r"no verb 'finetun' \(did you mean 'finetune'\?\); there are demo, pretrain"),
    ("predict", 2, r"required: model"),
    ("predict m --nonsense", 2, r"unrecognized arguments: --nonsense \(minitransfer predict --help says more\)"),
    ("generate m a --samples 0", 2, r"0 is not 1 or more"),
    ("pretrain", 2, r"no corpus given, and it is needed: a \.txt or \.jsonl file"),
    ("pretrain pydoc", 2, r"no out given"),
    ("adapt mini-bert --out x", 2, r"no corpus given"),
    ("embed mini-bert a --out x.txt", 2, r"a name that ends in \.npy"),
    ("fill mini-bert [MASK] --file x", 2, r"texts as words and from --file"),
    ("pretrain pydoc --out x lr=fast", 1, r"lr=fast; needed is a number"),
    ("pretrain pydoc --out x objective=spam", 1, r"objective='spam'; it is one of 'masked', 'causal', 'replaced', 'span', 'denoise'"),
    ("pretrain pydoc --out x generator=0.5", 1, r"generator=0\.5 with objective=masked; only objective=replaced has one"),
    ("pretrain pydoc --out x objective=replaced generator=2", 1, r"a generator of 2\.0 times the model's width"),
    ("finetune mini-bert t.tsv --out x stratgy=lora", 1, r"'stratgy', and no setting has this name \(did you mean strategy\?\)"),
    ("finetune mini-bert t.tsv --out x learning_rate=3", 1, r"'learning_rate', and no setting has this name \(did you mean lr\?\)"),
    ("finetune mini-bert samples/reviews.train.tsv --out x strategy=lora:x", 1, r"strategy 'lora:x' does not fit lora\(r=8, alpha=16, .*\); after the colon"),
    ("finetune mini-bert t.tsv --out x", 1, r"no file t\.tsv; a path of an existing file is needed"),
    ("finetune mini-bert samples/nothing.tsv --out x", 1, r"no sample file named 'nothing\.tsv'"),
    ("finetune mini-bert t.tsv --out x validation=a.test.tsv", 1, r"validation=a\.test\.tsv is a test split by its name, and best='accuracy higher'"),
    ("finetune mini-bert t.tsv --out x task=tokne", 1, r"task='tokne' \(did you mean 'token'\?\)"),
    ("finetune mini-bert t.tsv --out x task=token no_answer=yes", 1, r"no_answer for task 'token'; it has broken, label, pieces, text"),
    ("finetune mini-bert t.tsv --out x seeds=2 against=nowhere", 1, r"nowhere holds no seeds\.json"),
    ("finetune --config c.yaml", 1, r"no file c\.yaml; --config needs a YAML file"),
    ("predict mini-bert hello", 1, r"head='masked' gives no labels"),
    ("predict nowhere hello", 1, r"no folder|no bundled checkpoint"),
    ("fill mini-bert hello", 1, r"'hello' has no mask; .* write \[MASK\]"),
    ("fill mini-bert --file nothing.txt", 1, r"nothing\.txt"),
    ("embed mini-bert a --device tpu9", 1, r"device 'tpu9' cannot be used"),
    ("generate mini-bert hello", 1, r"use minitransfer fill mini-bert"),
    ("convert nowhere", 1, r"nowhere does not exist"),
    ("inspect .", 1, r"holds no config\.json"),
    ("verify .", 1, r"no config\.json in"),
    ("verify mini-bert --dtypes int8", 2, r"invalid choice: 'int8'"),
    ("verify mini-bert --lengths 4000", 1, r"this model reads up to"),
    ("generate mini-gpt ''", 1, r"text 0 of 1 .* has no tokens; there must be one to go on from"),
    ("generate mini-gpt a --temperature nan", 1, r"temperature=nan; it must be 0, or from 1e-6 on"),
    ("generate mini-gpt a --repetition-penalty nan", 1, r"repetition_penalty=nan; it must be above 0"),
    ("embed mini-bert a --out nowhere/x.npy", 1, r"nowhere/x\.npy: No such file or directory; this file or folder has to be there and open to you"),
    ("fill mini-bert --file .", 1, r"\. is a folder; a file is needed: name one inside it"),
    ("pretrain pydoc --out x d_ff=0 d_model=16", 1, r"d_ff=0; it is an int, 1 or more"),
    ("pretrain pydoc --out x max_len=0", 1, r"max_len=0; it is an int, 1 or more"),
    ("pretrain pydoc --out x graphs=true device=cpu", 1, r"graphs=True on cpu; .*: leave graphs out"),
    ("bench tpu", 2, r"invalid choice: 'tpu'"),
    ("bench cpu --rows masked-smal", 1, r"no row 'masked-smal' \(did you mean 'masked-small"),
])
def test_mistakes(capsys, place, words, code, message):
    assert re.search(message, refused(capsys, *shlex.split(words), code=code))
    assert not files(place)


def test_a_process_prints_no_traceback(place):
    found = subprocess.run([sys.executable, "-m", "minitransfer", "inspect", "nowhere/at/all"], capture_output=True, text=True, env=os.environ)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (1, "", 1)
    assert found.stderr.startswith("minitransfer: no folder nowhere/at/all;")


@pytest.mark.slow
def test_a_reader_that_leaves_early(place, tiny):
    """`minitransfer embed ... | head -1` ends quietly."""
    (place / "texts.txt").write_text("a text\n" * 4000)
    command = [sys.executable, "-m", "minitransfer", "embed", str(tiny / "mini-bert"), "--file", "texts.txt"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert len(process.stdout.readline().split("\t")) == 24
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_interruption_and_bugs(capsys, place, monkeypatch):
    def raising(error):
        return lambda *args, **named: (_ for _ in ()).throw(error)

    monkeypatch.setattr(learn, "start", raising(KeyboardInterrupt()))
    assert run_main(["pretrain", "samples/general.txt", "--out", "x", *TINY]) == 130
    assert capsys.readouterr().err.endswith("minitransfer: interrupted\n")
    monkeypatch.setattr(learn, "start", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):          # a mistake of ours keeps its traceback
        run_main(["pretrain", "samples/general.txt", "--out", "x", *TINY])
    with pytest.raises(ValueError, match="lr=fast"):
        run_main(["pretrain", "pydoc", "--out", "x", "lr=fast", "--traceback"])


def test_an_interrupted_run_says_how_to_go_on(capsys, place, monkeypatch, ctrl_c):
    """Ctrl-C during a step: the run is saved, the exit code is 130, and --resume ends it as if nothing had happened."""
    words = ["pretrain", "samples/general.txt", "documents=line", *TINY, "steps=4"]
    done(capsys, *words, "--out", "straight")
    count = Run.count

    def with_ctrl_c(self, *args):
        if self.progress.step == 1:
            ctrl_c()
        return count(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "count", with_ctrl_c)
        assert run_main([*words, "--out", "broken"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["stopped"] == "interrupted" and "model" not in json.loads(out) and "saved in broken, the same command with --resume goes on" in err
    assert json.loads(done(capsys, *words, "--out", "broken", "--resume"))["steps"] == 4
    assert (place / "broken/model/model.safetensors").read_bytes() == (place / "straight/model/model.safetensors").read_bytes()


WRONG = [("lr=inf", "lr=inf; it has to be above zero"), ("schedule=lin", "schedule='lin'"), ("device=tpu9", "device 'tpu9'"), ("out=old", "old already holds a run")]
PRETRAIN_ONE, ADAPT_ONE = "pretrain samples/general.txt d_model=16", "adapt mini-bert samples/general.txt"


@pytest.mark.parametrize("verb, word, message", [(PRETRAIN_ONE, "n_heads=3", "not a multiple of n_heads=3"), *((PRETRAIN_ONE, *one) for one in WRONG),
                                                 *((ADAPT_ONE, *one) for one in WRONG)])
def test_what_is_wrong_with_the_settings_is_said_before_any_text_is_read(capsys, place, monkeypatch, verb, word, message):
    monkeypatch.setattr(Tokenizer, "train", None)
    monkeypatch.setattr(learn, "tokenize_corpus", None)
    (place / "old/last").mkdir(parents=True)
    words = [*verb.split(), word, *([] if word.startswith("out=") else ["out=new"])]
    assert message in refused(capsys, *words) and not (place / "new").exists()


def test_the_standard_output_is_for_results(capsys, place):
    """With the progress bar on, too: `minitransfer ... | jq` gets JSON and nothing else."""
    words = [word for word in TINY if word != "progress=no"]
    assert run_main(["pretrain", "samples/general.txt", "documents=line", "--out", "x", *words, "steps=2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 2
    assert "keeping the weights with the best held-out loss" in err and "kept the weights of step 2" in err


# ---- training ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("default::minitransfer.text.TruncationWarning")
def test_pretrain_adapt_finetune_predict(capsys, place):
    """The whole way on tiny data, each verb by the folder of the run before."""
    line = json.loads(done(capsys, "pretrain", "samples/general.txt", "--out", "p", "documents=line", *TINY, "steps=2"))
    assert (line["out"], line["model"], line["steps"], line["stopped"]) == ("p", "p/model", 2, "steps") and line["metrics"]["loss"] > 0
    (place / "a.yaml").write_text("model: p\ncorpus: samples/general.txt\ndocuments: line\nsteps: 5\nlength: 24\nprogress: no\n")
    line = json.loads(done(capsys, "adapt", "--config", "a.yaml", "steps=1", "--out", "a"))
    assert line["steps"] == 1 and line["before"]["loss"] > 0 and line["after"]["loss"] > 0
    assert json.loads((place / "a/manifest.json").read_text())["settings"]["lr"] == 1e-4
    assert run_main(["finetune", "a", "samples/reviews.validation.tsv", "--out", "f", "max_length=32", "steps=3", "lr=5e-3", "progress=no"]) == 0
    assert re.search(r"^minitransfer: warning: \d+ of 120 texts are longer than 32 tokens .*$", capsys.readouterr().err, re.MULTILINE)
    lines = samples.path("reviews.test.tsv").read_text().splitlines()[:21]
    texts = [line.split("\t")[0] for line in lines[1:]]
    (place / "some.tsv").write_text("\n".join(lines))
    words = ["predict", "f", "--file", "some.tsv", "--batch-size", "7"]
    as_table, as_json = [line.split("\t") for line in done(capsys, *words).splitlines()], [json.loads(line) for line in done(capsys, *words, "--json").splitlines()]
    with pytest.warns(TruncationWarning, match="of 20 texts are longer than 32 tokens"):
        expected = predict(str(place / "f"), texts=texts)
    assert len({one.probability for one in expected}) > 10
    for table, named, one, text in zip(as_table, as_json, expected, texts, strict=True):
        assert table == [one.label, f"{named['probability']:.4f}", text]
        assert named == {"text": text, "label": one.label, "probability": pytest.approx(one.probability, abs=2e-7),
                         "probabilities": pytest.approx(one.probabilities, abs=2e-7)}


def test_a_token_task(capsys, place):
    said = done(capsys, "finetune", "mini-bert", "samples/tagged.conll", "--out", "names", "task=token", "steps=2", "strategy=lora", "progress=no")
    assert re.match(r"no validation rows; [\d,]+ of [\d,]+ parameters trained, 2 steps, .*\nsaved in names/model\n$", said)
    assert "names already holds a run; a new one would write over it: pass --resume" in refused(
        capsys, "finetune", "mini-bert", "samples/tagged.conll", "--out", "names", "task=token", "steps=2", "progress=no")
    lines = done(capsys, "predict", "names", "Anna Berg lives in Oslo", "Yes").split("\n")
    assert [line.split("\t")[0] for line in lines] == ["Anna", "Berg", "lives", "in", "Oslo", "", "Yes", "", ""]
    as_json = json.loads(done(capsys, "predict", "names", "Anna Berg", "--json"))
    assert [one["word"] for one in as_json["words"]] == ["Anna", "Berg"] and set(as_json["words"][0]) == {"word", "label", "probability", "start", "end"}


def test_columns_settings_and_seeds_of_a_task(capsys, place):
    """A file without a line of names, a task's own setting, and two configurations over the same seeds."""
    rows = [f"a film\ta {'film' if n % 2 else 'song'} {n}\t{5 * (n % 2)}" for n in range(24)]
    (place / "pairs.tsv").write_text("\n".join(rows[:16]))
    (place / "held.tsv").write_text("\n".join(rows[16:]))
    common = ["pairs.tsv", "validation=held.tsv", "task=similarity", "columns=a,b,score", "text=a", "pair=b", "label=score", "highest=5", "steps=1", "progress=no", "seeds=2"]
    first = json.loads(done(capsys, "finetune", "mini-bert", *common, "--out", "one", "--json"))
    assert first["metric"] == "spearman" and first["seeds"] == [0, 1] and json.loads((place / "one/seeds.json").read_text())["runs"][1]["n"] == 8
    second = json.loads(done(capsys, "finetune", "mini-bert", *common, "--out", "two", "lr=1e-3", "against=one", "--json"))
    assert second["p"] in (0.5, 1.0) and second["difference"] == pytest.approx(second["mean"] - first["mean"], abs=1e-6)
    assert "seeds are [0, 1], and seeds=3" in refused(capsys, "finetune", "mini-bert", *common[:-1], "seeds=3", "--out", "three", "against=one")
    label, *texts = done(capsys, "predict", "two/seed-1", "--file", "held.tsv", "--columns", "a,b,score").splitlines()[0].split("\t")
    assert -5 <= float(label) <= 5 and texts == rows[16].split("\t")[:2]


def test_pairs_are_read_as_in_training(capsys, place):
    (place / "pairs.tsv").write_text("a\tb\trelation\n" + "".join(f"the cat {i}\tthe dog\t{i % 2}\n" for i in range(8)))
    done(capsys, "finetune", "mini-bert", "pairs.tsv", "--out", "pairs", "text=a", "pair=b", "label=relation", "steps=1", "progress=no")
    expected = predict(str(place / "pairs"), texts=["the cat 3"], pairs=["the dog"])[0]
    for words in (("the cat 3\tthe dog",), ("--file", "one.tsv")):
        (place / "one.tsv").write_text("b\ta\nthe dog\tthe cat 3\n")
        label, p, text, pair = done(capsys, "predict", "pairs", *words).rstrip("\n").split("\t")
        assert (label, text, pair) == (expected.label, "the cat 3", "the dog") and float(p) == pytest.approx(expected.probability, abs=6e-5)
    assert "text 1 is 'alone'; two texts with a tab between are needed" in refused(capsys, "predict", "pairs", "alone")
    assert "'b'" in refused(capsys, "predict", "pairs", "--file", "pairs.tsv", "--pair", "bb")


@pytest.mark.parametrize("words", [
    ["pretrain", "samples/general.txt", "documents=line", *TINY],
    ["pretrain", "samples/general.txt", "objective=causal", *TINY, "minutes=60", "--resume"],
    ["pretrain", "samples/general.txt", "objective=replaced", "generator=0.5", "documents=line", *TINY],
    ["adapt", "mini-bert", "samples/general.txt", "validation=samples/general.txt", "length=32", "epochs=9", "progress=no"],
    ["finetune", "mini-bert", "samples/reviews.train.tsv", "validation=samples/reviews.validation.tsv", "strategy=lora", "epochs=9", "progress=no",
     "--out", "kept", "--json"],
], ids=["pretrain", "pretrain causal", "pretrain replaced", "adapt", "finetune"])
def test_a_dry_run_does_two_steps_and_keeps_nothing(capsys, place, words):
    assert run_main([*words, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    line = json.loads(out)
    assert line["dry_run"] is True and line["steps"] == 2 and "loss" in line["metrics"]
    assert "dry run: training, evaluation, saving and loading work; nothing was kept" in err
    assert not files(place)


def test_a_dry_run_finds_a_fault_in_the_data(capsys, place):
    (place / "bad.tsv").write_text("text\tlabel\n" + "".join(f"text {i}\t{'' if i == 70 else i % 2}\n" for i in range(80)))
    assert "training row 70 has no label" in refused(capsys, "finetune", "mini-bert", "bad.tsv", "--dry-run", "progress=no")


# ---- asking a model ----------------------------------------------------------------------------------------------------------------------------

TEXTS = ["She opened the door.", "", "Rain  in\tMay", "The third of four texts is long enough to be alone in its batch."]


def test_texts_come_from_words_a_file_or_the_standard_input(capsys, place, tiny, monkeypatch):
    model, tok = Model.from_pretrained(tiny / "mini-bert", head="embedding"), Tokenizer.from_pretrained(tiny / "mini-bert")
    expected = embed(model, tok, TEXTS)
    (place / "texts.txt").write_text("".join(f"{text}\r\n" for text in TEXTS))
    (place / "texts.txt.gz").write_bytes(gzip.compress("".join(f"\ufeff{text}\n" if text == TEXTS[0] else f"{text}\n" for text in TEXTS).encode()))
    (place / "texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(TEXTS)))
    for words in (["--", *TEXTS], ["--file", "texts.txt"], ["--file", "texts.txt.gz"], ["--file", "texts.jsonl", "--text", "body"], []):
        numbers = np.loadtxt(io.StringIO(done(capsys, "embed", "mini-bert", "--batch-size", "3", *words)), delimiter="\t")
        np.testing.assert_allclose(numbers, expected.numpy(), atol=1e-5)
    found = [json.loads(line) for line in done(capsys, "embed", "mini-bert", "--json", *TEXTS).splitlines()]
    assert [one["text"] for one in found] == TEXTS
    np.testing.assert_allclose([one["embedding"] for one in found], expected.numpy(), atol=1e-5)
    assert done(capsys, "embed", "mini-bert", "--file", "texts.txt", "--out", "v.npy") == ""
    np.testing.assert_allclose(np.load("v.npy"), expected.numpy(), atol=1e-6)


def test_fill(capsys, place, tiny):
    model, tok = Model.from_pretrained(tiny / "mini-bert"), Tokenizer.from_pretrained(tiny / "mini-bert")
    text = "A [MASK] in the [MASK]."
    expected = fill(model, tok, text, 3)
    lines = [line.split("\t") for line in done(capsys, "fill", "mini-bert", "One [MASK]", text, "--top", "3").splitlines()]
    assert [line[:2] for line in lines] == [["1", "1"]] * 3 + [["2", "1"]] * 3 + [["2", "2"]] * 3
    assert [(token, float(p)) for _, _, token, p in lines[3:]] == [(token, pytest.approx(p, abs=6e-5)) for best in expected for token, p in best]
    assert len(done(capsys, "fill", "mini-bert", "One [MASK]", "--top", "100000").splitlines()) == 500       # as many as there are
    one = json.loads(done(capsys, "fill", "mini-bert", text, "--json", "--top", "1"))
    assert one == {"text": text, "masks": [[{"token": best[0][0], "probability": pytest.approx(best[0][1], abs=1e-6)}] for best in expected]}


def test_generate(capsys, place, tiny):
    model, tok = Model.from_pretrained(tiny / "mini-gpt"), Tokenizer.from_pretrained(tiny / "mini-gpt")
    prompts = ["The old man", "In"]
    printed = [json.loads(line) for line in done(capsys, "generate", "mini-gpt", *prompts, "--max-new-tokens", "6", "--json").splitlines()]
    for prompt, one in zip(prompts, printed, strict=True):          # each alone, so padding is not the program's own idea of right
        ids = generate(model, tok(prompt)["input_ids"], max_new_tokens=6, stop=(tok.eos_id,))
        assert one == {"prompt": prompt, "text": tok.decode(ids[0])}
        assert one["text"].startswith(prompt) and len(one["text"]) > len(prompt)
    sampling = ("generate", "mini-gpt", "The", "--temperature", "1", "--samples", "4", "--json", "--seed")
    sampled = [done(capsys, *sampling, seed) for seed in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2] and len(set(sampled[0].splitlines())) == 4


def test_inspect(capsys, place, tiny):
    found = json.loads(done(capsys, "inspect", "mini-bert", "--json"))
    model = Model.from_pretrained(tiny / "mini-bert")
    assert found["model"] == {"family": "bert", "architecture": "BertForMaskedLM", "head": "masked"}
    assert found["config"] == json.loads(json.dumps(model.config.to_dict()))
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters()) == found["files"]["float32 numbers"]
    assert found["parameters"]["blocks.1"] == sum(p.numel() for p in model.blocks[1].parameters())
    assert found["tokenizer"]["tokens"] == 500 and "mask [MASK] = 1" in found["tokenizer"]["special tokens"]
    done(capsys, "finetune", "mini-bert", "samples/reviews.validation.tsv", "--out", "f", "strategy=lora:3", "steps=1", "progress=no")
    out = done(capsys, "inspect", "f")
    assert re.search(r"^  r +3$", out, re.MULTILINE) and re.search(r"^  labels +negative, positive$", out, re.MULTILINE)
    (place / "broken").mkdir()
    (place / "broken/config.json").write_text('{"model_type": "lama"}')
    (place / "broken/model.safetensors").write_bytes(b"\x00" * 30)
    out = done(capsys, "inspect", "broken")
    assert "the family is not one of bert, gpt2" in out and len(re.findall(r"^  problem  ", out, re.MULTILINE)) == 2
    assert out.count("deberta-v2") == 1


def test_inspect_lists_what_is_unusual_and_the_rest_if_asked(capsys, place):
    few, every = done(capsys, "inspect", "mini-bert"), done(capsys, "inspect", "mini-bert", "--all")
    assert "vocab_size" in few and "global_layers" not in few and re.search(r"^config \(\d+ more are as usual: --all shows them\)$", few, re.MULTILINE)
    assert re.search(r"^  global_layers +none$", every, re.MULTILINE) and "as usual" not in every


def test_inspect_of_two_stacks_and_of_two_towers(capsys, place):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "vocab_size": 30}
    for name, config in {"t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **sizes},
                         "clip": {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": {}, "vision_config": {}}}.items():
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config))
    out = done(capsys, "inspect", "t5")
    assert "problem" not in out and "decoder.blocks.0" in out and re.search(r"^  n_decoder_layers +1$", out, re.MULTILINE)
    out = done(capsys, "inspect", "clip")
    assert "load_two_towers" in out and "problem" not in out


@pytest.mark.parametrize("verb, name, fits", [("generate", "mini-bert", "fill"), ("fill", "mini-gpt", "generate")])
def test_the_wrong_verb_is_told_the_right_one(capsys, place, verb, name, fits):
    said = refused(capsys, verb, name, "a [MASK]")
    assert f"use minitransfer {fits} {name}" in said and "head=" not in said


def test_the_list_of_verbs_has_whole_sentences(capsys):
    out = " ".join(done(capsys, "--help").split())
    assert all(" ".join(verb.summary.split()) in out for verb in VERBS.values())


def test_convert(capsys, place):
    torch.save({"weight": torch.arange(6.0)}, place / "old.pt")
    assert json.loads(done(capsys, "convert", "old.pt", "new", "--json"))["files"] == ["model.safetensors"]
    assert "new: 1 tensors" in done(capsys, "convert", "old.pt", "newer").replace("newer", "new")
    write_model(place / "story.bin")
    assert "stories: 20 tensors, 0.0 MB, in config.json, model.safetensors\n" in done(capsys, "convert", "story.bin", "stories")
    (place / "half.bin").write_bytes((place / "story.bin").read_bytes()[:-4])
    assert "half.bin has " in refused(capsys, "convert", "half.bin", "half")


@pytest.mark.slow
def test_the_examples_of_the_help_texts_work(capsys, place, monkeypatch):
    """Each as it stands there; those that train only as a dry run, and of small models on a part of pydoc; nothing is timed. (Demo and bench have tests of their own.)"""
    small = {"pretrain": TINY, "adapt": ["length=32", "batch_size=4"], "verify": ["--repeats", "0"], "probe": ["--sentences", "9"]}
    some = pydoc_corpus.pydoc_files()[:40]
    for room in (corpus, pydoc_corpus):
        monkeypatch.setattr(room, "pydoc_files", lambda: some)
    for run in ("runs/reviews", "runs/again"):
        done(capsys, "finetune", "mini-bert", "samples/reviews.train.tsv", "--out", run, "steps=1", "progress=no")
    (place / "reviews.yaml").write_text("model: mini-bert\ntrain: samples/reviews.train.tsv\n")
    (place / "reviews.tsv").write_text("fine\tpositive\nbad\tnegative\n")
    shutil.copy(Path(__file__).parents[2] / "notebooks/solutions/03_attention_by_hand.py", place / "my_answers.py")
    (place / "downloads/bert-base-uncased").mkdir(parents=True)
    for name, page, config in (("bert-base-uncased", bert, BERT_BASE), ("gpt2", gpt2, GPT2)):
        (place / name).mkdir()
        kind = next(iter(page.MODEL_TYPES))
        write_json(place / name / "config.json", {"model_type": kind} | page.config_to_hf(config, kind))
    write_model(place / "downloads/stories260K.bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    (place / "en_ewt-ud-dev.conllu").write_text("1\tThe\t_\tDET\t_\t_\t2\tdet\t_\t_\n2\tdog\t_\tNOUN\t_\t_\t0\troot\t_\t_\n\n" * 5)
    for verb in [verb for name, verb in VERBS.items() if name not in ("demo", "bench")]:
        for line in verb.examples:
            torch.save({"weight": torch.ones(2)}, place / "downloads/bert-base-uncased/pytorch_model.bin")
            (place / "downloads/bert-base-uncased/model.safetensors").unlink(missing_ok=True)
            monkeypatch.setattr(sys, "stdin", io.StringIO("fine\nbad\n"))
            words = shlex.split(next(part for part in line.split(" | ") if part.startswith("minitransfer")))[1:]
            named = {word.split("=")[0] for word in words}
            words += [word for word in small.get(verb.name, []) if word.split("=")[0] not in named]
            words += ["--dry-run"] if verb.name in ("pretrain", "adapt", "finetune") and "--dry-run" not in words else []
            out = done(capsys, *words)
            assert out or "--out" in words, line
