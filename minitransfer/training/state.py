"""What a run needs to go on: the parameters it trains, the optimizer's moments, a page of JSON. Randomness and data are functions of (seed, number of the batch)."""
from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..nn.model import Model
from ..weights.files import read_json, recover, write_json
from . import ranks
from .settings import FREE, TrainSettings

PARAMETERS, MOMENTS, STATE = "parameters.safetensors", "optimizer.safetensors", "train_state.json"
Save = Callable[[Model, Path], None]


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0                       # optimizer steps done
    tokens: int = 0                     # tokens read, padding not counted
    seconds: float = 0.0                # of the clock
    evaluated: int = -1                 # the step of the last evaluation
    waited: int = 0                     # evaluations since the best one
    best: dict | None = None            # its step, metric, direction and value

    def used(self) -> tuple[int, int, float]:
        """In the order of the limits of a Horizon."""
        return self.step, self.tokens, self.seconds


def trained_parameters(model: nn.Module, groups: list[dict]) -> dict[str, nn.Parameter]:
    """The parameters in the groups, by the model's names for them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: p for group in groups for p in group["params"]}


def identity(model: nn.Module, trained: dict[str, nn.Parameter], settings: TrainSettings, precision: str, data: dict[str, str]) -> dict[str, dict]:
    """What has to be equal for a run to go on as if it had never stopped."""
    frozen = hashlib.sha256()
    for name, p in model.named_parameters():
        if name not in trained:
            frozen.update(name.encode() + ranks.full(p.detach()).cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"setting": {name: value for name, value in settings.to_dict().items() if name not in FREE} | {"precision": precision},
            "data": data, "shape of": {name: list(p.shape) for name, p in trained.items()}, "weights": {"frozen": frozen.hexdigest()[:16]}}


def differences(before: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """One line for each thing that is not as it was."""
    return [f"{kind} {name}: {was.get(name, 'absent')} then, {now.get(kind, {}).get(name, 'absent')} now"
            for kind, was in before.items() for name in sorted({*was, *now.get(kind, {})}) if was.get(name) != now.get(kind, {}).get(name)]


class SaveError(ValueError):
    """A save could not be written; the one before it is as it was."""


@contextmanager
def explained_save(folder: Path, step: int) -> Iterator[None]:
    """A full disk, said plainly."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, ValueError) else error      # save_pretrained answers a full disk with a ValueError of its own
        if not isinstance(cause, OSError | SafetensorError):
            raise
        before = f"the previous save in {folder} is intact" if folder.exists() else "nothing was saved there before"
        raise SaveError(f"step {step} could not be saved in {folder} ({cause}); a save needs room beside the previous one, and {before}: "
                        "free some space and go on with resume=True") from error


def save_parameters(values: dict[str, Tensor], folder: Path) -> None:
    save_file(values, folder / PARAMETERS)


def load_parameters(trained: dict[str, nn.Parameter], folder: Path) -> None:
    """Fill the parameters from `folder`, every one of them."""
    with explained_load(folder), torch.no_grad():
        for name, value in read_tensors(folder / PARAMETERS):
            trained[name].copy_(ranks.part_of(value, trained[name]))


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file with their names, one after the other; the first rank reads them for all."""
    file: Any = safe_open(path, "pt") if ranks.first() else None

    def read(name: str) -> Tensor:
        return file.get_tensor(name)
    for name in ranks.from_first(lambda: list(file.keys())):
        yield name, ranks.from_first(functools.partial(read, name))


@contextmanager
def explained_load(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the save in {folder} cannot be read ({error}); a save is written whole or not at all, so these files were changed since: "
                         "restore them, or start a new run in another folder") from error


def moments_of(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, p in trained.items() for key, value in optimizer.state[p].items()}


def save_state(values: dict[str, Tensor], moments: dict[str, Tensor], scaler: torch.amp.GradScaler, progress: Progress, whole: dict[str, dict], folder: Path) -> None:
    """Write what the run goes on from: tensors under the model's own names, whatever adapters are in it. The model beside them is for users."""
    save_parameters(values, folder)
    save_file(moments, folder / MOMENTS)
    write_json(folder / STATE, {"progress": asdict(progress), "scaler": scaler.state_dict(), "run": whole})


def load_state(folder: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
               whole: dict[str, dict]) -> Progress | None:
    """Put a save back. Returns: how far it was; None if there is no save.

    Raises: ValueError that lists what differs, if this is another run than the one that was saved, or if the save's files were damaged.
    """
    state = ranks.from_first(lambda: read_json(folder / STATE) if recover(folder).exists() else None)
    if state is None:
        return None
    if faults := differences(state["run"], whole):
        raise ValueError(f"the run in {folder.parent} was another one; to go on, everything has to be as it was: give what it had, or start a new "
                         "run in another folder:\n  " + "\n  ".join(faults))
    load_parameters(trained, folder)
    with explained_load(folder):
        put_moments(optimizer, trained, read_tensors(folder / MOMENTS))
    scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


def put_moments(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter], moments: Iterable[tuple[str, Tensor]]) -> None:
    """Give the optimizer its state back, by name; it numbers parameters in the order of its groups."""
    number, state = {name: i for i, name in enumerate(trained)}, dict[int, dict[str, Tensor]]()
    for key, value in moments:
        name, _, moment = key.rpartition(".")
        p = trained[name]
        state.setdefault(number[name], {})[moment] = ranks.part_of(value, p) if value.shape == p.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
