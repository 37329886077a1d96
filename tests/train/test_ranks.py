"""Processes that train together end with the weights, the metrics and the log of one process on the same steps: gloo on the CPU, started by `torchrun`."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minitransfer as mt

from .ranks_job import run

pytestmark = pytest.mark.slow           # whole processes

ROOT = Path(__file__).parents[2]
ALIKE = ("masked", "full", "lora", "ulmfit", "replaced", "span", "measured", "seen", "sharded")
Job = subprocess.CompletedProcess


def start(folder: Path, n: int, *cases: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "-m", "tests.train.ranks_job", str(folder), *cases]
    known = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(job: subprocess.Popen) -> Job:
    try:
        out, err = job.communicate(timeout=300)
    finally:
        if job.poll() is None:                                                   # a hang: the job's own session is ended, and the test fails
            os.killpg(job.pid, signal.SIGKILL)
    return Job(job.args, job.returncode, out, err)


def launched(folder: Path, n: int, *cases: str) -> Job:
    done = ended(start(folder, n, *cases))
    assert done.returncode == 0, done.stderr
    return done


def distance(folder: Path, case: str, other: str) -> float:
    """The largest difference between two sets of weights."""
    a, b = load_file(folder / f"{case}.safetensors"), load_file(folder / f"{other}.safetensors")
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def told(folder: Path, case: str) -> dict:
    return json.loads((folder / f"{case}.json").read_text())


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """All cases on one process, which is this one. What more processes give goes into the same folder."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for case in ALIKE:
            run(folder, case)
    return folder


@pytest.fixture(scope="module")
def two(one) -> Job:
    return launched(one, 2, *ALIKE, "masked in shards", "lora in shards", "first leg", "spoken")


@pytest.fixture(scope="module")
def four(one, two) -> Job:
    """One run of 12 steps wanders from two processes to one and to four."""
    run(one, "second leg")
    return launched(one, 4, "span", "measured", "seen", "third leg")


def test_no_row_is_left_out_or_seen_twice_in_an_epoch(one):
    check_rows(one, 1)


def check_rows(folder: Path, n: int) -> None:
    seen = Counter(map(tuple, told(folder, f"seen-{n}")["seen"]))
    assert {(epoch, row): times for (epoch, row), times in seen.items() if epoch < 2} == {(epoch, row): 1 for epoch in (0, 1) for row in range(31)}
    assert told(folder, f"seen-{n}")["messages"] == (0 if n == 1 else 6)         # one a step, of 4 / n batches on each process
    assert seen == Counter(map(tuple, told(folder, "seen-1")["seen"]))           # and the third epoch begins alike


def test_one_rank_talks_and_a_mistake_is_said_once(two):
    results = [json.loads(line) for line in two.stdout.splitlines() if line.startswith("{")]
    assert [one["steps"] for one in results] == [2]
    assert two.stderr.count("training a wordpiece tokenizer") == 1 and two.stderr.count("kept the weights of step") == 1
    assert two.stderr.count("micro_batches=3 on 2 processes; they share the batches of a step evenly") == 1
    assert "give micro_batches=4, with a smaller batch_size" in two.stderr


@pytest.mark.parametrize("case", ["masked", "lora"])
def test_shards_end_with_the_weights_of_replicas(one, two, case):
    assert distance(one, f"{case} in shards-2", f"{case}-2") <= 1e-6
    assert told(one, f"{case} in shards-2") == pytest.approx(told(one, f"{case}-2"), rel=1e-5)


def test_shards_go_on_as_replicas(one, two):
    assert distance(one, "sharded-2", "sharded-1") <= 1e-6
    assert told(one, "sharded-2")["evaluated"] == pytest.approx(told(one, "sharded-1")["evaluated"], rel=1e-5)


def test_what_shards_save_is_the_whole_model(one, two):
    saved = dict(mt.Model.from_pretrained(one / "shards-2" / "model").named_parameters())
    weights = load_file(one / "masked in shards-2.safetensors")
    assert saved.keys() == weights.keys() and all(torch.equal(saved[name], weights[name]) for name in weights)


@pytest.mark.parametrize("n", [2, 4])
def test_rows_are_shared_out_without_overlap(one, two, four, n):
    check_rows(one, n)


@pytest.mark.parametrize(("case", "n"), [(case, 2) for case in ALIKE if case not in ("measured", "seen", "sharded")] + [("span", 4)])
def test_weights_and_metrics_are_those_of_one_process(one, two, four, case, n):
    """Masks and dropout are drawn anew for each batch, ranks have unequal numbers of targets, and epochs end inside steps."""
    assert distance(one, f"{case}-{n}", f"{case}-1") <= 1e-6
    assert told(one, f"{case}-{n}") == pytest.approx(told(one, f"{case}-1"), rel=1e-5)


@pytest.mark.parametrize("n", [2, 4])
def test_held_out_metrics_are_the_same_numbers(one, two, four, n):
    alone, many = told(one, "measured-1"), told(one, f"measured-{n}")
    assert many == alone and {"sequence accuracy", "token entity_f1", "span exact", "similarity spearman"} <= alone.keys()


def test_a_run_goes_on_with_another_number_of_processes(one, four):
    legs, whole = [told(one, f"{name} leg-{n}") for name, n in (("first", 2), ("second", 1), ("third", 4))], told(one, "sharded-1")
    assert [leg["stopped"] for leg in legs] == ["interrupted", "interrupted", "steps"] and legs[0]["step"] < legs[1]["step"] < legs[2]["step"] == 12
    assert distance(one, "third leg-4", "sharded-1") <= 1e-6
    assert legs[2]["log"] == whole["log"] == list(range(1, 13)) and legs[2]["evaluated"] == pytest.approx(whole["evaluated"], rel=1e-5)
    assert [json.loads(line)["step"] for line in (one / "run" / "log.jsonl").read_text().splitlines() if "loss" in json.loads(line)] == list(range(1, 13))


def test_a_rank_that_fails_ends_the_job_and_says_why(tmp_path):
    done = ended(start(tmp_path, 2, "failing"))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("[rank") and "Error: " in line]
    assert errors == ["[rank1]: OSError: the disk of this machine is gone"]      # the other rank only lost its partner


def test_ranks_with_other_data_are_refused(tmp_path):
    done = ended(start(tmp_path, 2, "unequal"))
    assert done.returncode != 0 and "AssertionError" not in done.stderr
    assert "[rank1]: ValueError: this rank was given another run than the first" in done.stderr and "data batches: " in done.stderr


def test_ctrl_c_ends_all_ranks_with_a_save(tmp_path):
    job = start(tmp_path, 2, "slow")
    while job.poll() is None and not (tmp_path / "rank1-3").exists():
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGINT)
    assert ended(job).returncode != 0
    step = json.loads((tmp_path / "run" / "last" / "train_state.json").read_text())["progress"]["step"]
    assert step >= 3 and not (tmp_path / f"rank0-{step + 1}").exists() and not (tmp_path / f"rank1-{step + 1}").exists()
