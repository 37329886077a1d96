"""Pegasus and M2M-100 (and NLLB, which has its layout): BART with waves for positions.

Zhang et al. 2020, "PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization"; Fan et al. 2021, "Beyond English-Centric Multilingual
Machine Translation"; NLLB Team et al. 2022, "No Language Left Behind".

Differs from BART: pre-norm with a norm after the last block, no norm after the embeddings; positions are sines and cosines. Pegasus keeps them as a table in its files,
which is read like any other (there: it never trains; freeze `encoder.embed` and `decoder.embed` for that). M2M-100 computes them, counting from the padding id + 1, and
has no number for each logit; a target text begins with `</s>` and the token of its language, which are given to `generate` as `decoder_input_ids`.
Differs from the reference library: the vector of the padding id trains if it is read (there it never does; Pegasus begins a text with it).
"""
from ..config import ModelConfig
from .bart import LORA_TARGETS, REQUIRED, sizes_from_hf, sizes_to_hf
from .bart import weights as bart_weights
from .rules import Ignored, Table, activation

__all__ = ["LORA_TARGETS", "REQUIRED"]

MODEL_TYPES = {"pegasus": "Pegasus", "m2m_100": "M2M100"}
PREFIX = "model."
HEADS = {"Model": "none", "ForConditionalGeneration": "seq2seq"}
RENAMED: dict[str, str] = {}


def config_from_hf(hf: dict) -> ModelConfig:
    computed = hf["model_type"] == "m2m_100"
    pad = 1 if computed else 0
    default = {"pad_token_id": pad, "scale_embedding": computed, "decoder_start_token_id": 2 if computed else 0,
               "attention_dropout": 0.1 if computed else 0.0}
    hf = default | {name: value for name, value in hf.items() if value is not None}
    return ModelConfig(**sizes_from_hf(hf), activation=activation(hf, "activation_function", "relu" if computed else "gelu"), norm_position="pre", final_norm=True,
                       embed_norm=False, positions="sinusoidal" if computed else "learned", position_offset=hf["pad_token_id"] + 1 if computed else 0,
                       output_bias=not computed, start_id=hf["decoder_start_token_id"])


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return sizes_to_hf(c) | {"decoder_start_token_id": c.start_id}


def weights(c: ModelConfig) -> Table:
    return [*bart_weights(c), *(Ignored(f"{side}.embed_positions.weights", "sines and cosines, which are computed") for side in ("encoder", "decoder"))]
