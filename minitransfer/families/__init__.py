"""One page per family: what it chooses, how its config and its weights are named.

A page has MODEL_TYPE, PREFIX (of body names in files with a head), HEADS (class name in the file -> head), REQUIRED (facts a config must have for
our maths to be its maths), RENAMED (endings of old files), WEIGHTS, LORA_TARGETS, config_from_hf and config_to_hf.
"""
from __future__ import annotations

import difflib
from types import ModuleType

from ..config import ModelConfig
from . import bert, gpt2

FAMILIES: dict[str, ModuleType] = {page.MODEL_TYPE: page for page in (bert, gpt2)}


def find(model_type: str | None) -> ModuleType:
    """The page of a family. Raises: KeyError that lists the families there are."""
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(str(model_type), FAMILIES, 1)
        raise KeyError(f"model_type {model_type!r} in config.json; known are {', '.join(FAMILIES)}"
                       + (f" (did you mean {near[0]}?)" if near else "") + ": use a checkpoint of one of these families")
    return FAMILIES[model_type]


def read_config(hf: dict) -> tuple[ModuleType, ModelConfig]:
    """The family and the architecture that a config.json describes.

    Raises: KeyError for an unknown family or a missing field, ValueError for a variant whose maths we do not have.
    """
    family = find(hf.get("model_type"))
    for name, value in family.REQUIRED.items():
        if hf.get(name, value) != value:
            raise ValueError(f"{name}={hf[name]!r} in config.json; our {family.MODEL_TYPE} computes {name}={value!r} only: use another checkpoint")
    try:
        return family, family.config_from_hf(hf)
    except KeyError as e:
        raise KeyError(f"config.json of a {family.MODEL_TYPE} model without a value we know for {e}; needed are the fields transformers writes: "
                       "take the config.json that belongs to the weights") from None


def written_as(c: ModelConfig) -> ModuleType:
    """The family whose files can say exactly this architecture.

    Raises: ValueError that names, for each family, the fields in which it differs: such a model can run, but not be saved in a standard layout.
    """
    misfits = []
    for family in FAMILIES.values():
        if not (differences := differing_fields(family, c)):
            return family
        misfits.append(f"  {family.MODEL_TYPE}: {', '.join(differences)}")
    raise ValueError("no family's files can describe this architecture; it differs from each in\n" + "\n".join(misfits)
                     + "\nchange the fields of one of these lines")


def differing_fields(family: ModuleType, c: ModelConfig) -> list[str]:
    """What is lost when `c` is written as a config.json of this family and read again."""
    if c.activation not in family.ACTIVATIONS.values():
        return [f"activation={c.activation!r} (has {', '.join(sorted(set(family.ACTIVATIONS.values())))})"]
    again = family.config_from_hf(family.config_to_hf(c))
    
    def value(config: ModelConfig, name: str):
        return config.rate(name) if name.endswith("_dropout") else getattr(config, {"n_kv_heads": "kv_heads"}.get(name, name))

    return [f"{name}={value(c, name)!r} (has {value(again, name)!r})" for name in c.to_dict() if value(c, name) != value(again, name)]
