"""The other side of the comparison: the class of transformers that a folder names, loaded from the same files."""
from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..families import read_config
from ..weights.files import read_json


@dataclass(frozen=True)
class Reference:
    """A model of transformers in eval mode, the name of its class, and the head of ours that stands for it."""

    model: Any
    class_name: str
    head: str


def quiet_transformers() -> Any:
    """The library, without its progress bars and notes. Raises: ValueError if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError('transformers is not installed; it is what a checkpoint is verified against: pip install "minitransfer[verify]"')
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def class_and_head(folder: Path) -> tuple[str, str]:
    """The class to load and our head for it: what config.json names, or the bare body where we have no head for that.

    Raises: KeyError for a family we do not have; ValueError for a class that transformers does not have.
    """
    hf = read_json(folder / "config.json")
    family, _ = read_config(hf)
    heads, bare = family.heads, next(name for name, head in family.heads.items() if head == "none")
    named = (hf.get("architectures") or [bare])[0]
    transformers = quiet_transformers()
    if not hasattr(transformers, named):
        raise ValueError(f"architectures={[named]} in config.json; transformers {transformers.__version__} has no such class: correct config.json (a {family.model_type} "
                         f"is one of {', '.join(heads)}), or install the release of transformers that has it")
    return (named, heads[named]) if named in heads else (bare, "none")


def load_reference(folder: Path, dtype: torch.dtype = torch.float32, attention: str | None = "eager") -> Reference:
    """Raises: what `class_and_head` does; ValueError if transformers cannot load the folder."""
    class_name, head = class_and_head(folder)
    transformers = quiet_transformers()
    chosen = {} if attention is None else {"attn_implementation": attention}
    try:
        model = getattr(transformers, class_name).from_pretrained(folder, dtype=dtype, local_files_only=True, **chosen)
    except (OSError, RuntimeError, ValueError, ImportError) as e:
        reason = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise ValueError(f"transformers {transformers.__version__} cannot load {folder} as {class_name} ({reason}): there is nothing to compare with, "
                         "take a folder that it reads") from None
    return Reference(model.eval(), class_name, head)


@contextmanager
def perturbed(reference: Reference, folder: Path, scale: float, seed: int) -> Iterator[Path]:
    """N(0, scale) is added to every parameter; yields a folder with the result, which is `folder` itself for a scale of 0.

    At their first values most biases are zeros and most norms ones, and two that were swapped would go unnoticed.
    """
    if not scale:
        yield folder
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    with TemporaryDirectory() as aside:
        reference.model.save_pretrained(aside)
        yield Path(aside)
