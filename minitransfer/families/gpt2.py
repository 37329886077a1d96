"""GPT-2: the decoder every other decoder is described against.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

What it chooses: causal attention, pre-norm with a final norm, tanh GELU, learned positions, output matrix tied to the token table.
Differs from BERT in the file: matrices are stored (in, out), and q, k, v are one matrix.
Differs from the reference library: a sequence head reads the last attended token, with or without a padding token in the vocabulary.
"""
from ..config import ModelConfig
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling, split, transpose, transpose_split

MODEL_TYPES = {"gpt2": "GPT2"}
PREFIX = "transformer."
HEADS = {"Model": "none", "LMHeadModel": "causal", "ForSequenceClassification": "sequence", "ForTokenClassification": "token", "ForQuestionAnswering": "span"}
REQUIRED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True}


def config_from_hf(hf: dict) -> ModelConfig:
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["n_embd"], n_layers=hf["n_layer"], n_heads=hf["n_head"], d_ff=hf.get("n_inner") or 4 * hf["n_embd"],
        max_len=hf.get("n_positions") or hf["n_ctx"], norm_position="pre", norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=activation(hf, "activation_function", "gelu_new"), causal=True, n_token_types=0, embed_norm=False, final_norm=True, pooler=False,
        dropout=hf.get("resid_pdrop", 0.1), attn_dropout=hf.get("attn_pdrop", 0.1), embed_dropout=hf.get("embd_pdrop", 0.1),
        head_dropout=hf.get("classifier_dropout"), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "n_embd": c.d_model, "n_layer": c.n_layers, "n_head": c.n_heads, "n_inner": c.d_ff,
            "n_positions": c.max_len, "layer_norm_epsilon": c.norm_eps, "activation_function": spelling(c.activation), "resid_pdrop": c.dropout,
            "attn_pdrop": c.rate("attn_dropout"), "embd_pdrop": c.rate("embed_dropout"), "classifier_dropout": c.head_dropout,
            "initializer_range": c.init_std}


RENAMED: dict[str, str] = {}


def weights(c: ModelConfig) -> Table:
    return [
        Rule("wte.weight", "embed.tokens.weight"),
        Rule("wpe.weight", "embed.positions.weight"),
        Rule("h.{i}.attn.c_attn.weight", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.weight", transpose_split),
        Rule("h.{i}.attn.c_attn.bias", "blocks.{i}.attn.{q_proj,k_proj,v_proj}.bias", split),
        Rule("h.{i}.attn.c_proj.weight", "blocks.{i}.attn.o_proj.weight", transpose),
        Rule("h.{i}.attn.c_proj.bias", "blocks.{i}.attn.o_proj.bias"),
        Rule("h.{i}.mlp.c_fc.weight", "blocks.{i}.mlp.up_proj.weight", transpose),
        Rule("h.{i}.mlp.c_fc.bias", "blocks.{i}.mlp.up_proj.bias"),
        Rule("h.{i}.mlp.c_proj.weight", "blocks.{i}.mlp.down_proj.weight", transpose),
        Rule("h.{i}.mlp.c_proj.bias", "blocks.{i}.mlp.down_proj.bias"),
        *both("h.{i}.ln_1", "blocks.{i}.norm_attn"),
        *both("h.{i}.ln_2", "blocks.{i}.norm_mlp"),
        *both("ln_f", "norm"),
        Rule("score.weight", "head.classifier.weight", heads=("sequence",)),
        *both("classifier", "head.classifier", heads=("token",)),
        *both("qa_outputs", "head.ends"),
        Tied("lm_head.weight", to="wte.weight"),
        Ignored("h.{i}.attn.bias", "the causal mask, a buffer of old files"),
        Ignored("h.{i}.attn.masked_bias", "a constant of old files"),
    ]


LORA_TARGETS = {"c_attn": "attn.{q_proj,k_proj,v_proj}", "attn.c_proj": "attn.o_proj", "c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
