"""Files with two models in them: a text tower and an image tower, each under a prefix of its own, and the scale of their logits."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..families import read_config
from ..nn.fresh import Room
from ..nn.model import Model
from ..nn.two_towers import LOGIT_SCALE, TwoTowers
from .files import read_json
from .load import Filling
from .report import LoadReport
from .save import config_json, named_tensors, sharded, write_checkpoint
from .sources import resolve
from .tensors import check_finite, read_tensors

SCALE = "logit_scale"
TOWERS = {"text_config": ("text_model.", "text_projection."), "vision_config": ("vision_model.", "visual_projection.")}     # where it is described, what its tensors begin with


def load_two_towers(source: str | Path, dtype: torch.dtype = torch.float32, revision: str | None = None) -> TwoTowers:
    """Build the two models that `source` describes and fill them, in eval mode; `.text` and `.image` are models with their own load_report.

    Args:    source: a folder or a hub id of a CLIP model.
    Raises:  ValueError for another kind of checkpoint, and for one that does not fit its description (see `from_pretrained`).
    """
    folder = resolve(source, revision)
    hf = read_json(folder / "config.json")
    if hf.get("model_type") != "clip" or not all(isinstance(hf.get(name), dict) or isinstance(hf.get(name + "_dict"), dict) for name in TOWERS):
        raise ValueError(f"{source} is a {hf.get('model_type')!r} with {', '.join(sorted(set(hf) & set(TOWERS))) or 'no towers'}; needed is a \"clip\" with "
                         f"{' and '.join(TOWERS)}: read other models with Model.from_pretrained")
    tensors = dict(read_tensors(folder))
    scale = tensors.pop(SCALE, None)
    if scale is None or scale.numel() != 1:
        raise ValueError(f"{source} has no single number {SCALE}; it says how sharply the towers' logits are told apart: fetch the checkpoint again")
    check_finite(SCALE, scale)
    text, image = (tower(str(source), hf, part, tensors) for part in TOWERS)
    if tensors:
        raise ValueError(f"{source} has tensors of neither tower: {', '.join(sorted(tensors)[:5])} ({len(tensors)} in all); fetch the checkpoint that belongs to its config.json")
    model = TwoTowers(text, image, float(scale))
    model.source_config = hf
    return model.to(dtype).eval()


def tower(source: str, hf: dict, part: str, tensors: dict[str, Tensor]) -> Model:
    """One of the two models, filled with its tensors, which are taken out of the table."""
    described = hf[part] if hf.get(part + "_dict") is None else hf[part + "_dict"]     # in old files that have both, the latter is the one that counts
    described = {"model_type": "clip_" + part.replace("config", "model")} | described | {"projection_dim": hf.get("projection_dim", 512)}
    family, config = read_config(described)
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(TOWERS[part])}
    with Room(sum(t.numel() for t in own.values()), Path(source)):
        model = Model(config, "projection", seed=None)
    model.source_config, model.load_report = described, LoadReport(source)
    Filling(model, family, "projection", True, True, 0).run(own.items())
    return model


def save_two_towers(model: TwoTowers, folder: str | Path, dtype: torch.dtype | None = None, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write both towers in one checkpoint, as transformers' CLIPModel reads it.

    Raises: ValueError as `save_pretrained`.
    """
    towers = dict(zip(TOWERS, (model.text, model.image), strict=True))
    described = {part: config_json(one, dtype) for part, one in towers.items()}
    config = {name: value for name, value in model.source_config.items() if name not in (*(part + "_dict" for part in TOWERS), "torch_dtype")}
    config |= described | {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": model.text.config.project_width,
                           "dtype": described["text_config"]["dtype"], "logit_scale_init_value": config.get("logit_scale_init_value", LOGIT_SCALE)}
    tensors = [(SCALE, model.logit_scale.detach()), *named_tensors(model.text), *named_tensors(model.image)]
    write_checkpoint(folder, config, sharded(tensors, dtype, max_shard_bytes))
