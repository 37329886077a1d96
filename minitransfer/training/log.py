"""What a run leaves to read: log.jsonl, one line per reading, and manifest.json, what the run was."""
from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..nn.model import Model
from ..transfer.fingerprint import SAMPLE
from ..weights.files import read_json, write_json
from .ranks import full, world
from .settings import TrainSettings

PACKAGES = ("minitransfer", "torch", "numpy", "tokenizers", "safetensors")


def finite_only(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null."""
    if isinstance(value, dict):
        return {key: finite_only(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path: Path) -> list[dict]:
    """The records of a log; a last line that a kill cut off is dropped. Raises: ValueError for any other line that is no record."""
    records, lines = [], path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:                                                       # no JSON, or not even text
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("evaluation", {}), dict):
            records.append(record)
        elif number < len(lines) or record is not None:
            raise ValueError(f"line {number} of {path} is no record; each line is a JSON object with the number of a step: give the log as the run left it")
    return records


class RunLog:
    """Keeps the records of a run in memory and, if there is a folder, as lines of log.jsonl (and TensorBoard events, if asked by name).

    Args:   step: records after it come from a run that was killed after its last save; they are dropped, since their steps will be run again.
    Raises: ValueError if TensorBoard is asked for and not installed.
    """

    def __init__(self, out: Path | None, step: int = 0, tensorboard: bool = False):
        self.path = None if out is None else out / "log.jsonl"
        self.records = [] if self.path is None or step == 0 else [one for one in read_log(self.path) if one["step"] <= step]
        if self.path is not None:
            self.path.write_text("".join(json.dumps(one) + "\n" for one in self.records), encoding="utf-8")
        self.events = summary_writer(out) if tensorboard else None

    def write(self, record: dict) -> None:
        record = finite_only(record)
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self.events is not None:
            for name, value in {**record, **record.get("evaluation", {})}.items():
                if isinstance(value, int | float) and name != "step":
                    self.events.add_scalar(("held-out/" if name in record.get("evaluation", {}) else "train/") + name, value, record["step"])

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def summary_writer(out: Path | None) -> Any:
    if out is None:
        raise ValueError("tensorboard=True without a run folder; event files need a place: give out=")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard=True, and the tensorboard package is not installed; log.jsonl has the same numbers without it: "
                         "pip install tensorboard, or leave the setting out") from None
    return SummaryWriter(str(out / "tensorboard"))


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def weights_of(model: Model) -> dict[str, str]:
    """Which weights a model has: a hash of at most 16 evenly spread values of every parameter, of the body, and of the head with its pooler. Every rank calls this alike."""
    digests = {"body": hashlib.sha256(), "head": hashlib.sha256()}
    for name, p in model.named_parameters():
        flat = full(p.detach()).flatten()
        some = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].float().cpu()
        digests["head" if name.startswith(("head.", "pooler.")) else "body"].update(name.encode() + some.numpy().tobytes())
    return {part: digest.hexdigest()[:16] for part, digest in digests.items()}


def write_manifest(out: Path, model: Model, settings: TrainSettings, precision: str, data: dict[str, str], weights: dict[str, str]) -> None:
    """Everything somebody needs to run this again: settings, architecture, data by name and hash, the weights it starts from, versions, machine."""
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor() or platform.machine()
    write_json(out / "manifest.json", {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings.to_dict(), "precision": precision, "data": data, "weights": weights,
        "model": {"config": model.config.to_dict(), "head": model.head_name, "labels": model.labels,
                  "parameters": sum(p.numel() for p in model.parameters()),
                  "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)},
        "versions": package_versions(),
        "machine": {"device": device, "threads": torch.get_num_threads(), "processes": world()},
    })


def finish_manifest(out: Path, result: dict) -> None:
    write_json(out / "manifest.json", {**read_json(out / "manifest.json"), "result": finite_only(result)})
