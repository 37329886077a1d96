"""CLIP: a text model and an image model that put a text and its image at the same place.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". The image model is that of Dosovitskiy et al. 2021, "An Image is
Worth 16x16 Words". This page is of one model at a time; a file with both is read by weights/two_towers.py.

Differs from GPT-2: the activation x sigmoid(1.702 x); a text is read at its end token. The image model: patches for tokens, no causal mask, a norm before the
first block and one after the last that only the class vector gets.
Differs from the reference library: positions count attended tokens and padding is never taken for the end of a text, so padding on the left changes nothing; a
text without its end token is an error (there: its first token is read).
"""
from typing import Any

from ..config import ModelConfig
from .rules import Ignored, Op, Rule, Table, activation, both, spelling

TEXT, IMAGE = "clip_text_model", "clip_vision_model"
MODEL_TYPES = {TEXT: "CLIPText", IMAGE: "CLIPVision"}
HEADS = {"Model": "none", "ModelWithProjection": "projection"}
PREFIX = ""
ODD_PREFIXES = {f"CLIP{kind}Model{ending}": f"{kind.lower()}_model." for kind in ("Text", "Vision") for ending in ("", "WithProjection")}
REQUIRED: dict[str, Any] = {}
RENAMED: dict[str, str] = {}
LEGACY_END = 2      # what old files of OpenAI's models say in the place of 49407, the largest id
SHARED_DEFAULTS = {"projection_dim": 512, "num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "initializer_range": 0.02}
DEFAULTS: dict[str, dict[str, Any]] = {             # old files leave out what is as here
    TEXT: SHARED_DEFAULTS | {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 77,
                             "eos_token_id": 49407},
    IMAGE: SHARED_DEFAULTS | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32}}


def square(hf: dict, name: str) -> int:
    """A side in pixels, given once or for both axes. Raises: ValueError for one that is not square, or is no whole number above 0."""
    sides = hf[name] if isinstance(hf[name], list | tuple) else [hf[name]]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise ValueError(f"{name}={hf[name]!r} in config.json; images and their patches are squares here, so many pixels wide: use another checkpoint")
    return sides[0]


def config_from_hf(hf: dict) -> ModelConfig:
    kind = hf["model_type"]
    hf = DEFAULTS[kind] | {name: value for name, value in hf.items() if value is not None}
    sizes = {"d_model": hf["hidden_size"], "n_layers": hf["num_hidden_layers"], "n_heads": hf["num_attention_heads"], "d_ff": hf["intermediate_size"],
             "d_project": hf["projection_dim"], "n_token_types": 0, "norm_position": "pre", "norm_eps": hf["layer_norm_eps"],
             "activation": activation(hf, "hidden_act", "quick_gelu"), "dropout": 0.0, "attn_dropout": hf["attention_dropout"], "init_std": hf["initializer_range"]}
    if kind == IMAGE:
        side, patch = square(hf, "image_size"), square(hf, "patch_size")
        return ModelConfig(vocab_size=0, max_len=(side // patch) ** 2 + 1, patch_size=patch, image_size=side, channels=hf["num_channels"], embed_norm=True,
                           pooler_kind="norm", **sizes)
    if not isinstance(end := hf["eos_token_id"], int):
        raise ValueError(f"eos_token_id={end!r} in config.json; a text is read at one token, with one id: use another checkpoint")
    return ModelConfig(vocab_size=hf["vocab_size"], max_len=hf["max_position_embeddings"], causal=True, embed_norm=False, final_norm=True, pooler_kind="end",
                       end_id=None if end == LEGACY_END else end, **sizes)


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    said = {"hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads, "intermediate_size": c.d_ff,
            "projection_dim": c.project_width, "layer_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation),
            "attention_dropout": c.rate("attn_dropout"), "initializer_range": c.init_std}
    if model_type == IMAGE:
        return said | {"image_size": c.image_size, "patch_size": c.patch_size, "num_channels": c.channels}
    return said | {"vocab_size": c.vocab_size, "max_position_embeddings": c.max_len, "eos_token_id": LEGACY_END if c.end_id is None else c.end_id}


def weights(c: ModelConfig) -> Table:
    blocks: Table = [
        *both("encoder.layers.{i}.self_attn.q_proj", "blocks.{i}.attn.q_proj"),
        *both("encoder.layers.{i}.self_attn.k_proj", "blocks.{i}.attn.k_proj"),
        *both("encoder.layers.{i}.self_attn.v_proj", "blocks.{i}.attn.v_proj"),
        *both("encoder.layers.{i}.self_attn.out_proj", "blocks.{i}.attn.o_proj"),
        *both("encoder.layers.{i}.layer_norm1", "blocks.{i}.norm_attn"),
        *both("encoder.layers.{i}.layer_norm2", "blocks.{i}.norm_mlp"),
        *both("encoder.layers.{i}.mlp.fc1", "blocks.{i}.mlp.up_proj"),
        *both("encoder.layers.{i}.mlp.fc2", "blocks.{i}.mlp.down_proj"),
        Rule("embeddings.position_embedding.weight", "embed.positions.weight"),
        Ignored("embeddings.position_ids", "a counting buffer, not a parameter"),
    ]
    if c.patch_size is None:
        return [
            Rule("embeddings.token_embedding.weight", "embed.tokens.weight"),
            *blocks,
            *both("final_layer_norm", "norm"),
            Rule("text_projection.weight", "head.project.weight"),
        ]
    kernel = (c.channels, c.patch_size, c.patch_size)
    convolution = Op(lambda t, n: [t.flatten(1)], lambda ours: ours[0].unflatten(1, kernel), folds=2)
    return [
        Rule("embeddings.patch_embedding.weight", "embed.tokens.weight", convolution),
        Rule("embeddings.class_embedding", "embed.whole"),
        *both("pre_layrnorm", "embed.norm"),
        *blocks,
        *both("post_layernorm", "pooler"),
        Rule("visual_projection.weight", "head.project.weight"),
    ]


LORA_TARGETS = {"q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "v_proj": "attn.v_proj", "out_proj": "attn.o_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
