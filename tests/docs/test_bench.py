"""The comparisons compare like with like, and report what was read. How long anything took is never asserted."""
import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minitransfer import Model, ModelConfig
from minitransfer.bench import ROWS, Row, characters, compare, run, sides
from minitransfer.nn.heads import IGNORE

BERT = ModelConfig(vocab_size=1031, d_model=28, n_layers=3, n_heads=4, d_ff=53, max_len=37)
GPT2 = ModelConfig(vocab_size=1033, d_model=36, n_layers=2, n_heads=3, d_ff=59, max_len=97, norm_position="pre", norm_eps=1e-5, activation="gelu_tanh", causal=True,
                   n_token_types=0, embed_norm=False, final_norm=True, pooler=False)


def tiny(kind: str = "step", **changes) -> Row:
    return Row(**{"name": "tiny", "bar": 2.0, "kind": kind, "what": "", "peer": "", "config": BERT, "head": "masked", "batch": 5, "length": 23} | changes)


MASKED, CAUSAL = tiny(), tiny(config=GPT2, head="causal", batch=3, length=19)


def test_rows_have_the_bars_that_were_promised():
    bars = {name: (">=" if row.minimum else "<=", row.bar) for name, row in ROWS.items()}
    assert bars == {"masked-small-fp32": (">=", 2.8), "masked-small": (">=", 4.4), "masked-base-fp32": (">=", 1.4), "masked-base": (">=", 2.3),
                    "causal-gpt2-fp32": (">=", 1.35), "causal-gpt2": (">=", 2.3), "generate-gpt2-fp32": (">=", 1.8), "generate-gpt2": (">=", 3.0),
                    "memory-gpt2-fp32": ("<=", 0.7), "memory-gpt2": ("<=", 0.7), "generate-gpt2-int8": (">=", 5.0), "embed-minilm-int8": (">=", 1.8),
                    "finetune-sst2": (">=", 1.5), "embed-minilm": (">=", 1.2),
                    "memory-lora-int8": ("<=", 0.75), "memory-lora-nf4": ("<=", 0.65), "import": ("<=", 1.3), "characters": ("<=", 0.7)}


def test_sizes_are_those_of_the_models_named():
    """The numbers of parameters are those of the published bert-base (masked, 109.5 M with its transform and bias) and gpt2 (124.4 M)."""
    def count(name: str) -> int:
        return sum(p.numel() for p in Model(ROWS[name].config, ROWS[name].head, seed=None).parameters())
    assert (count("masked-base"), count("causal-gpt2")) == (109_514_298, 124_439_808)


# ---- both sides do the same work ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_both_sides_have_the_same_loss_for_the_same_weights(row, tmp_path):
    ours = Model(row.config, row.head).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    ours.save_pretrained(tmp_path)
    peer = sides.peer_model(row.config, row.head).eval()
    known = load_file(tmp_path / "model.safetensors")
    missing, unexpected = peer.load_state_dict(known, strict=False)
    assert unexpected == [] and all("decoder" in name or "lm_head" in name for name in missing)     # tied, therefore saved once
    batch = sides.Given(row)[3]
    with torch.no_grad():
        loss, n = sides.AsGiven(row)(ours, batch, torch.Generator())
        torch.testing.assert_close(loss / n, peer(**batch).loss, atol=1e-5, rtol=1e-5)
    assert peer.config._attn_implementation == "sdpa"


def test_given_batches_hide_fifteen_percent_and_repeat():
    row = tiny(batch=40, length=37)
    batches = sides.Given(row)
    ids, labels = (batches[4][name] for name in ("input_ids", "labels"))
    hidden = labels != IGNORE
    assert ids.shape == labels.shape == (40, 37)
    assert bool((ids[hidden] == sides.MASK_ID).all()) and bool((ids[~hidden] != sides.MASK_ID).all()) and bool((labels[hidden] >= sides.FIRST_ID).all())
    assert abs(int(hidden.sum()) - 0.15 * 1480) < 5 * (1480 * 0.15 * 0.85) ** 0.5
    assert torch.equal(ids, sides.Given(row)[4]["input_ids"]) and not torch.equal(ids, batches[5]["input_ids"])


def test_a_causal_batch_asks_for_every_token():
    batch = sides.Given(CAUSAL)[0]
    assert torch.equal(batch["input_ids"], batch["labels"]) and batch["input_ids"].shape == (3, 19)


