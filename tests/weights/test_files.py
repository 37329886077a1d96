"""Saves are whole or absent: after an error, a full disk or a kill at any moment, what a later run sees is one save or the other."""
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

import minitransfer as mt
from minitransfer.weights import files
from minitransfer.weights.files import recover, replace_files, write_aside
from tests.unit.tiny import bert, moved


def contents(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(folder, texts: dict) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# ---- write_aside: a folder of our own ---------------------------------------------------------------------------------------------------------------

def test_write_aside_swaps_the_whole_folder(tmp_path):
    for texts in ({"a": "1", "b": "1"}, {"b": "2", "sub/c": "2"}):
        with write_aside(tmp_path / "deep" / "save") as new:
            assert not any(new.iterdir())
            write(new, texts)
        assert contents(tmp_path / "deep") == {f"save/{name}": text for name, text in texts.items()}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["error", "ctrl-c", "full disk"])
@pytest.mark.parametrize("writer", [write_aside, replace_files])
def test_an_error_inside_leaves_the_folder_as_it_was(writer, error, tmp_path):
    write(tmp_path / "save", {"a": "1"})
    with pytest.raises(type(error)), writer(tmp_path / "save") as new:
        write(new, {"a": "2"})
        raise error
    assert contents(tmp_path) == {"save/a": "1"}
    with pytest.raises(type(error)), writer(tmp_path / "fresh"):
        raise error
    assert not (tmp_path / "fresh").exists() and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link(tmp_path):
    write(tmp_path / "disk", {"a": "1"})
    (tmp_path / "save").symlink_to(tmp_path / "disk")
    for writer, text in ((write_aside, "2"), (replace_files, "3")):
        with writer(tmp_path / "save") as new:
            write(new, {"a": text})
        assert (tmp_path / "save").is_symlink() and contents(tmp_path / "disk") == {"a": text}


def test_replace_files_stays_inside_its_folder(tmp_path, monkeypatch):
    """A folder that is the root of a disk: nothing can be moved there from outside, and nothing be made beside it."""
    write(tmp_path / "disk", {"a": "1"})
    real = os.replace

    def within(a, b):
        assert str(a).startswith(str(tmp_path / "disk")) and str(b).startswith(str(tmp_path / "disk"))
        real(a, b)
    monkeypatch.setattr(os, "replace", within)
    with replace_files(tmp_path / "disk") as new:
        assert new.parent == tmp_path / "disk" and os.listdir(tmp_path) == ["disk"]
        write(new, {"a": "2"})
    assert contents(tmp_path) == {"disk/a": "2"}


@pytest.mark.parametrize("writer", [write_aside, replace_files])
def test_a_file_is_no_folder(writer, tmp_path):
    (tmp_path / "save").write_text("mine")
    with pytest.raises(NotADirectoryError, match="save is a file, a folder is needed"), writer(tmp_path / "save"):
        pass
    assert contents(tmp_path) == {"save": "mine"}


# ---- replace_files: beside the user's own ------------------------------------------------------------------------------------------------------------

def test_replace_files_leaves_the_others(tmp_path):
    write(tmp_path / "save", {"notes.txt": "mine", "a": "1", "sub/old": "1", "model-1": "1", "model-2": "1"})
    with replace_files(tmp_path / "save", stale=("model-*",)) as new:
        write(new, {"a": "2", "sub/new": "2", "model-1": "2"})
    assert contents(tmp_path) == {f"save/{name}": text for name, text in {"notes.txt": "mine", "a": "2", "sub/new": "2", "model-1": "2"}.items()}


# ---- killed at any moment ----------------------------------------------------------------------------------------------------------------------------

KILLED = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", sys.argv[4])      # the module alone: a process without torch starts at once
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
folder, writer, limit = Path(sys.argv[1]), getattr(files, sys.argv[2]), int(sys.argv[3])
steps = 0
def counted(name):
    real = getattr(os, name)
    def call(*args, **more):
        global steps
        if steps == limit:
            os._exit(9)            # as by kill -9: no handler and no finally runs
        steps += 1
        return real(*args, **more)
    setattr(os, name, call)
for name in ("rename", "replace", "unlink", "rmdir", "fsync", "mkdir"):
    counted(name)
with (writer(folder) if writer is files.write_aside else writer(folder, ("old*",))) as new:
    for name in ("a", "b", "c"):
        (new / name).write_text("2")
