"""BERT: the encoder every other encoder is described against.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".

What it chooses: bidirectional attention, post-norm, exact GELU, learned positions, two segment types, a norm after the embeddings, a tanh pooler on [CLS].
Differs from the reference library: positions count attended tokens, so left padding changes nothing (there padding is counted too);
a span head scores padding with the lowest number, so a padded text answers as it does alone.
"""
from ..config import ModelConfig
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling

MODEL_TYPES = {"bert": "Bert"}
PREFIX = "bert."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForPreTraining": "masked+next", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice",
         "ForTokenClassification": "token", "ForQuestionAnswering": "span"}
REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}


def config_from_hf(hf: dict) -> ModelConfig:
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=hf["num_hidden_layers"], n_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"], n_token_types=hf.get("type_vocab_size", 2),
        norm_eps=hf.get("layer_norm_eps", 1e-12), activation=activation(hf, "hidden_act", "gelu"), pooler=True,
        dropout=hf.get("hidden_dropout_prob", 0.1), attn_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        head_dropout=hf.get("classifier_dropout"), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len, "type_vocab_size": c.n_token_types, "layer_norm_eps": c.norm_eps,
            "hidden_act": spelling(c.activation), "hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": c.rate("attn_dropout"),
            "classifier_dropout": c.head_dropout, "initializer_range": c.init_std}


RENAMED = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}     # files converted from the first release

BODY: Table = [                          # what RoBERTa and ELECTRA have too
    Rule("embeddings.word_embeddings.weight", "embed.tokens.weight"),
    Rule("embeddings.position_embeddings.weight", "embed.positions.weight"),
    Rule("embeddings.token_type_embeddings.weight", "embed.types.weight"),
    *both("embeddings.LayerNorm", "embed.norm"),
    *both("encoder.layer.{i}.attention.self.query", "blocks.{i}.attn.q_proj"),
    *both("encoder.layer.{i}.attention.self.key", "blocks.{i}.attn.k_proj"),
    *both("encoder.layer.{i}.attention.self.value", "blocks.{i}.attn.v_proj"),
    *both("encoder.layer.{i}.attention.output.dense", "blocks.{i}.attn.o_proj"),
    *both("encoder.layer.{i}.attention.output.LayerNorm", "blocks.{i}.norm_attn"),
    *both("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.up_proj"),
    *both("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.down_proj"),
    *both("encoder.layer.{i}.output.LayerNorm", "blocks.{i}.norm_mlp"),
    Ignored("embeddings.position_ids", "a counting buffer, not a parameter"),
]


def weights(c: ModelConfig) -> Table:
    return [
        *BODY,
        *both("pooler.dense", "pooler"),
        *both("cls.predictions.transform.dense", "head.transform.dense"),
        *both("cls.predictions.transform.LayerNorm", "head.transform.norm"),
        Rule("cls.predictions.bias", "head.bias"),
        *both("cls.seq_relationship", "head.next_sentence"),
        *both("classifier", "head.classifier"),
        *both("qa_outputs", "head.ends"),
        Tied("cls.predictions.decoder.weight", to="embeddings.word_embeddings.weight"),
        Tied("cls.predictions.decoder.bias", to="cls.predictions.bias"),
    ]


LORA_TARGETS = {"query": "attn.q_proj", "key": "attn.k_proj", "value": "attn.v_proj", "attention.output.dense": "attn.o_proj",
                "intermediate.dense": "mlp.up_proj", "output.dense": "mlp.down_proj"}
