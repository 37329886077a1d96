"""BART: BERT's encoder and GPT-2's decoder in one network, pretrained to mend broken text.

Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training"; mBART (Liu et al. 2020) is the same on 25 and 50 languages.

Differs from BERT: a decoder beside the encoder, each with a position table of its own (two rows of it stand before position 0), one table of tokens for both;
a number is added to each logit (zeros in published files). mBART: pre-norm with a norm after the last block; the target text begins with the token of its language,
which is the last one of its labels, and is given to `generate` as `decoder_input_ids`.
Differs from the reference library: a classifier reads the last token of a text, which is `</s>` where texts end with it (there: the last `</s>`); that number for each
logit is a parameter (there: a buffer), which starts frozen; no block is left out in training (layerdrop).
"""
from __future__ import annotations

import math
from typing import Any

from ..config import ModelConfig
from .rules import Rule, Table, Tied, activation, both, first_row, spelling

MODEL_TYPES = {"bart": "Bart", "mbart": "MBart"}
PREFIX = "model."
HEADS = {"Model": "none", "ForConditionalGeneration": "seq2seq", "ForSequenceClassification": "sequence", "ForQuestionAnswering": "span"}
REQUIRED = {"tie_word_embeddings": True, "is_encoder_decoder": True}
RENAMED: dict[str, str] = {}


def sizes_from_hf(hf: dict) -> dict[str, Any]:
    """What the config.json files of this page and its relatives say in the same words."""
    return {
        "vocab_size": hf["vocab_size"], "d_model": hf["d_model"], "n_layers": hf["encoder_layers"], "n_heads": hf["encoder_attention_heads"],
        "d_ff": hf["encoder_ffn_dim"], "max_len": hf["max_position_embeddings"], "n_decoder_layers": hf["decoder_layers"],
        "n_decoder_heads": hf["decoder_attention_heads"], "d_decoder_ff": hf["decoder_ffn_dim"], "pad_id": hf.get("pad_token_id", 1),
        "embed_scale": math.sqrt(hf["d_model"]) if hf.get("scale_embedding", False) else 1.0, "n_token_types": 0, "norm_eps": 1e-5, "pooler": False,
        "classifier": "dense", "dropout": hf.get("dropout", 0.1), "attn_dropout": hf.get("attention_dropout", 0.0),
        "mlp_dropout": hf.get("activation_dropout", 0.0), "head_dropout": hf.get("classifier_dropout", 0.0), "init_std": hf.get("init_std", 0.02)}


def sizes_to_hf(c: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size, "d_model": c.d_model, "encoder_layers": c.n_layers, "num_hidden_layers": c.n_layers, "encoder_attention_heads": c.n_heads,
        "encoder_ffn_dim": c.d_ff, "max_position_embeddings": c.max_len, "decoder_layers": c.n_decoder_layers, "decoder_attention_heads": c.decoder_heads,
        "decoder_ffn_dim": c.decoder_ff, "pad_token_id": c.pad_id, "scale_embedding": c.embed_scale != 1, "activation_function": spelling(c.activation),
        "dropout": c.dropout, "attention_dropout": c.rate("attn_dropout"), "activation_dropout": c.mlp_dropout, "classifier_dropout": c.rate("head_dropout"),
        "init_std": c.init_std, "is_encoder_decoder": True}


def config_from_hf(hf: dict) -> ModelConfig:
    wraps = hf["model_type"] == "mbart"
    return ModelConfig(**sizes_from_hf(hf), activation=activation(hf, "activation_function", "gelu"), position_offset=2, output_bias=True,
                       norm_position="pre" if wraps else "post", final_norm=wraps, start_id=None if wraps else hf.get("decoder_start_token_id", 2))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return sizes_to_hf(c) | ({} if model_type == "mbart" else {"decoder_start_token_id": c.start_id})


def stack(side: str) -> list[Rule]:
    """The rules of one stack."""
    attention = {"self_attn": "attn"} | ({"encoder_attn": "cross_attn"} if side == "decoder" else {})
    return [
        Rule(f"{side}.embed_positions.weight", f"{side}.embed.positions.weight"),
        *both(f"{side}.layernorm_embedding", f"{side}.embed.norm"),
        *(rule for theirs, ours in attention.items() for rule in (
            *(rule for x in "qkv" for rule in both(f"{side}.layers.{{i}}.{theirs}.{x}_proj", f"{side}.blocks.{{i}}.{ours}.{x}_proj")),
            *both(f"{side}.layers.{{i}}.{theirs}.out_proj", f"{side}.blocks.{{i}}.{ours}.o_proj"),
            *both(f"{side}.layers.{{i}}.{theirs}_layer_norm", f"{side}.blocks.{{i}}.norm_{ours.removesuffix('_attn')}"))),
        *both(f"{side}.layers.{{i}}.fc1", f"{side}.blocks.{{i}}.mlp.up_proj"),
        *both(f"{side}.layers.{{i}}.fc2", f"{side}.blocks.{{i}}.mlp.down_proj"),
        *both(f"{side}.layers.{{i}}.final_layer_norm", f"{side}.blocks.{{i}}.norm_mlp"),
        *both(f"{side}.layer_norm", f"{side}.norm")]


def weights(c: ModelConfig) -> Table:
    return [
        Rule("shared.weight", "encoder.embed.tokens.weight"),
        *stack("encoder"),
        *stack("decoder"),
        Rule("final_logits_bias", "head.bias", first_row),
        *both("classification_head.dense", "head.transform.dense"),
        *both("classification_head.out_proj", "head.classifier"),
        *both("qa_outputs", "head.ends"),
        Tied("encoder.embed_tokens.weight", to="shared.weight"),
        Tied("decoder.embed_tokens.weight", to="shared.weight"),
        Tied("lm_head.weight", to="shared.weight")]


LORA_TARGETS = {"self_attn.q_proj": "attn.q_proj", "self_attn.k_proj": "attn.k_proj", "self_attn.v_proj": "attn.v_proj", "self_attn.out_proj": "attn.o_proj",
                "encoder_attn.q_proj": "cross_attn.q_proj", "encoder_attn.k_proj": "cross_attn.k_proj", "encoder_attn.v_proj": "cross_attn.v_proj",
                "encoder_attn.out_proj": "cross_attn.o_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