os._exit(0)
"""


@pytest.mark.parametrize("writer", ["write_aside", "replace_files"])
def test_killed_at_every_step(writer, tmp_path):
    """The process dies before its n-th change to the disk, for every n: after `recover` there is the old save or the new one, and the next write works."""
    before, after = {"a": "1", "b": "1", "old": "1"}, {"a": "2", "b": "2", "c": "2"}
    seen = []
    for limit in itertools.count():
        folder = tmp_path / str(limit) / "save"
        write(folder, before)
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), writer, str(limit), files.__file__], check=False)
        assert done.returncode in (0, 9)
        assert recover(folder) == folder
        left_over = {name for name in contents(folder) if name.startswith(".new/")}          # nobody reads it, the next write removes it
        assert {name: text for name, text in contents(folder).items() if name not in left_over} in (before, after), limit
        seen.append("c" in contents(folder))
        with getattr(files, writer)(folder) as new:
            write(new, {"a": "3"})
        there = after if seen[-1] else before
        assert contents(folder) == ({} if writer == "write_aside" else there) | {"a": "3"}
        assert os.listdir(folder.parent) == ["save"]
        if done.returncode == 0:
            break
    assert seen == sorted(seen) and not seen[0] and seen[-1] and len(seen) > 8       # old saves first, then new ones: there is one moment of change


def test_a_save_cut_off_between_its_two_renames_is_loaded(tmp_path):
    moved(mt.Model(bert())).save_pretrained(tmp_path / "save")
    (tmp_path / "save").rename(tmp_path / ".save.old")
    (tmp_path / ".save.new").mkdir()
    assert mt.Model.from_pretrained(tmp_path / "save").head_name == "none"


def test_a_save_cut_off_among_its_moves_is_loaded_whole(tmp_path):
    """New config.json beside old weights would load without an error, and be wrong."""
    old, new = moved(mt.Model(bert(), "sequence", ["a", "b"]), seed=1), moved(mt.Model(bert(), "sequence", ["b", "a"]), seed=2)
    old.save_pretrained(tmp_path / "save")
    new.save_pretrained(tmp_path / "save" / ".ready")
    (tmp_path / "save" / ".ready" / "config.json").replace(tmp_path / "save" / "config.json")
    loaded = mt.Model.from_pretrained(tmp_path / "save")
    assert loaded.labels == ["b", "a"] and torch.equal(loaded.head.classifier.weight, new.head.classifier.weight)
    assert sorted(os.listdir(tmp_path / "save")) == ["config.json", "model.safetensors"]


# ---- save_pretrained -----------------------------------------------------------------------------------------------------------------------------

def test_saving_beside_other_files(tmp_path):
    write(tmp_path, {"notes.txt": "mine", "tokenizer.json": "{}", "sub/more": "mine"})
    model = moved(mt.Model(bert(), "masked"))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["config.json", "model.safetensors", "notes.txt", "sub/more", "tokenizer.json"]
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "sub/more").read_text() == "mine"


def test_saving_over_a_file(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ValueError, match=r"could not be written \(.*is a file, a folder is needed\); what was there before is unchanged: free some space, or"):
        mt.Model(bert()).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


FULL = """
import resource, sys
import minitransfer as mt
model = mt.Model.from_pretrained(sys.argv[1])
model.embed.norm.bias.data.add_(1)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit, shard in ((300, 10**9), (30_000, 10**9), (5_000, 20_000)):               # config.json, the weights, a shard do not fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))                        # no file may grow beyond this
    try:
        model.save_pretrained(sys.argv[1], max_shard_bytes=shard)
    except ValueError as e:
        print(e)
"""


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_there(tmp_path):
    moved(mt.Model(bert(), "masked")).save_pretrained(tmp_path / "save")
    before = {path.name: path.read_bytes() for path in (tmp_path / "save").iterdir()}
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "save")], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "could not be written" in line and "what was there before is unchanged: free some space, or choose another folder" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "save").iterdir()} == before and os.listdir(tmp_path) == ["save"]


def test_a_full_disk_found_out_when_flushing(tmp_path, monkeypatch):
    model = moved(mt.Model(bert()))
    model.save_pretrained(tmp_path / "save")
    before = json.loads((tmp_path / "save" / "config.json").read_text())

    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device.*; what was there before is unchanged"):
        model.resize_vocabulary(7).save_pretrained(tmp_path / "save")
    assert json.loads((tmp_path / "save" / "config.json").read_text()) == before and os.listdir(tmp_path) == ["save"]
