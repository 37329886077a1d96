"""GPT-NeoX: GPT-2's decoder with both halves of a block side by side; Pythia is a family of sizes of it.

Black et al. 2022, "GPT-NeoX-20B: An Open-Source Autoregressive Language Model"; Biderman et al. 2023, "Pythia".

Differs from GPT-2: queries and keys turn (RoPE), a quarter of each head, in the place of a position table; attention and the feed-forward part read the same x
(parallel); exact GELU; usually an output matrix of its own. In the file q, k and v are one matrix too, but head by head.
Differs from the reference library: a sequence head reads the last attended token, with or without a padding token in the vocabulary.
"""
from ..config import ModelConfig, Rotary
from .llama import rotary_from_hf, rotary_to_hf
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling, split_by_head

MODEL_TYPES = {"gpt_neox": "GPTNeoX"}
PREFIX = "gpt_neox."
HEADS = {"Model": "none", "ForCausalLM": "causal", "ForSequenceClassification": "sequence", "ForTokenClassification": "token", "ForQuestionAnswering": "span"}
REQUIRED: dict[str, object] = {}
RENAMED = {"lm_head.weight": "embed_out.weight"}


def config_from_hf(hf: dict) -> ModelConfig:
    older = {"rope_theta": hf.get("rotary_emb_base", 10_000.0), "partial_rotary_factor": hf.get("rotary_pct", 0.25)}
    biased = hf.get("attention_bias", True)
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=hf["num_hidden_layers"], n_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"], n_token_types=0, positions="none", rotary=rotary_from_hf(older | hf),
        norm_position="pre", norm_eps=hf.get("layer_norm_eps", 1e-5), parallel=hf.get("use_parallel_residual", True), qkv_bias=biased, o_bias=biased,
        activation=activation(hf, "hidden_act", "gelu"), causal=True, embed_norm=False, final_norm=True, pooler=False,
        tied=hf.get("tie_word_embeddings", False), dropout=hf.get("hidden_dropout", 0.0), attn_dropout=hf.get("attention_dropout", 0.0),
        head_dropout=hf.get("classifier_dropout", 0.1), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    rotary = c.rotary or Rotary()
    return {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len, "rope_parameters": rotary_to_hf(rotary) | {"partial_rotary_factor": rotary.share},
            "layer_norm_eps": c.norm_eps, "use_parallel_residual": c.parallel, "attention_bias": c.o_bias, "hidden_act": spelling(c.activation),
            "tie_word_embeddings": c.tied, "hidden_dropout": c.dropout, "attention_dropout": c.rate("attn_dropout"),
            "classifier_dropout": c.rate("head_dropout"), "initializer_range": c.init_std}


def weights(c: ModelConfig) -> Table:
    fused = split_by_head(c.n_heads)
    return [
        Rule("embed_in.weight", "embed.tokens.weight"),
        Rule("layers.{i}.attention.query_key_value.weight", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.weight", fused),
        Rule("layers.{i}.attention.query_key_value.bias", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.bias", fused),
        *both("layers.{i}.attention.dense", "blocks.{i}.attn.o_proj"),
        *both("layers.{i}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up_proj"),
        *both("layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down_proj"),
        *both("layers.{i}.input_layernorm", "blocks.{i}.norm_attn"),
        *both("layers.{i}.post_attention_layernorm", "blocks.{i}.norm_mlp"),
        *both("final_layer_norm", "norm"),
        Tied("embed_out.weight", to="embed_in.weight") if c.tied else Rule("embed_out.weight", "head.unembed.weight"),
        Rule("score.weight", "head.classifier.weight", heads=("sequence",)),
        *both("classifier", "head.classifier", heads=("token",)),
        *both("qa_outputs", "head.ends"),
        Ignored("layers.{i}.attention.bias", "the causal mask, a buffer of old files"),
        Ignored("layers.{i}.attention.masked_bias", "a constant of old files"),
        Ignored("layers.{i}.attention.rotary_emb.inv_freq", "the angles of RoPE, a buffer of old files"),
    ]


LORA_TARGETS = {"query_key_value": "attn.{q_proj,k_proj,v_proj}", "attention.dense": "attn.o_proj", "dense_h_to_4h": "mlp.up_proj", "dense_4h_to_h": "mlp.down_proj"}
