"""MPNet: RoBERTa's network, which also adds a learned number for the distance of two tokens to their score.

Song et al. 2020, "MPNet: Masked and Permuted Pre-training for Language Understanding".

Differs from BERT: positions are counted from 2; every block adds the same table of numbers for 32 buckets of distances, as in T5; no token types; a classifier
of texts has a tanh layer of its own; the masked head's activation is always the exact GELU.
Differs from the reference library: positions and distances count attended tokens; a span head scores padding with the lowest number. There the number of buckets is 32
whatever `relative_attention_num_buckets` says; here another number is an error.
Differs from its paper: the permuted objective it was pretrained with is not here, only the network.
"""
from ..config import ModelConfig
from .roberta import RENAMED, TOP
from .rules import Ignored, Rule, Table, activation, both, spelling

__all__ = ["RENAMED"]

MODEL_TYPES = {"mpnet": "MPNet"}
PREFIX = "mpnet."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice", "ForTokenClassification": "token",
         "ForQuestionAnswering": "span"}
REQUIRED = {"tie_word_embeddings": True, "relative_attention_num_buckets": 32}
OFFSET = 2


def config_from_hf(hf: dict) -> ModelConfig:
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=hf["num_hidden_layers"], n_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"] - OFFSET, position_offset=OFFSET, n_token_types=0, relative_buckets=32,
        relative_distance=128, norm_eps=hf.get("layer_norm_eps", 1e-12), activation=activation(hf, "hidden_act", "gelu"), head_activation="gelu", pooler=True,
        classifier="dense", dropout=hf.get("hidden_dropout_prob", 0.1), attn_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len + OFFSET, "layer_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation),
            "hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": c.rate("attn_dropout"), "initializer_range": c.init_std}


def weights(c: ModelConfig) -> Table:
    return [
        Rule("embeddings.word_embeddings.weight", "embed.tokens.weight"),
        Rule("embeddings.position_embeddings.weight", "embed.positions.weight"),
        *both("embeddings.LayerNorm", "embed.norm"),
        *both("encoder.layer.{i}.attention.attn.q", "blocks.{i}.attn.q_proj"),
        *both("encoder.layer.{i}.attention.attn.k", "blocks.{i}.attn.k_proj"),
        *both("encoder.layer.{i}.attention.attn.v", "blocks.{i}.attn.v_proj"),
        *both("encoder.layer.{i}.attention.attn.o", "blocks.{i}.attn.o_proj"),
        *both("encoder.layer.{i}.attention.LayerNorm", "blocks.{i}.norm_attn"),
        *both("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.up_proj"),
        *both("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.down_proj"),
        *both("encoder.layer.{i}.output.LayerNorm", "blocks.{i}.norm_mlp"),
        Rule("encoder.relative_attention_bias.weight", "relative.table.weight"),
        *TOP,
        Ignored("embeddings.position_ids", "a counting buffer, not a parameter"),
    ]


LORA_TARGETS = {"attn.q": "attn.q_proj", "attn.k": "attn.k_proj", "attn.v": "attn.v_proj", "attn.o": "attn.o_proj", "intermediate.dense": "mlp.up_proj",
                "output.dense": "mlp.down_proj"}
