"""DistilBERT: a BERT of half the blocks, taught by a whole one.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter".

Differs from BERT: no token types and no pooler; a classifier of texts has a ReLU layer of its own, with dropout behind it only; every head has its own
rate of dropout, a span head too; the norms' epsilon is always 1e-12. `sinusoidal_pos_embds` says what the position table began with; it is a table all the same.
Differs from the reference library: positions count attended tokens; a span head scores padding with the lowest number; in training the output of attention
has dropout as in BERT, which is left out there.
"""
from ..config import ModelConfig
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling

MODEL_TYPES = {"distilbert": "DistilBert"}
PREFIX = "distilbert."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice", "ForTokenClassification": "token",
         "ForQuestionAnswering": "span"}
REQUIRED = {"tie_word_embeddings": True}
RENAMED: dict[str, str] = {}


def config_from_hf(hf: dict) -> ModelConfig:
    dropout = hf.get("dropout", 0.1)
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["dim"], n_layers=hf["n_layers"], n_heads=hf["n_heads"], d_ff=hf["hidden_dim"],
        max_len=hf["max_position_embeddings"], n_token_types=0, norm_eps=1e-12, activation=activation(hf, "activation", "gelu"), pooler=False,
        classifier="dense", classifier_activation="relu", transform_dropout=0.0, dropout=dropout, attn_dropout=hf.get("attention_dropout", 0.1),
        head_dropout=hf.get("seq_classif_dropout", 0.2), token_dropout=dropout, span_dropout=hf.get("qa_dropout", 0.1),
        init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "dim": c.d_model, "n_layers": c.n_layers, "n_heads": c.n_heads, "hidden_dim": c.d_ff, "max_position_embeddings": c.max_len,
            "activation": spelling(c.activation), "dropout": c.dropout, "attention_dropout": c.rate("attn_dropout"), "seq_classif_dropout": c.rate("head_dropout"),
            "qa_dropout": c.rate("span_dropout"), "initializer_range": c.init_std}


def weights(c: ModelConfig) -> Table:
    return [
        Rule("embeddings.word_embeddings.weight", "embed.tokens.weight"),
        Rule("embeddings.position_embeddings.weight", "embed.positions.weight"),
        *both("embeddings.LayerNorm", "embed.norm"),
        *both("transformer.layer.{i}.attention.q_lin", "blocks.{i}.attn.q_proj"),
        *both("transformer.layer.{i}.attention.k_lin", "blocks.{i}.attn.k_proj"),
        *both("transformer.layer.{i}.attention.v_lin", "blocks.{i}.attn.v_proj"),
        *both("transformer.layer.{i}.attention.out_lin", "blocks.{i}.attn.o_proj"),
        *both("transformer.layer.{i}.sa_layer_norm", "blocks.{i}.norm_attn"),
        *both("transformer.layer.{i}.ffn.lin1", "blocks.{i}.mlp.up_proj"),
        *both("transformer.layer.{i}.ffn.lin2", "blocks.{i}.mlp.down_proj"),
        *both("transformer.layer.{i}.output_layer_norm", "blocks.{i}.norm_mlp"),
        *both("vocab_transform", "head.transform.dense", heads=("masked",)),
        *both("vocab_layer_norm", "head.transform.norm"),
        Rule("vocab_projector.bias", "head.bias"),
        *both("pre_classifier", "head.transform.dense", heads=("sequence", "choice")),
        *both("classifier", "head.classifier"),
        *both("qa_outputs", "head.ends"),
        Tied("vocab_projector.weight", to="embeddings.word_embeddings.weight"),
        Ignored("embeddings.position_ids", "a counting buffer, not a parameter"),
    ]


LORA_TARGETS = {"q_lin": "attn.q_proj", "k_lin": "attn.k_proj", "v_lin": "attn.v_proj", "out_lin": "attn.o_proj", "lin1": "mlp.up_proj", "lin2": "mlp.down_proj"}
