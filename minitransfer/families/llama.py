"""LLaMA: GPT-2's decoder as most open models have it today.

Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"; LLaMA 3: Grattafiori et al. 2024; Mistral: Jiang et al. 2023; Qwen2 and Qwen3:
Yang et al. 2024 and 2025.

Differs from GPT-2: RMSNorm, queries and keys that turn (RoPE) instead of a position table, a gated SiLU feed-forward part, no biases, fewer key/value heads
than query heads, usually an output matrix of its own. Mistral: a sliding window. Qwen2: biases on q, k, v. Qwen3: a norm on each head's queries and keys.
"""
from typing import Any

from ..config import ModelConfig, Rotary
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling

MODEL_TYPES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
PREFIX = "model."
HEADS = {"Model": "none", "ForCausalLM": "causal", "ForSequenceClassification": "sequence", "ForTokenClassification": "token", "ForQuestionAnswering": "span"}
ODD_PREFIXES = dict.fromkeys(("LlamaForQuestionAnswering", "Qwen2ForQuestionAnswering", "Qwen3ForQuestionAnswering"), "transformer.")
REQUIRED = {"pretraining_tp": 1}
RENAMED: dict[str, str] = {}
GLOBAL, LOCAL = "full_attention", "sliding_attention"
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}         # where a config.json does not say


def rotary_from_hf(hf: dict) -> Rotary:
    """RoPE as a config.json says it: under `rope_parameters`, or in older files as `rope_theta` and `rope_scaling`.

    Raises: ValueError for a scaling that we do not have.
    """
    said = {"rope_theta": hf.get("rope_theta", 10_000.0)} | (hf.get("rope_scaling") or {}) | (hf.get("rope_parameters") or {})
    kind = said.get("rope_type", said.get("type", "default"))
    share = said.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    if kind == "default":
        return Rotary(theta=said["rope_theta"], share=share)
    if kind == "linear":
        return Rotary(theta=said["rope_theta"], share=share, scaling="linear", factor=said["factor"])
    if kind == "llama3":
        return Rotary(theta=said["rope_theta"], share=share, scaling="llama3", factor=said["factor"], low=said["low_freq_factor"], high=said["high_freq_factor"],
                      original_len=said["original_max_position_embeddings"])
    raise ValueError(f"rope_type={kind!r} in config.json; we compute default, linear and llama3: use another checkpoint")


def rotary_to_hf(r: Rotary) -> dict[str, Any]:
    said: dict[str, Any] = {"rope_theta": r.theta, "rope_type": "default" if r.scaling == "none" else r.scaling}
    if r.share != 1:
        said["partial_rotary_factor"] = r.share
    if r.scaling != "none":
        said["factor"] = r.factor
    if r.scaling == "llama3":
        said |= {"low_freq_factor": r.low, "high_freq_factor": r.high, "original_max_position_embeddings": r.original_len}
    return said


def layer_types(hf: dict, usual: list[str]) -> list[str]:
    """Which blocks see everything and which the nearest tokens only. Raises: ValueError for another list than one of these two for each block."""
    layers, n = hf.get("layer_types") or usual, hf["num_hidden_layers"]
    if len(layers) != n or not set(layers) <= {GLOBAL, LOCAL}:
        raise ValueError(f"layer_types={layers} in config.json; needed is {GLOBAL} or {LOCAL} for each of {n} layers: use another checkpoint")
    return layers


def config_from_hf(hf: dict) -> ModelConfig:
    kind, n = hf["model_type"], hf["num_hidden_layers"]
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window", kind == "mistral") else None
    below = hf.get("max_window_layers", 28) if kind.startswith("qwen") else 0            # these blocks see everything
    layers = layer_types(hf, [GLOBAL if i < below else LOCAL for i in range(n)])
    biased = hf.get("attention_bias", False)
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=n, n_heads=hf["num_attention_heads"],
        n_kv_heads=hf.get("num_key_value_heads", KV_HEADS.get(kind)), head_width=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"],
        n_token_types=0, positions="none", rotary=rotary_from_hf(hf), norm_position="pre", norm="rms", norm_eps=hf.get("rms_norm_eps", 1e-6),
        qkv_bias=biased or kind == "qwen2", o_bias=biased, mlp_bias=hf.get("mlp_bias", False), qk_norm=kind == "qwen3",
        activation=activation(hf, "hidden_act", "silu"), gated=True, causal=True, window=window or None,
        global_layers=tuple(i for i, layer in enumerate(layers) if layer == GLOBAL) if window else (),
        embed_norm=False, final_norm=True, pooler=False, tied=hf.get("tie_word_embeddings", False), dropout=0.0,
        attn_dropout=hf.get("attention_dropout", 0.0), head_dropout=hf.get("classifier_dropout", 0.0), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    said = {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.kv_heads, "head_dim": c.d_head, "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len,
            "rope_parameters": rotary_to_hf(c.rotary or Rotary()), "rms_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation),
            "tie_word_embeddings": c.tied, "attention_dropout": c.rate("attn_dropout"), "initializer_range": c.init_std}
    if c.rate("head_dropout"):
        said["classifier_dropout"] = c.rate("head_dropout")
    if model_type == "llama":
        return said | {"attention_bias": c.o_bias, "mlp_bias": c.mlp_bias}
    if model_type == "mistral":
        return said | {"sliding_window": c.window}
    layers = [LOCAL if c.window_of(i) else GLOBAL for i in range(c.n_layers)]
    return said | {"use_sliding_window": c.window is not None, "sliding_window": c.window, "layer_types": layers} | (
        {"attention_bias": c.o_bias} if model_type == "qwen3" else {})


def weights(c: ModelConfig) -> Table:
    return [
        Rule("embed_tokens.weight", "embed.tokens.weight"),
        *both("layers.{i}.self_attn.q_proj", "blocks.{i}.attn.q_proj"),
        *both("layers.{i}.self_attn.k_proj", "blocks.{i}.attn.k_proj"),
        *both("layers.{i}.self_attn.v_proj", "blocks.{i}.attn.v_proj"),
        *both("layers.{i}.self_attn.o_proj", "blocks.{i}.attn.o_proj"),
        Rule("layers.{i}.self_attn.q_norm.weight", "blocks.{i}.attn.q_norm.weight"),
        Rule("layers.{i}.self_attn.k_norm.weight", "blocks.{i}.attn.k_norm.weight"),
        *both("layers.{i}.mlp.gate_proj", "blocks.{i}.mlp.gate_proj"),
        *both("layers.{i}.mlp.up_proj", "blocks.{i}.mlp.up_proj"),
        *both("layers.{i}.mlp.down_proj", "blocks.{i}.mlp.down_proj"),
        Rule("layers.{i}.input_layernorm.weight", "blocks.{i}.norm_attn.weight"),
        Rule("layers.{i}.post_attention_layernorm.weight", "blocks.{i}.norm_mlp.weight"),
        Rule("norm.weight", "norm.weight"),
        Tied("lm_head.weight", to="embed_tokens.weight") if c.tied else Rule("lm_head.weight", "head.unembed.weight"),
        Rule("score.weight", "head.classifier.weight", heads=("sequence",)),
        *both("score", "head.classifier", heads=("token",)),
        *both("qa_outputs", "head.ends"),
        Ignored("layers.{i}.self_attn.rotary_emb.inv_freq", "the angles of RoPE, a buffer of old files"),
    ]


LORA_TARGETS = {"q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "v_proj": "attn.v_proj", "o_proj": "attn.o_proj", "gate_proj": "mlp.gate_proj",
                "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj"}