@pytest.mark.parametrize("row", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_a_side_gives_one_reading_per_step(row):
    ours, peer = sides.ours_step(row, 3), sides.peer_step(row, 3)
    assert len(ours["readings"]) == len(peer["readings"]) == 3
    assert (ours["dtype"], peer["dtype"], peer["attention"]) == ("fp32", "fp32", "sdpa")


def test_readings_are_taken_after_the_warm_up(monkeypatch):
    def trained(model, batches, objective, settings):
        history = [{"step": k, "seconds": 2.0 ** k} for k in range(1, settings.steps + 1) if k % settings.log_every == 0]
        return type("R", (), {"precision": "fp32", "history": history})
    monkeypatch.setattr(sides, "train", trained)
    assert sides.ours_step(MASKED, 3)["readings"] == [4.0, 8.0, 16.0]            # ends at 2, 4 (warm-up), 8, 16, 32


def test_memory_counts_the_state_of_training():
    found = sides.with_memory(sides.ours_step)(CAUSAL, 3)
    D, F, V = 36, 59, 1033
    parameters = V * D + 97 * D + 2 * (4 * (D * D + D) + D * F + F + F * D + D + 4 * D) + 2 * D
    assert found["state"] == 16 * parameters                                     # weight, gradient and two moments of 4 bytes
    assert len(found["readings"]) == 1 and found["readings"][0] > found["state"]


def test_both_sides_generate_as_many_tokens():
    row = tiny("generate", config=GPT2, head="causal", batch=1, length=16)
    assert len(sides.ours_generate(row, 2)["readings"]) == len(sides.peer_generate(row, 2)["readings"]) == 2
    with pytest.raises(AssertionError):                                          # a side that stopped early would look fast
        sides.timed(row, lambda: torch.zeros(1, 70), 1)


# ---- turns, medians, ratios -----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def planted(monkeypatch):
    """Children that return planted readings, in the order they are asked."""
    asked = []
    readings = {"ours": iter([[1.0, 9.0], [2.0, 2.5], [2.0, 30.0]]), "peer": iter([[4.0], [6.0], [100.0]])}

    def child(row, side, threads, quick, nanogpt):
        asked.append(side)
        return {"readings": next(readings[side]), "dtype": "bf16" if side == "ours" else "fp32", "versions": {side: "1"}, "loss": 1.5}

    monkeypatch.setattr(compare, "child", child)
    return asked


def test_sides_take_turns_and_medians_are_compared(planted):
    line = compare.compare(tiny())
    assert planted == ["ours", "peer"] * 3
    assert (line["ours"], line["peer"], line["ratio"]) == (2.25, 6.0, 6.0 / 2.25)
    assert (line["ratio_is"], line["bar"], line["holds"]) == ("peer / ours", ">= 2.0", True)
    assert line["dtype"] == {"ours": "bf16", "peer": "fp32"} and line["readings"] == {"ours": 6, "peer": 3} and line["range"]["peer"] == [4.0, 100.0]
    assert {"name", "unit", "threads", "versions", "cpu"} <= line.keys() and line["versions"] == {"ours": "1", "peer": "1"}


@pytest.mark.parametrize(("minimum", "bar", "ratio", "holds"), [(True, 2.7, 6.0 / 2.25, False), (False, 0.4, 2.25 / 6.0, True), (False, 0.3, 2.25 / 6.0, False)])
def test_the_bar_is_a_minimum_or_a_maximum(planted, minimum, bar, ratio, holds):
    line = compare.compare(tiny(minimum=minimum, bar=bar))
    assert (line["ratio"], line["holds"]) == (ratio, holds)


def test_without_a_peer_there_is_no_ratio(planted):
    line = compare.compare(tiny("characters"))
    assert planted == ["ours"] * 3 and (line["ours"], line["peer"], line["ratio"], line["holds"]) == (2.25, None, None, None)


@pytest.mark.slow
def test_a_side_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)bench.side tiny peer 1 --quick failed with.*invalid choice: 'tiny'"):
        compare.child(tiny(), "peer", 1, True, None)


