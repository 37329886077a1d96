"""Stopped or killed anywhere, a run that goes on ends with the bits of one that never stopped."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minitransfer.objectives import Causal
from minitransfer.training import train
from minitransfer.training.state import SaveError

from .small import Listed, batches, gpt, same, settings, weights


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict:
    """What became of the runs that were killed; one process starts them all."""
    parts, folder = ("steps", "full", "save", "moments"), tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, "-m", "tests.train.killed_runs", str(folder), *parts], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for one in [one for name in parts for one in (found[name] if isinstance(found[name], list) else [found[name]])]:
        assert (one["ended"], one["differs"], one["log"]) == (0, [], found["log"]), one
    return found


@pytest.mark.slow
def test_killed_after_five_random_steps_and_on_a_full_disk(killed):
    steps, full = killed["steps"], killed["full"]
    assert [one["killed"] for one in steps] == [-9] * 5
    assert sorted(one["saved"] for one in steps) == sorted((one["at"] - 1) // 4 * 4 for one in steps)    # from before the save, and mid-epoch
    assert full["error"]["kind"] == "SaveError" and full["saved"] == 4 and full["leftovers"] == []
    assert "step 8 could not be saved" in full["error"]["message"] and "is intact: free some space and go on with resume=True" in full["error"]["message"]


@pytest.mark.slow
def test_killed_at_every_file_operation_of_a_save(killed):
    found = killed["save"]
    assert [one["killed"] for one in found] == [-9] * (len(found) - 1) + [0] and len(found) > 30
    assert {one["saved"] for one in found[:-1]} == {4, 8}                         # the save before or the new one, never none


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(killed):
    assert len(killed["moments"]) == 3


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    out, model = tmp_path / "run", gpt()
    train(model, batches(), Causal(), settings(4), out=out)
    files = {path.name: path.read_bytes() for path in (out / "last").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minitransfer.training.state.save_file", full)
    with pytest.raises(SaveError, match=r"step 2 could not be saved in .*No space left on device.*nothing was saved there before"):
        train(gpt(), batches(), Causal(), settings(4, save_every=2), out=tmp_path / "new")
    with pytest.raises(ValueError, match=r"already holds a run.*pass resume=True"):
        train(gpt(), batches(), Causal(), settings(4), out=out)
    assert {path.name: path.read_bytes() for path in (out / "last").iterdir()} == files


def test_a_log_that_does_not_fit_and_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minitransfer.training.log.RunLog.write", full)
    with pytest.raises(SaveError, match=r"step 4 could not be saved in .*last \(.*No space left on device.*the previous save in .*last is intact"):
        train(gpt(), batches(), Causal(), settings(9, save_every=2, log_every=4), out=tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match=r"the folder .*file/run cannot be made or written \(.*file is a file, a folder is needed\); .*: choose another out"):
        train(gpt(), batches(), Causal(), settings(), out=tmp_path / "file" / "run")


def test_muon_goes_on_with_the_same_bits(tmp_path):
    whole, model, chosen = gpt(), gpt(), settings(5, optimizer="muon", save_every=2)

    def stop(record):
        if record["step"] == 3:
            raise InterruptedError

    train(whole, batches(), Causal(), chosen)
    with pytest.raises(InterruptedError):
        train(model, batches(), Causal(), chosen, out=tmp_path, on_step=stop)
    train(model := gpt(seed=5), batches(), Causal(), chosen, out=tmp_path, resume=True)
    assert same(weights(model), weights(whole))


def test_ctrl_c_before_the_first_step(tmp_path, ctrl_c):
    whole, model = gpt(), gpt()
    train(whole, batches(), Causal(), settings(3))

    class Pressing(Listed):
        def __getitem__(self, k):
            if not pressed:
                pressed.append(k)
                ctrl_c()
            return super().__getitem__(k)

    pressed: list[int] = []
    with pytest.raises(KeyboardInterrupt):                                       # not yet training: as always
        train(model, Pressing(batches().batches), Causal(), settings(3), out=tmp_path / "run")
    assert train(model, batches(), Causal(), settings(3), out=tmp_path / "run", resume=True).steps == 3
    assert same(weights(model), weights(whole))


def test_a_fault_of_the_user_s_own_save_is_not_called_a_full_disk(tmp_path):
    def save(model, folder):
        raise ValueError("a fault of its own")

    with pytest.raises(ValueError, match=r"^a fault of its own$"):
        train(gpt(), batches(), Causal(), settings(4, save_every=2), out=tmp_path / "run", save=save)


def test_a_finished_run_is_only_opened_again(tmp_path):
    values = iter([2.0, 3.0])
    model, again = gpt(), gpt(seed=5)
    first = train(model, batches(), Causal(), settings(6, eval_every=3, best="loss lower"), out=tmp_path, evaluate=lambda model: {"loss": next(values)})
    second = train(again, batches(), Causal(), settings(6, eval_every=3, best="loss lower"), out=tmp_path, evaluate=lambda model: {"loss": 0.0}, resume=True)
    assert same(weights(model), weights(again)) and second.best == first.best and second.metrics == first.metrics == {"loss": 3.0}
    assert [one for one in second.history if "evaluation" in one] == [one for one in first.history if "evaluation" in one]


def test_resume_without_a_save_begins_at_the_beginning(tmp_path):
    model, whole = gpt(), gpt()
    assert train(model, batches(), Causal(), settings(3), out=tmp_path / "run", resume=True).steps == 3
    train(whole, batches(), Causal(), settings(3))
    assert same(weights(model), weights(whole))


def stopped_run(out: Path) -> None:
    model = gpt()
    model.embed.requires_grad_(False)
    train(model, batches(), Causal(), settings(4), out=out, data={"corpus": "abc"})


@pytest.mark.parametrize(("change", "message"), [
    ({"lr": 0.5}, "setting lr: 0.01 then, 0.5 now"),
    ({"seed": 1, "schedule": "cosine"}, "(?s)setting schedule: linear then, cosine now.*setting seed: 0 then, 1 now"),
    ({"precision": "bf16"}, "setting precision: fp32 then, bf16 now"),
])
def test_going_on_with_other_settings_is_an_error_that_names_them(tmp_path, change, message):
    stopped_run(tmp_path)
    model = gpt()
    model.embed.requires_grad_(False)
    with pytest.raises(ValueError, match=f"(?s)was another one; to go on, everything has to be as it was.*{message.removeprefix('(?s)')}"):
        train(model, batches(), Causal(), settings(4, **change), out=tmp_path, data={"corpus": "abc"}, resume=True)


def test_going_on_with_other_data_or_weights_is_an_error_that_names_them(tmp_path):
    stopped_run(tmp_path)
    model = gpt()
    model.embed.requires_grad_(False)
    with pytest.raises(ValueError, match=r"data batches: .* then, .* now"):
        train(model, batches(seed=1), Causal(), settings(4), out=tmp_path, data={"corpus": "abc"}, resume=True)
    with pytest.raises(ValueError, match="data corpus: abc then, absent now"):
        train(model, batches(), Causal(), settings(4), out=tmp_path, resume=True)
    with torch.no_grad():
        model.embed.tokens.weight[3, 4] += 1e-6
    with pytest.raises(ValueError, match="weights frozen: "):
        train(model, batches(), Causal(), settings(4), out=tmp_path, data={"corpus": "abc"}, resume=True)
    with pytest.raises(ValueError, match=r"(?s)shape of embed.positions.weight: absent then.*weights frozen"):
        train(gpt(), batches(), Causal(), settings(4), out=tmp_path, data={"corpus": "abc"}, resume=True)


def test_settings_that_move_no_number_may_change(tmp_path):
    stopped_run(tmp_path)
    model = gpt()
    model.embed.requires_grad_(False)
    free = settings(4, checkpointing=True, save_every=1, log_every=2)
    assert train(model, batches(), Causal(), free, out=tmp_path, data={"corpus": "abc"}, resume=True).steps == 4


@pytest.mark.parametrize("file", ["parameters.safetensors", "optimizer.safetensors"])
def test_a_damaged_save_is_refused(tmp_path, file):
    stopped_run(tmp_path)
    path = tmp_path / "last" / file
    path.write_bytes(path.read_bytes()[:-7])
    model = gpt()
    model.embed.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the save in .* cannot be read .*these files were changed since"):
        train(model, batches(), Causal(), settings(4), out=tmp_path, data={"corpus": "abc"}, resume=True)


def test_the_state_is_json_and_safetensors_and_nothing_else(tmp_path):
    stopped_run(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".jsonl", ".safetensors"}
