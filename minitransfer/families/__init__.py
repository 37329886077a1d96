"""One page per family: what it chooses, how its config and its weights are named.

A page has
    MODEL_TYPES     model_type in config.json -> what the names of its classes begin with
    HEADS           what they end with -> head
    PREFIX          of body names in files with a head; ODD_PREFIXES, if there are any: of single classes
    REQUIRED        facts a config must have for our maths to be its maths
    RENAMED         endings of old files, or in the reference's memory -> endings of today's files
    LORA_TARGETS    module names that PEFT files use -> ours
    ENCODER_HEADS   of encoder-decoders: as HEADS, for classes that are the encoder alone
    OUTPUT          names of an output matrix and a token table of which only the file says whether they are one
    config_from_hf, config_to_hf    a config.json as ModelConfig, and back for one of the model types
    weights         the table of names for a config
"""
from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from ..config import ModelConfig, RecurrentConfig
from ..config_parts import meant
from ..nn.heads import AFTER_READING
from . import albert, bart, bert, clip, deberta, distilbert, electra, gpt2, gpt_neox, llama, modernbert, mpnet, pegasus, recurrent, roberta, t5
from .rules import Table

PAGES = (bert, gpt2, roberta, distilbert, electra, albert, mpnet, deberta, modernbert, llama, gpt_neox, t5, bart, pegasus, clip, recurrent)
SAID = {"n_kv_heads": "kv_heads", "head_width": "d_head", "attn_scale": "score_scale", "d_project": "project_width", "n_decoder_heads": "decoder_heads",
        "d_decoder_ff": "decoder_ff"}                                            # fields where None stands for a value
MALFORMED = (TypeError, AttributeError, ArithmeticError, IndexError)             # what computing with values of a wrong kind ends in


@dataclass(frozen=True)
class Family:
    """A page, read for one of its model types."""

    model_type: str
    page: ModuleType

    @property
    def heads(self) -> dict[str, str]:
        """Class name in a config.json -> head."""
        return {self.page.MODEL_TYPES[self.model_type] + ending: head for ending, head in (self.page.HEADS | self.encoder_heads).items()}

    @property
    def encoder_heads(self) -> dict[str, str]:
        """What class names end with -> head, of classes that are the encoder of an encoder-decoder alone."""
        return getattr(self.page, "ENCODER_HEADS", {})

    def class_of(self, c: ModelConfig, head: str) -> str | None:
        """The class in a config.json of this architecture with this head; None: there is none."""
        alone = self.encoder_heads and not c.n_decoder_layers
        endings = self.encoder_heads if alone else self.page.HEADS
        return next((self.page.MODEL_TYPES[self.model_type] + ending for ending, one in endings.items() if one == head), None)

    def needed(self, c: ModelConfig, head: str) -> ModelConfig:
        """The stacks that a head needs: for one that only encoders carry, the encoder alone."""
        alone = c.n_decoder_layers and head not in AFTER_READING and (head == "embedding" or head in self.encoder_heads.values())
        return c.encoder_side() if alone else c

    def prefix(self, head: str) -> str:
        """What stands before the names of the body in the files of a model with this head."""
        name = next((name for name, one in self.heads.items() if one == head), "")
        return getattr(self.page, "ODD_PREFIXES", {}).get(name, self.page.PREFIX)

    def current(self, name: str) -> str:
        """The name that today's files give to what older ones, or the reference in memory, call `name`."""
        return next((name.removesuffix(old) + new for old, new in self.page.RENAMED.items() if name.endswith(old)), name)

    def weights(self, c: ModelConfig) -> Table:
        return self.page.weights(c)

    def read(self, hf: dict) -> ModelConfig:
        """The architecture a config.json describes.

        Raises: KeyError for a missing field, ValueError that names the field for a variant whose maths we do not have.
        """
        for name, value in self.page.REQUIRED.items():
            if hf.get(name, value) != value:
                raise ValueError(f"{name}={hf[name]!r} in config.json; our {self.model_type} computes {name}={value!r} only: use another checkpoint")
        hf = {"model_type": self.model_type} | hf
        try:
            c = self.page.config_from_hf(hf)
        except KeyError as e:
            raise KeyError(f"config.json of a {self.model_type} model without {e}; needed are the fields transformers writes: "
                           "take the config.json that belongs to the weights") from None
        except MALFORMED as e:
            raise ValueError(f"{self.culprit(hf)} in config.json of a {self.model_type} model; it is of a kind nothing can be computed from ({str(e).splitlines()[0]}): "
                             "take the config.json that belongs to the weights") from None
        ending = class_name(hf).removeprefix(self.page.MODEL_TYPES[self.model_type])
        return c.encoder_side() if c.n_decoder_layers and (ending in self.encoder_heads or hf.get("is_encoder_decoder") is False) else c

    def culprit(self, hf: dict) -> str:
        """The field that hides the architecture: with another value in its place it can be read."""
        for name, value in hf.items():
            for other in (1, 1024, "gelu", None):
                try:
                    self.page.config_from_hf(hf | {name: other})
                except (KeyError, ValueError, *MALFORMED):
                    continue
                return f"{name}={value!r}"
        return "several fields"

    def write(self, c: ModelConfig) -> dict:
        """The config.json of this family that comes nearest to `c`."""
        sides = {"is_encoder_decoder": c.n_decoder_layers > 0} if self.encoder_heads else {}
        return {"model_type": self.model_type, **self.page.config_to_hf(c, self.model_type), **sides, **self.page.REQUIRED}

    def differences(self, c: ModelConfig) -> list[str]:
        """What is lost when `c` is written as a config.json of this family and read again."""
        try:
            again = self.read(self.write(c))
        except (ValueError, KeyError) as e:                                      # not a shape this family can have
            return [str(e).split(";")[0]]

        def value(config: ModelConfig, name: str):
            return config.rate(name) if name.endswith("_dropout") else getattr(config, SAID.get(name, name))

        return [f"{name}={value(c, name)!r} (has {value(again, name)!r})" for name in c.to_dict() if value(c, name) != value(again, name)]