def test_results_of_a_machine_are_merged(planted, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(compare, "cpu_name", lambda: "Some CPU @ 3.00GHz, 2 cores")
    path = compare.write([{"name": "a", "ours": 1}, {"name": "b", "ours": 2}])
    assert compare.write([{"name": "b", "ours": 3}]) == path == tmp_path / "results/some-cpu-3-00ghz-2-cores.json"
    assert json.loads(path.read_text()) == {"a": {"name": "a", "ours": 1}, "b": {"name": "b", "ours": 3}}


@pytest.mark.slow
def test_a_row_from_end_to_end(capsys):
    returned = run(["import"], quick=True)
    line = json.loads(capsys.readouterr().out)
    assert [line] == returned
    assert line["name"] == "import" and line["unit"] == "s" and line["quick"] and line["ratio"] == line["ours"] / line["peer"]
    assert line["versions"]["torch"] == torch.__version__ and line["readings"] == {"ours": 1, "peer": 1}


# ---- characters -----------------------------------------------------------------------------------------------------------------------------------

def test_windows_predict_every_token_once():
    batches = characters.Windows(np.arange(38, dtype=np.uint16), 7, 2)
    targets = torch.cat([batches[k]["input_ids"][:, 1:].flatten() for k in range(len(batches))])
    assert targets.tolist() == list(range(1, 36))                                # the last two fill no window


def test_the_text_is_split_as_the_peer_splits_it(data, monkeypatch):
    monkeypatch.setenv("MINITRANSFER_DATA", str(data))
    training, held_out, known = characters.tinyshakespeare()
    assert (len(training), len(held_out), len(known)) == (1_003_854, 111_540, 65)     # what nanoGPT's readme prints
    assert "".join(known[i] for i in training[:14]) == "First Citizen:"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A stand-in for nanoGPT that prints its words and lines like those of the real one; and a text to train on."""
    folder = tmp_path / "clone"
    (folder / "config").mkdir(parents=True)
    for name in characters.FILES:
        (folder / name).touch()
    (folder / "train.py").write_text("import os, sys\nprint('step 0: train loss 4.2, val loss 4.25')\nprint('iter 0: loss 4.2, time 500.00ms, mfu -100.00%')\n"
                                     "print('iter 1: loss 4.0, time 250.00ms, mfu -100.00%')\nprint('step 250: train loss 1.8, val loss 1.95')\n"
                                     "print('step 500: train loss 1.8, val loss 2.05')\n"
                                     "assert '--max_iters=2' in sys.argv and '--block_size=64' in sys.argv and os.path.getsize('data/shakespeare_char/val.bin') == 2 * 1000\n"
                                     "import torch\nos.mkdir('out')\n"
                                     "torch.save({'model': {'logits': torch.tensor([2.0, 0, 0, 0, 0])}, 'model_args': {'n': 5}}, 'out/ckpt.pt')\n")
    (folder / "model.py").write_text("import torch\nclass GPTConfig:\n    def __init__(self, n): self.n = n\n"
                                     "class GPT(torch.nn.Module):\n"
                                     "    def __init__(self, c):\n        super().__init__()\n        self.logits = torch.nn.Parameter(torch.zeros(c.n))\n"
                                     "    def forward(self, ids, targets):\n"
                                     "        return None, torch.nn.functional.cross_entropy(self.logits.expand(*ids.shape, -1).flatten(0, 1), targets.flatten())\n")
    (tmp_path / "data/tinyshakespeare").mkdir(parents=True)
    (tmp_path / "data/tinyshakespeare/input.txt").write_text("abcde" * 2000)
    monkeypatch.setenv("MINITRANSFER_DATA", str(tmp_path / "data"))
    return folder


@pytest.mark.slow
def test_the_peer_is_timed_by_its_own_clock(clone):
    found = characters.peer_characters(ROWS["characters"], 2, clone)
    windows = 15                                                                 # of 64 predictions each in 1,000 letters; the first target is "b"
    a = sum(i % 5 == 0 for i in range(1, 64 * windows + 1)) / (64 * windows)
    assert found.pop("loss") == pytest.approx(math.log(math.exp(2) + 4) - 2 * a, rel=1e-6)     # of the weights it saved, on every window
    assert found == {"readings": [0.75], "dtype": "fp32", "loss_printed": 1.95, "steps": 2}


@pytest.mark.slow
def test_our_characters_train(data, monkeypatch):
    monkeypatch.setenv("MINITRANSFER_DATA", str(data))
    monkeypatch.setattr(characters, "EVALUATION_BATCHES", 2)
    found = characters.ours_characters(ROWS["characters"], 12)
    assert found["steps"] == 12 and len(found["readings"]) == 1 and 2.5 < found["loss"] < 3.8     # ln 65 = 4.17 before training


# ---- what a user may get wrong --------------------------------------------------------------------------------------------------------------------

def test_a_row_that_does_not_exist():
    with pytest.raises(KeyError, match=r"no row 'masked-bas' \(did you mean 'masked-base'\?\); there are masked-small-fp32"):
        run(["masked-bas"])


def test_a_peer_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"transformers is not installed; .*: pip install"):
        run(["masked-base"])


def test_a_folder_that_is_no_clone(clone):
    (clone / "configurator.py").unlink()
    with pytest.raises(ValueError, match=r"has no configurator.py; .*--nanogpt"):
        run(["characters"], nanogpt=clone)


def test_characters_without_their_text(monkeypatch):
    monkeypatch.delenv("MINITRANSFER_DATA", raising=False)
    with pytest.raises(ValueError, match=r"MINITRANSFER_DATA names no folder .*: set the variable"):
        run(["characters"])
    assert "characters" not in {row.name for row in compare.check(list(ROWS.values()), False, None)}      # not asked for by name: left out


def test_a_quick_run_is_not_kept():
    with pytest.raises(ValueError, match="one reading is no measurement"):
        run(["import"], quick=True, save=True)
