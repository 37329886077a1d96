"""Rows in, a tuned model out: against a loop written by hand, against the reference libraries, and with strategies from outside."""
import copy
import json
import math
import random
from dataclasses import replace
from inspect import unwrap

import peft
import pytest
import torch
import transformers

from minitransfer.config import ModelConfig
from minitransfer.generate import embed, fill, generate
from minitransfer.nn.model import Model
from minitransfer.tasks import SequenceTask, finetune, finetune_seeds, load_tuned, predict
from minitransfer.text import LabelledBatches, Tokenizer, TruncationWarning
from minitransfer.transfer import Strategy, full, layer_groups, lora

WORDS = ("the a this that film book song place was is felt seemed very quite rather not too long short old new loud quiet and but with of in on at "
         "people room table story sound light").split()
GOOD, BAD = ["good", "lovely", "superb"], ["awful", "dull", "dreadful"]
QUICK = {"progress": False, "precision": "fp32", "log_every": 1}


def rows(n: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    found = []
    for i in range(n):
        words = draw.choices(WORDS, k=draw.randint(3, 17))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if i % 2 else BAD))
        found.append({"text": " ".join(words), "label": "pos" if i % 2 else "neg"})
    return found


TRAIN, HELD_OUT = rows(96, 1), rows(40, 2)


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train([row["text"] for row in TRAIN], vocab_size=150, max_len=29, min_count=1)


@pytest.fixture(scope="module")
def gpt_tok() -> Tokenizer:
    return Tokenizer.train([row["text"] for row in TRAIN], kind="byte_bpe", vocab_size=300, max_len=71)


def body(tok: Tokenizer, **changes) -> Model:
    sizes = {"d_model": 36, "n_layers": 2, "n_heads": 3, "d_ff": 59, "max_len": 29, "n_token_types": 2, "pooler": True, "dropout": 0.0}
    return Model(ModelConfig(**({"vocab_size": tok.vocab_size} | sizes | changes)), head="none", seed=1)


def decoder(tok: Tokenizer) -> Model:
    return body(tok, causal=True, norm_position="pre", embed_norm=False, final_norm=True, pooler=False, n_token_types=0, norm_eps=1e-5,
                max_len=71, activation="gelu_tanh")


@pytest.fixture(scope="module")
def base(tok, tmp_path_factory):
    """A body in a folder, so that adapters have something to name."""
    folder = tmp_path_factory.mktemp("base")
    body(tok).save_pretrained(folder)
    return folder


