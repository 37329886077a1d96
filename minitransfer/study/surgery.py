"""Operations on the blocks of a model, each on a copy: what does a block know that tuning cannot give back, which ones can go, do they have to differ?

    reinitialise    the top k blocks start anew            Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning", section 5
    drop            blocks are left out                    Sajjad et al. 2023, "On the Effect of Dropping Layers of Pre-trained Transformer Models"
    swap            two blocks change places
    share           some blocks become one, which is then tuned as one           Lan et al. 2020 (ALBERT, where all are one)
    average         the mean of the weights of several runs from one start       Wortsman et al. 2022, "Model soups", the uniform soup
"""
from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from ..nn.encoder_decoder import EncoderDecoder
from ..nn.fresh import initialise
from ..nn.model import Model
from ..nn.recurrent import RecurrentModel
from ..tasks import load_tuned
from ..transfer.peft_files import carried
from ..transfer.student import with_blocks


def check(model: Model, verb: str, *numbers: int) -> None:
    """Raises: ValueError for a model whose blocks cannot be taken apart, or a block that it does not have."""
    what = ("it has two stacks" if isinstance(model, EncoderDecoder) else "its blocks are LSTMs of different widths" if isinstance(model, RecurrentModel)
            else "all its layers are one shared block" if model.config.shared_blocks else "it carries adapters" if carried(model)
            else "its matrices are held as codes of a few bits" if model.quantized_from else None)
    if what is not None:
        raise ValueError(f"{verb} on this model: {what}; one stack of separate, plain blocks is needed: "
                         + ("call remove_adapters or merge_lora first" if carried(model) else "choose a plain encoder or decoder"))
    L = len(model.blocks)
    if wrong := [i for i in numbers if not 0 <= i < L]:
        raise ValueError(f"{verb}: there is no block {wrong[0]} in a model of {L}; they are counted from the bottom: give 0 to {L - 1}")


def check_alike(model: Model, verb: str, *numbers: int) -> None:
    """Raises: ValueError for blocks that have other parts, as the first one of some families has."""
    shapes = {i: {name: p.shape for name, p in model.blocks[i].named_parameters()} for i in numbers}
    if other := [i for i in numbers[1:] if shapes[i] != shapes[numbers[0]]]:
        raise ValueError(f"{verb}: blocks {numbers[0]} and {other[0]} of this model have different parts; one takes the place of the other: choose blocks above the first")


def reinitialise(model: Model, top: int, seed: int = 0) -> Model:
    """A copy whose `top` highest blocks, and the pooler if there is one, are drawn anew.

    Raises: ValueError for a number of blocks that the model does not have, and for a model whose blocks cannot be taken apart.
    """
    check(model, "reinitialise")
    L = len(model.blocks)
    if not 1 <= top <= L:
        raise ValueError(f"reinitialise with top={top} of {L} blocks; the highest ones start anew: give 1 to {L}")
    made, generator = copy.deepcopy(model), torch.Generator(model.device).manual_seed(seed)
    for module in [*made.blocks[L - top:], *([made.pooler] if made.pooler is not None else [])]:
        initialise(module, made.config, generator)
    return made


def drop(model: Model, *blocks: int) -> Model:
    """A copy without these blocks. Raises: ValueError for blocks that are not there, for all of them, and for a model whose blocks cannot be taken apart."""
    check(model, "drop", *blocks)
    kept = [i for i in range(len(model.blocks)) if i not in blocks]
    if not kept or kept[0] != 0:
        check_alike(model, "drop", *range(len(model.blocks)))
    if not kept:
        raise ValueError(f"drop of all {len(model.blocks)} blocks; a model has at least one: leave one out")
    return with_blocks(model, kept)


def swap(model: Model, i: int, j: int) -> Model:
    """A copy in which two blocks have changed places; how far each place sees stays as it was.

    Raises: ValueError for blocks that are not there or have different parts, and for a model whose blocks cannot be taken apart.
    """
    check(model, "swap", i, j)
    check_alike(model, "swap", i, j)
    made = copy.deepcopy(model)
    made.blocks[i], made.blocks[j] = made.blocks[j], made.blocks[i]
    return made


def share(model: Model, source: int, *others: int) -> Model:
    """A copy in which block `source` stands in the place of the others too: one set of weights, tuned as one. A saved file holds it once for each place.

    Raises: ValueError for blocks that are not there or have different parts, and for a model whose blocks cannot be taken apart.
    """
    check(model, "share", source, *others)
    check_alike(model, "share", source, *others)
    made = copy.deepcopy(model)
    for i in others:
        made.blocks[i] = made.blocks[source]
    return made


@torch.no_grad()
def average(models: Sequence[Model | str | Path], weights: Sequence[float] | None = None) -> Model:
    """A model whose every parameter is the mean of those of several, tuned from one start on one task; folders of runs are loaded.

    Args:   weights: how much each counts; None: all the same.
    Raises: ValueError for fewer than two models, another number of weights, models of different architecture, head or labels, or with adapters.
    """
    loaded = [one if isinstance(one, Model) else load_tuned(one)[0] for one in models]
    if len(loaded) < 2 or (weights is not None and (len(weights) != len(loaded) or sum(weights) <= 0)):
        raise ValueError(f"average of {len(loaded)} models with weights={weights}; a mean is of several, each of which counts something: give two or more, and a weight for each")
    if any(carried(one) or one.quantized_from for one in loaded):
        raise ValueError("average of models with adapters or weights held as codes; the mean of factors is not the factor of the mean: call merge_lora or dequantize first")
    first = loaded[0]
    for i, one in enumerate(loaded[1:], 1):
        other = [what for what, a, b in (("architecture", one.config, first.config), ("head", one.head_name, first.head_name), ("labels", one.labels, first.labels)) if a != b]
        if other:
            raise ValueError(f"average of models of which number {i} has another {other[0]} than number 0; their weights mean different things: average runs from one start")
    shares = [1 / len(loaded)] * len(loaded) if weights is None else [w / sum(weights) for w in weights]
    made, parameters = copy.deepcopy(first), [dict(one.named_parameters()) for one in loaded]
    for name, p in made.named_parameters():
        p.copy_(torch.stack([share * each[name].to(p.device) for share, each in zip(shares, parameters, strict=True)]).sum(0))
    return made
