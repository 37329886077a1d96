"""ELECTRA: BERT's network, trained to tell replaced tokens from original ones.

Clark et al. 2020, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators". The generator, a masked model that proposes the
replacements, is of this family too; `objective="replaced"` trains both (objectives/replaced.py).

Differs from BERT: the token table may be narrower than the model, with a Linear between the two; no pooler: a classifier of texts has a GELU layer of its
own; the discriminator's head answers for every token, and a masked head's activation is always the exact GELU.
Differs from the reference library: positions count attended tokens; a span head scores padding with the lowest number.
"""
from ..config import ModelConfig
from .bert import BODY, LORA_TARGETS, RENAMED
from .rules import Rule, Table, Tied, activation, both, spelling

__all__ = ["LORA_TARGETS", "RENAMED"]

MODEL_TYPES = {"electra": "Electra"}
PREFIX = "electra."
HEADS = {"Model": "none", "ForPreTraining": "replaced", "ForMaskedLM": "masked", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice",
         "ForTokenClassification": "token", "ForQuestionAnswering": "span"}
REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True, "summary_type": "first",
            "summary_use_proj": True, "summary_activation": "gelu", "summary_first_dropout": 0.0, "summary_proj_to_labels": False}


def config_from_hf(hf: dict) -> ModelConfig:
    width, narrow = hf["hidden_size"], hf["embedding_size"]
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=width, d_embed=None if narrow == width else narrow, n_layers=hf["num_hidden_layers"],
        n_heads=hf["num_attention_heads"], d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"], n_token_types=hf.get("type_vocab_size", 2),
        norm_eps=hf.get("layer_norm_eps", 1e-12), activation=activation(hf, "hidden_act", "gelu"), head_activation="gelu", pooler=False,
        classifier="dense", classifier_activation="gelu", dropout=hf.get("hidden_dropout_prob", 0.1), attn_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        head_dropout=hf.get("classifier_dropout"), choice_dropout=hf.get("summary_last_dropout", 0.1), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "embedding_size": c.embed_width, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads, "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len, "type_vocab_size": c.n_token_types,
            "layer_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation), "hidden_dropout_prob": c.dropout,
            "attention_probs_dropout_prob": c.rate("attn_dropout"), "classifier_dropout": c.head_dropout, "summary_last_dropout": c.rate("choice_dropout"),
            "initializer_range": c.init_std}


def weights(c: ModelConfig) -> Table:
    return [
        *BODY,
        *both("embeddings_project", "embed.widen"),
        *both("discriminator_predictions.dense", "head.transform.dense", heads=("replaced",)),
        *both("discriminator_predictions.dense_prediction", "head.answer"),
        *both("generator_predictions.dense", "head.transform.dense", heads=("masked",)),
        *both("generator_predictions.LayerNorm", "head.transform.norm"),
        Rule("generator_lm_head.bias", "head.bias"),
        *both("classifier.dense", "head.transform.dense", heads=("sequence",)),
        *both("classifier.out_proj", "head.classifier", heads=("sequence",)),
        *both("sequence_summary.summary", "head.transform.dense", heads=("choice",)),
        *both("classifier", "head.classifier", heads=("token", "choice")),
        *both("qa_outputs", "head.ends"),
        Tied("generator_lm_head.weight", to="embeddings.word_embeddings.weight"),
    ]