def test_every_step_equals_a_loop_written_by_hand(tok):
    model = body(tok)
    twin = copy.deepcopy(model).set_head("sequence", ["neg", "pos"], seed=5)
    seen = []
    finetune(model, tok, train=TRAIN, on_step=lambda one: seen.append((one["loss"], one["grad_norm"], one["lr"])), lr=1e-3, epochs=3, batch_size=32,
             warmup=2, weight_decay=30.0, max_grad_norm=0.3, seed=5, **QUICK)
    batches = LabelledBatches(TRAIN, tok, ["neg", "pos"], batch_size=32, seed=5)
    decay, none = [], []
    for name, p in twin.named_parameters():
        (none if name.endswith("bias") or "norm" in name else decay).append(p)
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 30.0}, {"params": none, "weight_decay": 0.0}], foreach=False, fused=False)
    assert len(seen) == 9
    for step in range(9):
        lr = 1e-3 * (step + 1) / 2 if step < 2 else 1e-3 * (9 - step) / 7
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = batches[step]
        loss = torch.nn.functional.cross_entropy(twin(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        assert seen[step] == (pytest.approx(float(loss.detach()), abs=2e-5), pytest.approx(float(norm), rel=1e-3), pytest.approx(lr, rel=1e-9)), step


@pytest.mark.parametrize("strategy,lr", [("full", 2e-3), ("last:1", 3e-3), ("lora", 2e-2)])
def test_it_learns_and_its_metrics_are_those_of_the_weights_it_keeps(tok, base, tmp_path, strategy, lr):
    model = Model.from_pretrained(base)
    result = finetune(model, tok, train=TRAIN, validation=HELD_OUT, strategy=strategy, out=tmp_path / "run", lr=lr, epochs=8, batch_size=16, **QUICK)
    assert result.model is model and model.labels == ["neg", "pos"] and result.metrics["accuracy"] >= 0.7
    answers = predict(model, tok, [row["text"] for row in HELD_OUT])
    right = sum(a.label == row["label"] for a, row in zip(answers, HELD_OUT, strict=True))
    assert result.metrics["accuracy"] == right / 40 and result.metrics["accuracy_low"] < right / 40 <= result.metrics["accuracy_high"] <= 1
    accuracies = [one["evaluation"]["accuracy"] for one in result.history if "evaluation" in one]
    assert len(accuracies) == 8 and result.metrics["accuracy"] == max(accuracies) and result.training.best["better"] == "higher"
    assert result.report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result.seconds > 0 and result.peak_memory > 0
    assert f"accuracy {right / 40:.4f} (95 %: " in str(result) and "held-out targets" in str(result)

    # the folder alone gives the same answers, wherever it is read from
    for source in (tmp_path / "run", tmp_path / "run" / "model"):
        again = predict(source, texts=[row["text"] for row in HELD_OUT])
        assert [a.label for a in again] == [a.label for a in answers]
        assert max(abs(a.probability - b.probability) for a, b in zip(again, answers, strict=True)) <= 1e-6
    about = json.loads((tmp_path / "run" / "model" / "task.json").read_text())
    assert about["labels"] == ["neg", "pos"] and about["task"] == "sequence" and about["max_length"] == 29


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_the_reference_libraries_read_the_folder(tok, base, tmp_path, strategy):
    result = finetune(Model.from_pretrained(base), tok, train=TRAIN, strategy=strategy, out=tmp_path, lr=3e-3, steps=5, **QUICK)
    folder, texts = tmp_path / "model", [row["text"] for row in HELD_OUT[:7]]
    if strategy == "full":
        reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        assert reference.config.id2label == {0: "neg", 1: "pos"}
    else:
        plain = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=2)
        reference = peft.PeftModel.from_pretrained(plain, folder)
        assert not (folder / "model.safetensors").exists()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = reference.eval()(**batch).logits
        ours = result.model(**tok(texts)).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_decoder_reads_the_last_token_whatever_the_padding(gpt_tok, tmp_path):
    """No padding token in the vocabulary, texts of different lengths in a batch: the answer is that of the text alone."""
    model = decoder(gpt_tok)
    assert gpt_tok.pad_id is None
    result = finetune(model, gpt_tok, train=TRAIN, validation=HELD_OUT, out=tmp_path, lr=3e-3, epochs=8, batch_size=16, **QUICK)
    assert result.metrics["accuracy"] >= 0.8
    texts = [row["text"] for row in HELD_OUT]
    together, alone = predict(model, gpt_tok, texts), [predict(tmp_path, texts=text)[0] for text in texts[:5]]
    for one, other in zip(together, alone, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    left, right = (gpt_tok(texts, padding_side=side) for side in ("left", "right"))
    torch.testing.assert_close(model(**left).logits, model(**right).logits, atol=1e-5, rtol=0)


def test_the_best_weights_are_kept_with_their_own_metrics(tok):
    """Against labels turned round, the better the model learns the worse it scores: the best epoch is an early one."""
    turned = [row | {"label": {"pos": "neg", "neg": "pos"}[row["label"]]} for row in HELD_OUT]
    result = finetune(body(tok), tok, train=TRAIN, validation=turned, lr=2e-3, epochs=6, batch_size=16, **QUICK)
    accuracies = [one["evaluation"]["accuracy"] for one in result.history if "evaluation" in one]
    answers = predict(result.model, tok, [row["text"] for row in turned])
    right = sum(a.label == row["label"] for a, row in zip(answers, turned, strict=True))
    assert right / 40 == result.metrics["accuracy"] == max(accuracies) > accuracies[-1]
    loss = -sum(math.log(a.probabilities[row["label"]]) for a, row in zip(answers, turned, strict=True)) / 40
    assert result.metrics["loss"] == pytest.approx(loss, rel=1e-4)             # over rows, though the last batch is smaller


def test_keep_best_can_be_left_out(tok):
    last = finetune(body(tok), tok, train=TRAIN, validation=HELD_OUT, best=None, lr=3e-3, epochs=2, **QUICK)
    assert last.training.best is None and last.metrics == [one["evaluation"] for one in last.history if "evaluation" in one][-1]
    none = finetune(body(tok), tok, train=TRAIN, steps=1, **QUICK)
    assert none.metrics == {} and "no validation rows; " in str(none)


def test_a_head_that_fits_stays_and_another_is_replaced(tok):
    for labels, stays in ((["pos", "neg"], True), (["pos", "neutral", "neg"], True), (["neg", "positive"], False)):
        model = body(tok).set_head("sequence", labels, seed=9)
        weight = model.head.classifier.weight.clone()
        finetune(model, tok, train=TRAIN, strategy="head", lr=1e-30, steps=1, **QUICK)
        assert (model.labels == labels) == stays and torch.equal(model.head.classifier.weight, weight) == stays
    same = [finetune(body(tok), tok, train=TRAIN, steps=1, seed=s, **QUICK).model.head.classifier.weight for s in (3, 3, 4)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


def test_a_pooler_that_no_checkpoint_filled_trains_with_the_head(tok, tmp_path):
    body(tok).set_head("masked").save_pretrained(tmp_path / "masked")          # this layout has no pooler
    model = Model.from_pretrained(tmp_path / "masked")
    result = finetune(model, tok, train=TRAIN, strategy="head", steps=1, **QUICK)
    assert {row.group for row in result.report.rows if row.trainable} == {"pooler", "head"}


def numbered(label) -> list[dict]:
    return [{"text": row["text"], "label": label(i)} for i, row in enumerate(TRAIN)]


def test_labels_are_sorted_as_numbers_if_they_are_numbers():
    task = SequenceTask()
    assert task.labels(numbered(lambda i: i % 11), []) == [str(i) for i in range(11)]
    assert task.labels(numbered(lambda i: f"c{i % 11}"), [])[:3] == ["c0", "c1", "c10"]
    assert task.labels(numbered(lambda i: i % 2 == 0), []) == ["False", "True"]


FAULTS = [
    ({"validation": [*HELD_OUT, {"text": "odd", "label": "mixed"}]},
     "validation row 40 has the unknown label 'mixed'; the training rows have 'neg', 'pos'"),
    ({"train": [*TRAIN, {"text": "odd", "label": None}]}, r"training row 96 has no label \(its 'label' is None\)"),
    ({"train": [*TRAIN, {"text": "odd", "label": " "}]}, "training row 96 has no label"),
    ({"train": numbered(lambda i: "neg")}, "all 96 training rows have the label 'neg'; there is nothing to tell apart"),
    ({"strategy": "Lora"}, "no strategy is called 'Lora'"),
    ({"task": "sequences"}, r"task='sequences' \(did you mean 'sequence'\?\); there are 'sequence', 'multilabel', 'regression', 'similarity'"),
    ({"max_length": 30}, "max_length=30; this model reads at most 29 tokens"),
    ({"train": [*TRAIN, {"text": None, "label": "neg"}]}, "None"),
    ({"train": []}, "no rows"),
]


@pytest.mark.parametrize("change,message", FAULTS, ids=[m[:30] for _, m in FAULTS])
def test_bad_input_is_one_error_before_anything_is_written(tok, tmp_path, change, message):
    call = {"train": TRAIN, "validation": HELD_OUT, "out": tmp_path / "run"} | change
    with pytest.raises(ValueError, match=message):
        finetune(body(tok), tok, **call, steps=1, **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change,message", [
    ({"label": "lable"}, "lable"), ({"text": "txt"}, "txt"), ({"learning_rate": 1e-3}, "no setting is called 'learning_rate'.*did you mean 'lr'"),
    ({"per_device_train_batch_size": 8}, "did you mean 'batch_size'"), ({"gradient_accumulation_steps": 2}, "did you mean 'micro_batches'")])
def test_bad_names(tok, change, message):
    with pytest.raises(KeyError, match=message):
        finetune(body(tok), tok, train=TRAIN, **({"steps": 1, **QUICK} | change))


def test_the_name_of_a_model_is_no_model(tok):
    """One sentence wherever a model is the first argument."""
    asked = {finetune: {"train": TRAIN}, finetune_seeds: {"train": TRAIN, "validation": TRAIN}, fill: {"text": "a"}, embed: {"texts": ["a"]}, generate: {}}
    for verb, more in asked.items():
        with pytest.raises(ValueError, match=rf"^{verb.__name__} with 'mini-bert' in the place of the model; .*: give mt.Model.from_pretrained\('mini-bert'\)"):
            unwrap(verb)("mini-bert", tok, **more)
    with pytest.raises(ValueError, match=r'generate with Tokenizer in the place of token ids; .*: give tok\(\["a text"\]\)\["input_ids"\]'):
        unwrap(generate)(body(tok), tok, ["hi"])


def test_a_tokenizer_for_another_model(tok):
    with pytest.raises(ValueError, match=r"a tokenizer of \d+ tokens and a model with 50 rows in its token table"):
        finetune(body(tok, vocab_size=50), tok, train=TRAIN, steps=1, **QUICK)


def test_long_texts_are_cut_with_a_warning(tok):
    with pytest.warns(TruncationWarning, match="longer than 29"):
        finetune(body(tok), tok, train=[*TRAIN, {"text": "very " * 50, "label": "pos"}], steps=1, **QUICK)


def test_the_top_of_a_sorted_file_is_noticed(tok):
    by_label = sorted(TRAIN, key=lambda row: row["label"])
    with pytest.warns(UserWarning, match="sorted by label and the last label, 'pos', has 4 of 52 rows"):
        finetune(body(tok), tok, train=by_label[:52], steps=1, **QUICK)
    finetune(body(tok), tok, train=by_label, steps=1, **QUICK)                  # sorted and whole is no fault: a warning would be an error here


class Stopped(Exception):
    pass


def stop_at(step: int):
    def on_step(record: dict) -> None:
        if record["step"] == step:
            raise Stopped
    return on_step


def gradual(model: Model, epochs: float) -> list[str]:
    """The head from the start, and one more group from the top with every epoch."""
    groups = layer_groups(model)
    return [name for group in list(groups)[-1 - int(epochs):] for name in groups[group]]


GRADUAL = Strategy("gradual", trains=lambda model: [n for n, _ in model.named_parameters()], now=gradual,
                   rate=lambda model: lambda name: 0.1 if name.startswith("embed") else 1.0)


@pytest.mark.parametrize("strategy", [lora(r=3, dropout=0.2), GRADUAL, full()], ids=lambda s: s.name)
def test_a_broken_run_goes_on_bit_for_bit(tok, base, tmp_path, strategy):
    def run(out, **more):
        return finetune(Model.from_pretrained(base), tok, train=TRAIN, validation=HELD_OUT, strategy=strategy, out=out, lr=3e-3, epochs=5,
                        batch_size=24, save_every=3, best=None, **QUICK, **more)
    whole = run(tmp_path / "whole").model.state_dict()
    with pytest.raises(Stopped):
        run(tmp_path / "broken", on_step=stop_at(8))
    rest = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(t, whole[name]) for name, t in rest.model.state_dict().items())
    assert [one["step"] for one in rest.history if "loss" in one] == list(range(1, 21))


def test_another_strategy_cannot_go_on_with_a_run(tok, base, tmp_path):
    call = {"train": TRAIN, "out": tmp_path, "steps": 4, "save_every": 2, **QUICK}
    with pytest.raises(Stopped):
        finetune(Model.from_pretrained(base), tok, on_step=stop_at(3), **call)
    with pytest.raises(ValueError, match="strategy: full then, head now"):
        finetune(Model.from_pretrained(base), tok, strategy="head", resume=True, **call)


def test_a_strategy_that_changes_over_time(tok):
    """Groups join from the top, one an epoch; what has not joined keeps its bits; what joins starts with fresh moments and its own rate."""
    model = body(tok)
    before, moved = {}, []

    def remember(model: Model, seed: int = 0) -> None:
        before.update({n: p.detach().clone() for n, p in model.named_parameters()})

    def watch(record: dict) -> None:
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        moved.append({group for group, names in layer_groups(model).items() if changed.intersection(names)})
        remember(model)
    finetune(model, tok, train=TRAIN, strategy=replace(GRADUAL, insert=remember), on_step=watch, batch_size=48, epochs=5, lr=1e-3, **QUICK)
    order = ["head", "pooler", "blocks.1", "blocks.0", "embed"]
    assert moved == [set(order[: 1 + step // 2]) for step in range(10)]


def test_a_strategy_with_a_rate_for_each_group(tok):
    """The first step of Adam moves every number by the learning rate, so the largest move in a group is its rate."""
    factors = {"embed": 0.25, "blocks.0": 0.0, "blocks.1": 0.5, "pooler": 1.0, "head": 2.0}

    def rate(model: Model):
        return lambda name: next(factor for group, factor in factors.items() if name.startswith(group))
    model = body(tok).set_head("sequence", ["neg", "pos"])
    start = copy.deepcopy(model)
    finetune(model, tok, train=TRAIN, strategy=replace(full(), name="rates", rate=rate), lr=1e-3, warmup=0, steps=1, weight_decay=0.0, **QUICK)
    for group, names in layer_groups(model).items():
        moved = max(float((model.get_parameter(n) - start.get_parameter(n)).detach().abs().max()) for n in names)
        assert moved == pytest.approx(1e-3 * factors[group], rel=1e-2)


def test_a_strategy_that_adds_to_the_objective(tok):
    """A pull to where the body started, as in L2-SP, is a wrapper around the task's objective."""
    def pull(model: Model, objective):
        start = {n: p.detach().clone() for n, p in model.named_parameters()}

        def objective_with_pull(model, batch, generator):
            loss, n = objective(model, batch, generator)
            return loss + n * 1e3 * sum(((p - start[name]) ** 2).sum() for name, p in model.named_parameters()), n
        return objective_with_pull

    def distance(strategy: Strategy) -> float:
        model, start = body(tok), body(tok)
        finetune(model, tok, train=TRAIN, strategy=strategy, lr=1e-3, epochs=2, **QUICK)
        return sum(float(((model.get_parameter(n) - p) ** 2).sum().detach()) for n, p in start.named_parameters())
    assert distance(replace(full(), name="l2sp", objective=pull)) < 0.5 * distance(full())


def test_a_strategy_brings_settings_and_the_caller_has_the_last_word(tok):
    rates = []
    for strategy, more in (("full", {}), ("head", {}), ("lora", {"lr": 7e-4})):
        finetune(body(tok), tok, train=TRAIN, strategy=strategy, steps=2, warmup=1, on_step=lambda one: rates.append(one["lr"]), **QUICK, **more)
    assert rates[::2] == [5e-5, 1e-2, 7e-4]


def test_predict(tok, base, tmp_path):
    result = finetune(Model.from_pretrained(base), tok, train=TRAIN, strategy="lora", out=tmp_path / "run", steps=2, **QUICK)
    model, texts = result.model, [row["text"] for row in HELD_OUT]
    want = predict(model, tok, texts, batch_size=7)
    assert [a.probabilities for a in predict(model, tok, texts[::-1], batch_size=3)][::-1] == [pytest.approx(a.probabilities, abs=1e-6) for a in want]
    for one in want:
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.probability == one.probabilities[one.label] == max(one.probabilities.values())
    assert predict(model, tok, []) == [] and len(predict(model, tok, "one text")) == 1
    with torch.no_grad():
        logits = model(**tok([texts[3]], ["another one"])).logits
    (paired,) = predict(model, tok, texts[3], pairs="another one")
    assert list(paired.probabilities.values()) == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-6)
    model.train()
    predict(model, tok, texts[:2])
    assert model.training                                                       # and without dropout in between
    loaded, own = load_tuned(tmp_path / "run")
    assert not loaded.training and own.fingerprint == tok.fingerprint


def test_predict_errors(tok, gpt_tok, base, tmp_path):
    finetune(Model.from_pretrained(base), tok, train=TRAIN, strategy="lora", out=tmp_path / "run", steps=1, **QUICK)
    folder = tmp_path / "run" / "model"
    with pytest.raises(ValueError, match="predict with a model object and no tokenizer"):
        predict(body(tok), texts=["a"])
    with pytest.raises(ValueError, match="a model with head='none' gives no labels"):
        predict(body(tok), tok, ["a"])
    with pytest.raises(ValueError, match="text 1 has no token"):
        predict(decoder(gpt_tok).set_head("sequence", ["a", "b"]), gpt_tok, ["a", ""])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match=r"is an adapter for .*gone, and needs it; it could not be loaded"):
        predict(folder, texts=["a"])
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="an adapter without the name of its base"):
        predict(folder, texts=["a"])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "task.json").unlink()
    with pytest.raises(ValueError, match=r"an adapter without a task\.json"):
        predict(folder, texts=["a"])


def test_a_baseline_comes_first_and_leaves_no_trace(tok):
    """Its metrics are those of a run that trains the head alone, whatever rate is asked for here; the run itself is the same to the bit."""
    asked = {"train": TRAIN, "validation": HELD_OUT, "lr": 2e-3, "epochs": 2, "batch_size": 16, **QUICK}
    plain, both = finetune(body(tok), tok, **asked), finetune(body(tok), tok, baseline=True, **asked)
    alone = finetune(body(tok), tok, strategy="head", **{name: value for name, value in asked.items() if name != "lr"})
    assert both.baseline == alone.metrics and plain.baseline is None and both.metrics == plain.metrics != alone.metrics
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), both.model.state_dict().values(), strict=True))
    first, second = str(both).splitlines()
    assert first.startswith(f"head alone: accuracy {alone.metrics['accuracy']:.4f} (95 %") and second.startswith(f"this run:   accuracy {both.metrics['accuracy']:.4f}")
    with pytest.raises(ValueError, match="baseline=True and no validation rows"):
        finetune(body(tok), tok, train=TRAIN, baseline=True, steps=1, **QUICK)
