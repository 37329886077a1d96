"""Where a checkpoint comes from: a folder, a name under checkpoints/, or an id on the hub."""
from __future__ import annotations

import os
import re
from pathlib import Path

from .files import recover

PATTERNS = ("*.json", "*.safetensors", "vocab.txt", "merges.txt")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def bundled() -> Path:
    """The folder of the checkpoints that come with the project: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def resolve(source: str | Path, revision: str | None = None, patterns: tuple[str, ...] = PATTERNS) -> Path:
    """The local folder that holds `source`.

    Args:   source: a folder, a name under checkpoints/, or a hub id such as "google-bert/bert-base-uncased" (fetched once, then from the cache;
            with HF_HUB_OFFLINE=1 from the cache only); revision: a branch, tag or commit of the hub; patterns: the files wanted from the hub.
    Raises: ValueError if there is no such folder, name or id, or the hub cannot be reached.
    """
    names = sorted(path.parent.name for path in bundled().glob("*/config.json"))
    if not str(source):
        raise ValueError(f"an empty source; needed is a folder, a bundled name ({', '.join(names) or 'none'}) or a hub id: give one of these")
    folder = recover(Path(os.path.expanduser(source)))      # not Path.expanduser: an unknown ~user is a name like any other
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a checkpoint is a folder with config.json and model.safetensors: give its folder")
    if str(source) in names:
        return bundled() / str(source)
    if not HUB_ID.fullmatch(str(source)):
        raise ValueError(f"no folder {source}; needed is a folder, a bundled name ({', '.join(names) or 'none'}) or a hub id: check the path")
    return from_hub(str(source), revision, patterns, names)


def from_hub(source: str, revision: str | None, patterns: tuple[str, ...], names: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as e:
        raise ValueError(f"no folder and no bundled checkpoint ({', '.join(names) or 'none'}) is called {source!r}, and it cannot be a hub id ({e}): "
                         "check the path") from None
    except RevisionNotFoundError:
        raise ValueError(f"the hub has no revision {revision!r} of {source}; needed is a branch, tag or commit of it: look at the model's page") from None
    except RepositoryNotFoundError:
        raise ValueError(f"no folder, no bundled checkpoint ({', '.join(names) or 'none'}) and no model on the hub is called {source!r}: check the "
                         "spelling, or log in with `hf auth login` if it is private") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as e:
        raise ValueError(f"{source!r} is no folder and no bundled checkpoint ({', '.join(names) or 'none'}), is not in the hub's cache, and the hub "
                         f"cannot be reached ({type(e).__name__}): give a local folder, or connect once to fetch it (unset HF_HUB_OFFLINE if it is set)") from None
