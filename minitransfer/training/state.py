"""What a run needs to go on: the parameters it trains, the optimizer's moments, a page of JSON. Randomness and data are functions of (seed, step)."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..nn.model import Model
from ..weights.files import read_json, recover, write_aside, write_json
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
            frozen.update(name.encode() + p.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
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


def save_parameters(trained: dict[str, nn.Parameter], folder: Path) -> None:
    save_file({name: p.detach().cpu().contiguous() for name, p in trained.items()}, folder / PARAMETERS)


def load_parameters(trained: dict[str, nn.Parameter], folder: Path) -> None:
    """Fill the parameters from `folder`, every one of them."""
    with explained_load(folder):
        values = load_file(folder / PARAMETERS)
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(values[name])


@contextmanager
def explained_load(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the save in {folder} cannot be read ({error}); a save is written whole or not at all, so these files were changed since: "
                         "restore them, or start a new run in another folder") from error


def save_state(folder: Path, model: Model, save: Save, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer,
               scaler: torch.amp.GradScaler, progress: Progress, whole: dict[str, dict]) -> None:
    """Write a save that takes the place of the previous one as a whole.

    The files that `save` writes are for users; the run itself goes on from tensors under the model's own names, whatever adapters are in it.
    """
    moments = {f"{name}.{key}": value.detach().cpu().contiguous() for name, p in trained.items() for key, value in optimizer.state[p].items()}
    with explained_save(folder, progress.step), write_aside(folder) as aside:
        save(model, aside)
        save_parameters(trained, aside)
        save_file(moments, aside / MOMENTS)
        write_json(aside / STATE, {"progress": asdict(progress), "scaler": scaler.state_dict(), "run": whole})


def load_state(folder: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
               whole: dict[str, dict]) -> Progress | None:
    """Put a save back. Returns: how far it was; None if there is no save.

    Raises: ValueError that lists what differs, if this is another run than the one that was saved, or if the save's files were damaged.
    """
    if not recover(folder).exists():
        return None
    state = read_json(folder / STATE)
    if faults := differences(state["run"], whole):
        raise ValueError(f"the run in {folder.parent} was another one; to go on, everything has to be as it was: give what it had, or start a new "
                         "run in another folder:\n  " + "\n  ".join(faults))
    load_parameters(trained, folder)
    with explained_load(folder):
        moments = load_file(folder / MOMENTS)
    put_moments(optimizer, trained, moments)
    scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


def put_moments(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter], moments: dict[str, Tensor]) -> None:
    """Give the optimizer its state back, by name; it numbers parameters in the order of its groups."""
    state: dict[int, dict[str, Tensor]] = {}
    for number, name in enumerate(trained):
        if own := {key.removeprefix(f"{name}."): value for key, value in moments.items() if key.rpartition(".")[0] == name}:
            state[number] = own
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
