"""ModernBERT: BERT with what decoders have learned since, for texts of 8192 tokens.

Warner et al. 2024, "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and Long Context Finetuning and Inference".

Differs from BERT: pre-norm, with no norm before the first attention (the embeddings have just had theirs) and a last one; queries and keys turn (RoPE) in the
place of a position table; every third block sees the whole text, the others the nearest tokens only, with angles of another base; a gated feed-forward part; no
biases; no token types and no pooler: every head has the masked head's dense layer and norm in front.
Differs from the reference library: mlp_dropout falls on the output of both halves of a block (there inside the feed-forward part), attention_dropout on the
probabilities only (there on the output of the attention too), none in front of a span head; a masked head's layer is not kept for another head: it starts fresh.
"""
from dataclasses import replace

from ..config import ModelConfig, Rotary
from .llama import GLOBAL, LOCAL, layer_types, rotary_from_hf, rotary_to_hf
from .rules import Rule, Table, Tied, activation, both, spelling, split

MODEL_TYPES = {"modernbert": "ModernBert"}
PREFIX = "model."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice", "ForTokenClassification": "token",
         "ForQuestionAnswering": "span"}
REQUIRED: dict[str, object] = {}
RENAMED: dict[str, str] = {}


def both_rotaries(hf: dict) -> Rotary:
    """The angles of both kinds of blocks. Raises: ValueError where they differ in more than their base, or turn a part of each head."""
    said, older = hf.get("rope_parameters") or {}, {"rope_scaling": hf.get("rope_scaling")}
    everywhere = rotary_from_hf(older | {"rope_theta": hf.get("global_rope_theta", 160_000.0), "rope_parameters": said.get(GLOBAL)})
    near = rotary_from_hf(older | {"rope_theta": hf.get("local_rope_theta", 10_000.0) or everywhere.theta, "rope_parameters": said.get(LOCAL)})
    if everywhere.share != 1 or near != replace(everywhere, theta=near.theta):
        raise ValueError(f"rope_parameters={said!r} in config.json; we compute one scaling of whole heads, with a base for each kind of block: use another checkpoint")
    return everywhere if near == everywhere else replace(everywhere, local_theta=near.theta)


def config_from_hf(hf: dict) -> ModelConfig:
    every, pooling = hf.get("global_attn_every_n_layers", 3), hf.get("classifier_pooling", "cls")
    layers = layer_types(hf, [LOCAL if i % every else GLOBAL for i in range(hf["num_hidden_layers"])])
    biased, bend = hf.get("attention_bias", False), activation(hf, "classifier_activation", "gelu")
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=hf["num_hidden_layers"], n_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"], n_token_types=0, positions="none", rotary=both_rotaries(hf),
        norm_position="pre", norm_eps=hf.get("norm_eps", 1e-5), norm_bias=hf.get("norm_bias", False), first_norm=False, qkv_bias=biased, o_bias=biased,
        mlp_bias=hf.get("mlp_bias", False), activation=activation(hf, "hidden_activation", "gelu"), gated=True,
        window=hf.get("local_attention", 128) // 2 + 1 if LOCAL in layers else None,                    # so many to either side, and the token itself
        global_layers=tuple(i for i, layer in enumerate(layers) if layer == GLOBAL) if LOCAL in layers else (),
        embed_norm=True, final_norm=True, pooler=False, tied=hf.get("tie_word_embeddings", True), unembed_bias=hf.get("decoder_bias", True),
        transform_bias=hf.get("classifier_bias", False), head_activation=bend, classifier="transform", classifier_activation=bend,
        classifier_pooling="first" if pooling == "cls" else pooling, dropout=hf.get("mlp_dropout", 0.0), attn_dropout=hf.get("attention_dropout", 0.0),
        embed_dropout=hf.get("embedding_dropout", 0.0), head_dropout=hf.get("classifier_dropout", 0.0), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    rotary = c.rotary or Rotary()
    near = rotary if rotary.local_theta is None else replace(rotary, theta=rotary.local_theta)
    return {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len, "rope_parameters": {GLOBAL: rotary_to_hf(rotary), LOCAL: rotary_to_hf(near)},
            "layer_types": [LOCAL if c.window_of(i) else GLOBAL for i in range(c.n_layers)], "local_attention": 2 * ((c.window or 65) - 1),
            "norm_eps": c.norm_eps, "norm_bias": c.norm_bias, "attention_bias": c.o_bias, "mlp_bias": c.mlp_bias, "hidden_activation": spelling(c.activation),
            "tie_word_embeddings": c.tied, "decoder_bias": c.unembed_bias, "classifier_bias": c.transform_bias,
            "classifier_activation": spelling(c.classifier_activation), "classifier_pooling": "cls" if c.classifier_pooling == "first" else "mean",
            "mlp_dropout": c.dropout, "attention_dropout": c.rate("attn_dropout"), "embedding_dropout": c.rate("embed_dropout"),
            "classifier_dropout": c.rate("head_dropout"), "initializer_range": c.init_std}


def weights(c: ModelConfig) -> Table:
    return [
        Rule("embeddings.tok_embeddings.weight", "embed.tokens.weight"),
        *both("embeddings.norm", "embed.norm"),
        Rule("layers.{i}.attn.Wqkv.weight", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.weight", split),
        Rule("layers.{i}.attn.Wqkv.bias", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.bias", split),
        *both("layers.{i}.attn.Wo", "blocks.{i}.attn.o_proj"),
        Rule("layers.{i}.mlp.Wi.weight", "blocks.{i}.mlp.{gate_proj,up_proj}.weight", split),          # the first half is bent
        Rule("layers.{i}.mlp.Wi.bias", "blocks.{i}.mlp.{gate_proj,up_proj}.bias", split),
        *both("layers.{i}.mlp.Wo", "blocks.{i}.mlp.down_proj"),
        *both("layers.{i}.attn_norm", "blocks.{i}.norm_attn"),
        *both("layers.{i}.mlp_norm", "blocks.{i}.norm_mlp"),
        *both("final_norm", "norm"),
        *both("head.dense", "head.transform.dense"),
        *both("head.norm", "head.transform.norm"),
        Rule("decoder.bias", "head.bias"),
        *both("classifier", "head.classifier", heads=("sequence", "token", "choice")),
        *both("classifier", "head.ends", heads=("span",)),
        Tied("decoder.weight", to="embeddings.tok_embeddings.weight") if c.tied else Rule("decoder.weight", "head.unembed.weight"),
    ]


LORA_TARGETS = {"Wqkv": "attn.{q_proj,k_proj,v_proj}", "attn.Wo": "attn.o_proj", "Wi": "mlp.{gate_proj,up_proj}", "mlp.Wo": "mlp.down_proj"}
