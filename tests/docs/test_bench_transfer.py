"""Both sides of `bench transfer` see the same rows, ask the same and measure the same; means, intervals and bars are what the lines say."""
import json
from dataclasses import replace

import pytest
import torch

from minitransfer import Model, Tokenizer, samples
from minitransfer.bench import transfer
from minitransfer.bench.transfer import SETS, Set, job, measure, ours, rates, sets, speed, studies, table, twin
from minitransfer.tasks import SequenceTask, SimilarityTask, SpanTask, TokenTask
from minitransfer.text import read_rows

SENTENCE = "The old door of Marlow House opened slowly and the dog ran out into the garden again"


def perturbed(head: str, labels: list[str] | None, folder, seed: int = 3):
    """mini-bert with a head, every parameter moved, as a folder that both sides read."""
    model = Model.from_pretrained("mini-bert", head=head, labels=labels)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder)
    Tokenizer.from_pretrained("mini-bert").save_pretrained(folder)
    return folder


def sentence_rows(n: int) -> list[dict]:
    words = SENTENCE.split()
    rows = [words[i % 5: 7 + i % 7] for i in range(n)]
    return [{"words": row, "tags": [("O", "B-A", "I-A", "O")[k % 4] for k in range(i % 2, len(row) + i % 2)]} for i, row in enumerate(rows)]


def question_rows(n: int) -> list[dict]:
    contexts = [" ".join([SENTENCE] * (1 + i % 5)) for i in range(n)]
    return [{"question": f"Where did {name} open?", "context": context, "answers": {"text": ["Marlow House"], "answer_start": [context.rindex("Marlow House")]}}
            for name, context in zip(["the door", "the dog", "it"] * n, contexts, strict=False)]


