"""RoBERTa: BERT trained longer on more text, without the second question.

Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach". XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020) are the
same network on other texts and vocabularies.

Differs from BERT: positions are counted from the padding id + 1, so that of 514 rows 512 can be used; pairs are written `<s> a </s></s> b </s>` with one
token type; a classifier has a tanh layer of its own, so that there is no pooler; the masked head's activation is always the exact GELU.
Differs from the reference library: positions count attended tokens, so a padding token in the middle of a text is none.
"""
from ..config import ModelConfig
from .bert import BODY, LORA_TARGETS, RENAMED
from .rules import Rule, Table, Tied, activation, both, spelling

__all__ = ["LORA_TARGETS", "RENAMED"]

MODEL_TYPES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
PREFIX = "roberta."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice", "ForTokenClassification": "token",
         "ForQuestionAnswering": "span"}
REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}


def config_from_hf(hf: dict) -> ModelConfig:
    offset = hf.get("pad_token_id", 1) + 1
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=hf["num_hidden_layers"], n_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"] - offset, position_offset=offset, n_token_types=hf.get("type_vocab_size", 2),
        norm_eps=hf.get("layer_norm_eps", 1e-12), activation=activation(hf, "hidden_act", "gelu"), head_activation="gelu", pooler=True, classifier="dense",
        dropout=hf.get("hidden_dropout_prob", 0.1), attn_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        head_dropout=hf.get("classifier_dropout"), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len + c.position_offset, "pad_token_id": c.position_offset - 1,
            "type_vocab_size": c.n_token_types, "layer_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation), "hidden_dropout_prob": c.dropout,
            "attention_probs_dropout_prob": c.rate("attn_dropout"), "classifier_dropout": c.head_dropout, "initializer_range": c.init_std}


TOP: Table = [                           # what MPNet has too
    *both("pooler.dense", "pooler"),
    *both("lm_head.dense", "head.transform.dense", heads=("masked",)),
    *both("lm_head.layer_norm", "head.transform.norm"),
    Rule("lm_head.bias", "head.bias"),
    *both("classifier.dense", "head.transform.dense", heads=("sequence",)),
    *both("classifier.out_proj", "head.classifier", heads=("sequence",)),
    *both("classifier", "head.classifier", heads=("token", "choice")),
    *both("qa_outputs", "head.ends"),
    Tied("lm_head.decoder.weight", to="embeddings.word_embeddings.weight"),
    Tied("lm_head.decoder.bias", to="lm_head.bias"),
]


def weights(c: ModelConfig) -> Table:
    return [*BODY, *TOP]