FAMILIES: dict[str, Family] = {model_type: Family(model_type, page) for page in PAGES for model_type in page.MODEL_TYPES}


def find(model_type: object) -> Family:
    """The family of a model type. Raises: KeyError that lists those there are."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise KeyError(f"model_type {model_type!r} in config.json; known are {', '.join(FAMILIES)}{meant(str(model_type), FAMILIES)}: use a checkpoint of one of these families")
    return FAMILIES[model_type]


def class_name(hf: dict) -> str:
    """The class that a config.json says its weights were saved from; "" if it says none. Raises: ValueError if `architectures` is no list of names."""
    said = hf.get("architectures") or [""]
    if not isinstance(said, list) or not isinstance(said[0], str):
        raise ValueError(f"architectures={said!r} in config.json; needed is a list with the name of a class: take the config.json that belongs to the weights")
    return said[0]


def read_config(hf: dict) -> tuple[Family, ModelConfig]:
    """The family and the architecture that a config.json describes. Raises: KeyError for an unknown family, and as `Family.read`."""
    family = find(hf.get("model_type"))
    return family, family.read(hf)


def written_as(c: ModelConfig) -> Family:
    """The family whose files can say exactly this architecture.

    Raises: ValueError that names, for the nearest families, the fields in which it differs: such a model can run, but not be saved in a standard layout.
    """
    misfits: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        if (family.page is recurrent) != isinstance(c, RecurrentConfig):
            continue
        if not (differences := family.differences(c)):
            return family
        misfits[family.model_type] = differences
    nearest = sorted(misfits, key=lambda name: len(misfits[name]))[:3]
    raise ValueError("no family's files can describe this architecture; it differs from the nearest in\n"
                     + "\n".join(f"  {name}: {', '.join(misfits[name])}" for name in nearest) + "\nchange the fields of one of these lines")