TINY = {
    "sequence": (Set("tiny", SequenceTask(), "", "", "accuracy", 1, 1e-4, batch_size=5, max_length=37), "sequence", ["0", "1"],
                 read_rows(samples.path("reviews.validation.tsv"))[:31]),
    "token": (Set("tiny", TokenTask(), "", "", "accuracy", 1, 1e-4, batch_size=5, max_length=37), "token", ["B-A", "I-A", "O"], sentence_rows(23)),
    "entities": (Set("tiny", TokenTask(), "", "", "entity_f1", 1, 1e-4, batch_size=5, max_length=37), "token", ["B-A", "I-A", "O"], sentence_rows(23)),
    "span": (Set("tiny", SpanTask(stride=7), "", "", "f1", 1, 1e-4, batch_size=5, max_length=41), "span", None, question_rows(13)),
    "similarity": (Set("tiny", SimilarityTask("a", "b", "score", highest=5.0), "", "", "spearman", 1, 1e-4, batch_size=5, max_length=37), "embedding", None,
                   [{"a": " ".join(SENTENCE.split()[i % 4:]), "b": " ".join(SENTENCE.split()[: 3 + i % 11]), "score": float(i * 7 % 6)} for i in range(29)]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*were cut from their ends", "default::UserWarning")
@pytest.mark.parametrize("kind", TINY)
def test_both_sides_measure_the_same_for_the_same_weights(kind, tmp_path, monkeypatch):
    """The twin's own encoding, collation, windows and metric give what ours give for one saved model: only training can differ."""
    import transformers
    one, head, labels, rows = TINY[kind]
    if kind == "sequence":
        labels = one.task.labels(rows, [])
    folder = perturbed(head, labels, tmp_path / "model")

    def untrained(one, model, tok, train, seed, epochs, lr, collator=None, **more):
        settings = transformers.TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=7)
        return transformers.Trainer(model, settings, processing_class=tok, data_collator=collator), {}
    monkeypatch.setattr(twin, "trained", untrained)
    monkeypatch.setattr(twin, "body", lambda: folder)
    theirs = twin.run_rows(one, rows, rows, "zero-shot" if kind == "similarity" else "full", 0, 1)["value"]
    model, tok = Model.from_pretrained(folder).eval(), Tokenizer.from_pretrained(folder)
    with torch.no_grad():
        mine = one.task.evaluation(one.task.batches(rows, tok, labels or [], 4, None, one.max_length, 0))(model)
    assert 100 * mine[one.metric] == pytest.approx(theirs, abs=1e-3 if kind == "similarity" else 1e-9)
    assert 0 < abs(theirs) < 100


@pytest.mark.slow
def test_every_set_has_the_rows_that_were_promised(data):
    sizes = {name: tuple(map(len, one.read())) for name, one in SETS.items()}
    assert sizes == {"sst2": (2000, 872), "trec": (1000, 500), "ag_news": (1000, 1000), "sms_spam": (1000, 500), "wikigold": (1196, 200), "ncbi_disease": (5424, 923),
                     "ud_en_ewt": (2000, 2001), "squad_subset": (2238, 672), "stsb": (5749, 1500), "imdb_100": (100, 1000), "imdb_long": (1000, 1000), "medquad": (500, 804)}
    for one in SETS.values():
        train, held_out = one.read(quick=True)
        assert len(train) == sets.QUICK_ROWS and len(held_out) == sets.QUICK_HELD_OUT
        assert "test" not in one.train and "test" not in one.validation


def test_rows_are_the_same_for_every_run_and_drawn_anew_where_they_are_few(data):
    one = SETS["imdb_100"]
    first, again, other = one.read()[0], one.read()[0], one.read(drawn=1)[0]
    assert first == again and first != other
    assert len({row["text"] for row in first} & {row["text"] for row in other}) < 10


def test_every_strategy_of_the_library_is_on_the_list():
    from minitransfer.transfer.strategies import STRATEGIES
    assert {name.partition(":")[0] for name in ours.STRATEGIES} == set(STRATEGIES)


def test_what_no_seed_moves_runs_once():
    runs = job.runs(replace(SETS["sst2"], seeds=3), "ours", quick=False)
    assert runs.count(("logistic", 0)) == 1 and not any(method == "logistic" and seed for method, seed in runs)
    assert {seed for method, seed in runs if method == "full"} == {0, 1, 2} and len(set(runs)) == len(runs)
    assert all(seed == 0 for _, seed in job.runs(SETS["sst2"], "ours", quick=True))


def test_what_is_there_is_not_run_again(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(twin, "run", lambda one, method, seed, quick: asked.append((method, seed)) or {"value": 1.0})
    list(job.lines(replace(SETS["wikigold"], seeds=3), "twin", {("full", 1)}, tmp_path, quick=False))
    assert asked == [("full", 0), ("full", 2)]


def test_a_study_goes_on_where_it_was_cut_off(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(studies, "adapted", lambda folder, name, domain, quick: (tmp_path, {}))
    monkeypatch.setattr(studies, "texts", lambda *given, **named: [])
    monkeypatch.setattr(studies, "baseline", lambda *given, **named: type("Found", (), {"metrics": {"accuracy": 0.5}}))
    monkeypatch.setattr(Set, "read", lambda one, quick=False, drawn=0: ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], []))
    monkeypatch.setattr(studies, "start", lambda *given, **named: None)
    monkeypatch.setattr(studies, "tune", lambda one, model, rows, held_out, seed, strategy, **more: trained.append((strategy, seed)))
    monkeypatch.setattr(studies, "read", lambda one, result: {"value": 1.0})
    one, known = replace(SETS["imdb_100"], seeds=2), {("adapt", 0), ("logistic", 0), ("full", 0), ("lora", 0)}
    found = [(each["method"], each["seed"]) for each in job.lines(one, "ours", known, tmp_path, quick=False)]
    assert trained == [("ulmfit", 0), ("lora", 0), ("full", 1), ("lora", 1), ("ulmfit", 1), ("lora", 1)]
    assert found == [("ulmfit", 0), ("adapt + lora", 0), ("logistic", 1), ("full", 1), ("lora", 1), ("ulmfit", 1), ("adapt + lora", 1)]


def line(side: str, method: str, seed: int, value: float, **more) -> dict:
    return {"set": "sst2", "side": side, "method": method, "seed": seed, "value": value, "seconds": 2.0 + seed, "trainable": 7, **more}


def test_means_and_bars():
    lines = [line("ours", "full", 0, 80.0, interval=[78.0, 82.0]), line("ours", "full", 1, 81.0, interval=[79.0, 83.0]),
             line("ours", "lora", 0, 79.6), line("ours", "lora", 1, 79.3),
             line("ours", "adapter", 0, 78.0), line("ours", "adapter", 1, 80.0), line("twin", "full", 0, 81.0), line("twin", "full", 1, 81.3)]
    found = table.summaries(lines)["sst2"]
    assert found["ours"]["full"]["mean"] == 80.5 and found["ours"]["full"]["interval"] == [78.5, 82.5] and found["ours"]["full"]["seconds"] == 2.5
    bars = {one["what"]: (pytest.approx(one["points"]), one["bar"], one["holds"]) for one in found["bars"]}
    assert bars == {"full against the twin": (-0.65, -0.7, True), "lora against full": (-1.05, -1.0, False), "adapter against full": (-1.5, -1.0, False)}
    rows = table.table({"sets": {"sst2": found}, "paces": [], "depth": []}).splitlines()
    assert "| sst2 | accuracy | 80.5 (78.5 to 82.5) | 2 seeds | 81.2 | -0.65 (-0.7: holds) |  |  |" in rows
    assert "| lora | 7 | 79.4 (79.6 79.3) |  |" in rows and "| full | 7 | 80.5 (80.0 81.0) | 81.2 (81.0 81.3) |" in rows


def test_zero_shot_is_compared_as_a_correlation():
    lines = [{"set": "stsb", "side": side, "method": "zero-shot", "seed": 0, "value": value} for side, value in (("ours", 86.71), ("twin", 86.85))]
    (bar,) = table.summaries(lines)["stsb"]["bars"]
    assert bar["points"] == pytest.approx(0.0014) and not bar["holds"]


def test_the_frozen_body_stays_what_it_was_while_its_vocabulary_head_learns(monkeypatch, tmp_path):
    body = Model.from_pretrained("mini-bert", head="none")
    body.save_pretrained(tmp_path / "body")
    Tokenizer.from_pretrained("mini-bert").save_pretrained(tmp_path / "body")
    texts = read_rows(samples.path("reviews.train.tsv"))
    monkeypatch.setattr(studies, "body", lambda: tmp_path / "body")
    monkeypatch.setattr(studies, "texts", lambda file, column="text", most=None: [row["text"] for row in texts[:40]])
    monkeypatch.setattr(studies, "LENGTH", 29)
    after = Model.from_pretrained(studies.with_vocabulary_head(tmp_path, quick=True))
    kept, fresh = dict(after.named_parameters()), Model.from_pretrained(tmp_path / "body", head="masked+next")
    moved = [name for name, p in fresh.named_parameters() if not torch.equal(p, kept[name])]
    assert moved and all(name.startswith("head.") for name in moved)


def test_lines_are_kept_as_they_come_and_a_failure_is_told(monkeypatch, tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(f"import sys\nprint('noise')\nprint({json.dumps(line('ours', 'full', 0, 1.0))!r}, flush=True)\nsys.exit('broken on purpose')")
    real = measure.subprocess.Popen
    monkeypatch.setattr(measure.subprocess, "Popen", lambda command, **kept: real([command[0], str(script)], **kept))
    with pytest.raises(RuntimeError, match=r"(?s)sst2 ours failed.*broken on purpose"):
        measure.measure(("sst2", "ours"), tmp_path, quick=True)
    assert [json.loads(one)["value"] for one in (tmp_path / "lines.jsonl").read_text().splitlines()] == [1.0]


def test_what_cannot_be_run_is_refused_at_once(monkeypatch):
    with pytest.raises(KeyError, match="did you mean 'sst2'"):
        transfer.run(["sst"])
    with pytest.raises(ValueError, match="quick run, to be saved"):
        transfer.run(quick=True, save=True)
    monkeypatch.delenv("MINITRANSFER_DATA", raising=False)
    with pytest.raises(ValueError, match="set it to the folder"):
        transfer.run(["trec"])


@pytest.mark.slow
def test_less_is_kept_for_the_backward_pass_the_higher_it_stops():
    kept = {one["strategy"]: (one["kept_bytes"], one["trainable"]) for one in speed.depth(quick=True)}
    blocks = kept["full"][0] - kept["head"][0]
    assert 2 / 6 * blocks == pytest.approx(kept["last:2"][0], rel=0.05)          # two of six blocks, and no embeddings
    assert kept["head"] == (kept["head"][0], 770) and kept["head"][0] < 1e-3 * kept["full"][0]


def test_the_rates_that_strategies_bring_were_tried():
    """results/transfer_rates.json holds what `rates` tries, and each strategy's own rate is one of these."""
    from minitransfer.transfer.strategies import STRATEGIES
    kept = json.loads((measure.RESULTS / "transfer_rates.json").read_text())["runs"]
    assert {(one["strategy"], one["lr"]) for one in kept} == {(name, lr) for name, many in rates.GRID.items() for lr in many}
    own = {name: make().settings["lr"] for name, make in STRATEGIES.items() if name not in ("full", "last", "head")}
    assert own.keys() <= rates.GRID.keys() and all(lr in rates.GRID[name] for name, lr in own.items())


def test_the_table_of_forgetting_has_the_epochs_of_each_run():
    """Such a run also has a value, its last accuracy; its epochs are not lost over it."""
    def line(method, lr, losses):
        return {"set": "imdb_long", "side": "ours", "method": method, "seed": 0, "lr": lr, "value": 60.0, "seconds": 1.0,
                "table": [{"epoch": i + 1, "train_loss": loss, "accuracy": 50.0 + i, "masked_loss": 7.0 + i} for i, loss in enumerate(losses)]}
    found = table.summaries([line("many", 2e-4, [0.5, 0.25, 0.125, 0.0625]), line("few", 2e-5, [0.75])])
    assert table.by_epoch(found["imdb_long"]).splitlines()[2:] == [
        "| lr 0.0002 | 1 | 0.500 | 50.0 | 7.00 |", "| lr 0.0002 | 2 | 0.250 | 51.0 | 8.00 |", "| lr 0.0002 | 3 | 0.125 | 52.0 | 9.00 |", "| lr 2e-05 | 1 | 0.750 | 50.0 | 7.00 |"]


def test_a_quick_run_asks_for_no_tag_that_it_has_not_seen(data):
    for name in ("wikigold", "ncbi_disease", "ud_en_ewt"):
        rows, held_out = SETS[name].read(quick=True)
        assert len(rows) == sets.QUICK_ROWS and len(held_out) == sets.QUICK_HELD_OUT
        assert {tag for row in held_out for tag in row["tags"]} <= {tag for row in rows for tag in row["tags"]}
