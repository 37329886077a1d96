"""Images as an image model reads them: the shorter side scaled to what it knows, the middle cut out, each channel normalised."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from ..weights.files import read_json
from ..weights.sources import resolve

FILE = "preprocessor_config.json"
MODES = {2: "bilinear", 3: "bicubic"}               # Pillow's numbers
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)      # of the pixels CLIP was trained on


def pixels(image: Any) -> UInt8[Tensor, "3 Y X"]:
    """A uint8 tensor (3, Y, X), or (4, Y, X) with an alpha channel, or an image of Pillow; what shines through is white.

    Raises: ValueError for anything else.
    """
    if hasattr(image, "convert"):                                                # Pillow's, without importing it
        image = torch.from_numpy(np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))).permute(2, 0, 1)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (3, 4):
        given = f"{tuple(image.shape)} of {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"an image given as {given}; needed is a uint8 tensor (3 or 4, height, width) or an image of Pillow: open or convert it first")
    if image.shape[0] == 3:
        return image.cpu()                                                       # where PyTorch scales such pixels
    alpha = image[3:].cpu().float() / 255
    return (image[:3].cpu() * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def sides(said: Any) -> int | tuple[int, int] | None:
    """A size as the file says it: of the shorter side, or (height, width); None for one that we do not have."""
    if not isinstance(said, dict):
        return said
    given = {name: value for name, value in said.items() if value is not None}
    if given.keys() == {"height", "width"}:
        return given["height"], given["width"]
    return given["shortest_edge"] if given.keys() == {"shortest_edge"} else None


@dataclass(frozen=True)
class ImageReader:
    """Images in, pixel_values out: (pixel / 255 - mean) / std of the middle of the scaled image.

    Args: size: of the shorter side, in pixels, or (height, width) of the whole; crop: (height, width) of what is cut out; mode: "bicubic" | "bilinear", both
          averaging over the pixels that become one; rescale: what a pixel is multiplied by.
    Differs from Pillow, which the reference library may read with, by at most one of 256 levels, in 1 % of the pixels; if the ratio of the sides changes, Pillow may
    scale the columns before the rows, which can change pixels of noise by 16 levels ("bicubic").
    """

    size: int | tuple[int, int] = 224
    crop: tuple[int, int] = (224, 224)
    mode: str = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> ImageReader:
        """As the preprocessor_config.json of `source` says. Raises: ValueError for a step or a size that we do not have."""
        said = read_json(resolve(source, revision) / FILE)
        if off := [step for step in STEPS if not said.get(step, True)]:
            raise ValueError(f"{FILE} of {source} switches off {', '.join(off)}; we scale, crop and normalise every image: write these steps yourself")
        size, crop = (sides(said.get(name, 224)) for name in ("size", "crop_size"))
        mode = MODES.get(said.get("resample", 3))
        if mode is None or said.get("do_pad") or size is None or crop is None:
            raise ValueError(f"{FILE} of {source} asks for size={said.get('size')}, crop_size={said.get('crop_size')}, resample={said.get('resample')}, "
                             f"do_pad={said.get('do_pad')}; we scale the shortest_edge or height and width, with resample {list(MODES)} unpadded: write these steps yourself")
        return cls(size, crop if isinstance(crop, tuple) else (crop, crop), mode, said.get("rescale_factor", 1 / 255), tuple(said.get("image_mean", MEAN)),
                   tuple(said.get("image_std", STD)))

    def __call__(self, images: Sequence[Any]) -> Float[Tensor, "N 3 Y X"]:
        """One row for each image (see `pixels`). Raises: ValueError for no image, and for one that is smaller than the crop once scaled."""
        if not images:
            raise ValueError("no image; there must be one to look at: give a list of images")
        middles = torch.stack([self.middle(pixels(image)) for image in images])
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (middles * self.rescale - mean) / std

    def middle(self, image: UInt8[Tensor, "3 Y X"]) -> UInt8[Tensor, "3 y x"]:
        sides = image.shape[1:]
        scaled = self.size if isinstance(self.size, tuple) else tuple(self.size * side // min(sides) for side in sides)
        image = interpolate(image[None], size=scaled, mode=self.mode, antialias=True)[0]
        height, width = self.crop
        if height > scaled[0] or width > scaled[1]:
            raise ValueError(f"an image scaled to {scaled} pixels, of which {self.crop} are to be cut out; there must be as many: use a larger size, or a smaller crop")
        top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
        return image[:, top : top + height, left : left + width]
