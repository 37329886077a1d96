"""Where checkpoints come from: a folder, a bundled name, the hub; and what is said when it is none of them."""
import socket

import pytest

import minitransfer as mt
from minitransfer.weights import sources
from minitransfer.weights.sources import bundled, resolve
from tests.unit.tiny import bert, moved


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A folder of bundled checkpoints with one in it, and a checkpoint beside it that is not bundled."""
    for name in ("checkpoints/mini", "outside"):
        moved(mt.Model(bert())).save_pretrained(tmp_path / name)
    (tmp_path / "checkpoints/__pycache__").mkdir()          # pip compiles the script that lies there: no checkpoint
    (tmp_path / "else" / "where").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else" / "where")
    monkeypatch.setattr(sources, "bundled", lambda: tmp_path / "checkpoints")
    return tmp_path


def test_a_folder(checkpoints, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoints))
    monkeypatch.chdir(checkpoints)
    for source in (checkpoints / "outside", str(checkpoints / "outside"), "outside", "./outside", "~/outside", "checkpoints/../outside"):
        assert resolve(source).samefile(checkpoints / "outside")


def test_a_bundled_name(checkpoints):
    assert resolve("mini") == checkpoints / "checkpoints" / "mini"
    model = mt.Model.from_pretrained("mini")
    assert model.load_report.source == "mini" and str(model.load_report).startswith("mini: 39 parameters loaded")


def test_a_folder_comes_before_a_bundled_name(checkpoints):
    moved(mt.Model(bert(), "masked")).save_pretrained("mini")
    assert mt.Model.from_pretrained("mini").head_name == "masked"


def test_bundled_checkpoints_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    package = tmp_path / "minitransfer"
    (package / "weights").mkdir(parents=True)
    monkeypatch.setattr(sources, "__file__", str(package / "weights" / "sources.py"))
    assert bundled() == tmp_path / "checkpoints"
    (package / "checkpoints").mkdir()
    assert bundled() == package / "checkpoints"


@pytest.mark.parametrize("source, message", [
    ("../outside", r"no folder \.\./outside; needed is a folder, a bundled name \(mini\) or a hub id: check the path"),
    ("mini/../../outside", "no folder mini/../../outside"), ("mini/../mini", "no folder mini/../mini"), ("mini/..", r"no folder mini/\.\."), ("..", "no config.json in"),
    (".mini", "no folder .mini"), ("/no/such/folder", "no folder /no/such/folder"), ("a/b/c", "no folder a/b/c"), ("~nobody-here/x", "no folder ~nobody-here/x"),
    ("", "an empty source; needed is a folder"),
    ("with space", "no folder with space"), ("name--with--dashes", r"is called 'name--with--dashes', and it cannot be a hub id \(.*\): check the path"),
])
def test_neither_folder_nor_name_nor_id(checkpoints, source, message):
    with pytest.raises(ValueError, match=message):
        mt.Model.from_pretrained(source)


def test_a_file_instead_of_its_folder(checkpoints):
    path = checkpoints / "outside" / "model.safetensors"
    with pytest.raises(ValueError, match=r"model.safetensors is a file; a checkpoint is a folder with config.json and model.safetensors: give its folder"):
        mt.Model.from_pretrained(path)


@pytest.mark.parametrize("source", ["google-bert/bert-base-uncased", "gpt2", "minii"])
def test_offline_and_not_in_the_cache(checkpoints, source, monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(checkpoints / "cache"))
    with pytest.raises(ValueError, match=rf"'{source}' is no folder and no bundled checkpoint \(mini\), is not in the hub's cache, and the hub cannot be reached \(.*\): "
                                         r"give a local folder, or connect once to fetch it \(unset HF_HUB_OFFLINE if it is set\)"):
        mt.Model.from_pretrained(source)


def test_in_the_hubs_cache(checkpoints, monkeypatch):
    """A snapshot as the hub's library lays it out: links into blobs, a reference that names the commit."""
    import huggingface_hub.constants
    cache, commit = checkpoints / "cache", "a" * 40
    repo = cache / "models--someone--tiny"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "refs" / "v2").write_text(commit)
    for number, path in enumerate((checkpoints / "outside").iterdir()):
        path.rename(repo / "blobs" / str(number))
        (repo / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for revision in (None, "v2", commit):
        assert mt.Model.from_pretrained("someone/tiny", revision=revision).load_report.source == "someone/tiny"
    with pytest.raises(ValueError, match="is not in the hub's cache"):
        mt.Model.from_pretrained("someone/tiny", revision="v3")


@pytest.mark.parametrize("kind, message", [
    ("RevisionNotFoundError", r"the hub has no revision 'v9' of someone/tiny; needed is a branch, tag or commit of it: look at the model's page"),
    ("RepositoryNotFoundError", r"no folder, no bundled checkpoint \(mini\) and no model on the hub is called 'someone/tiny': check the spelling, or log in"),
    ("HfHubHTTPError", r"is not in the hub's cache, and the hub cannot be reached \(HfHubHTTPError\)"),
])
def test_what_the_hub_answers(checkpoints, kind, message, monkeypatch):
    import huggingface_hub
    error = getattr(huggingface_hub.errors, kind)

    def answer(*args, **more):
        raise error.__new__(error)                               # its constructor wants a response of whichever client the hub's library uses
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(ValueError, match=message):
        mt.Model.from_pretrained("someone/tiny", revision="v9")


def test_only_what_is_needed_is_fetched(checkpoints, monkeypatch):
    import huggingface_hub
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda source, **more: asked.update(more, source=source) or str(checkpoints / "outside"))
    assert resolve("someone/tiny", "v2") == checkpoints / "outside"
    assert asked["source"] == "someone/tiny" and asked["revision"] == "v2"
    assert not any(pattern.endswith((".bin", ".py", ".pt", ".msgpack")) for pattern in asked["allow_patterns"])


def test_the_network_is_never_asked_offline(checkpoints, monkeypatch):
    asked = []

    def refuse(*args, **more):
        asked.append(args)
        raise OSError("no network")
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for source in ("google-bert/bert-base-uncased", "gpt2"):
        with pytest.raises(ValueError, match="is not in the hub's cache"):
            mt.Model.from_pretrained(source)
    assert not asked
