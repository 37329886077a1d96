"""ALBERT: a BERT with one block, applied again and again.

Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations".

Differs from BERT: all layers share one block (`shared_blocks`); the token table is narrower than the model, with a Linear between the two; tanh GELU; the
second question asks whether two sentences stand in their order, which is the same maths with dropout in front.
Differs from the reference library: positions count attended tokens; a span head scores padding with the lowest number; in training the output of the
feed-forward part has dropout as in BERT, which is left out there (the second version of the weights was trained with none at all).

One block, what that means for transfer: the model has n_layers layers and one block, `blocks.0`, and every tool that speaks of blocks speaks of it.
    freezing        `freeze(model, "blocks.0")` freezes every layer; `blocks.1` names nothing; `last:1` trains the block, which is all layers, and
                    `last:2` is an error. Discriminative rates and gradual unfreezing have three steps: embed, blocks.0, what is above.
    gradients       of a parameter in the block are the sum over the layers that used it
    LoRA, adapters  one set of matrices, applied in every layer
    prefix          one set of keys and values, which every layer sees
    student         `student(model, n)` keeps the block and applies it n times
"""
from ..config import ModelConfig
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling

MODEL_TYPES = {"albert": "Albert"}
PREFIX = "albert."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForPreTraining": "masked+next", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice",
         "ForTokenClassification": "token", "ForQuestionAnswering": "span"}
REQUIRED = {"position_embedding_type": "absolute", "tie_word_embeddings": True, "num_hidden_groups": 1, "inner_group_num": 1}
RENAMED: dict[str, str] = {}


def config_from_hf(hf: dict) -> ModelConfig:
    classifier_dropout = hf.get("classifier_dropout_prob", 0.1)
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], d_embed=hf["embedding_size"], n_layers=hf["num_hidden_layers"], shared_blocks=True,
        n_heads=hf["num_attention_heads"], d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"], n_token_types=hf.get("type_vocab_size", 2),
        norm_eps=hf.get("layer_norm_eps", 1e-12), activation=activation(hf, "hidden_act", "gelu_new"), pooler=True, dropout=hf.get("hidden_dropout_prob", 0.0),
        attn_dropout=hf.get("attention_probs_dropout_prob", 0.0), head_dropout=classifier_dropout, next_dropout=classifier_dropout,
        init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    return {"vocab_size": c.vocab_size, "embedding_size": c.embed_width, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads, "intermediate_size": c.d_ff, "max_position_embeddings": c.max_len, "type_vocab_size": c.n_token_types,
            "layer_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation), "hidden_dropout_prob": c.dropout,
            "attention_probs_dropout_prob": c.rate("attn_dropout"), "classifier_dropout_prob": c.rate("head_dropout"), "initializer_range": c.init_std}


BLOCK = "encoder.albert_layer_groups.0.albert_layers.0"


def weights(c: ModelConfig) -> Table:
    return [
        Rule("embeddings.word_embeddings.weight", "embed.tokens.weight"),
        Rule("embeddings.position_embeddings.weight", "embed.positions.weight"),
        Rule("embeddings.token_type_embeddings.weight", "embed.types.weight"),
        *both("embeddings.LayerNorm", "embed.norm"),
        *both("encoder.embedding_hidden_mapping_in", "embed.widen"),
        *both(f"{BLOCK}.attention.query", "blocks.0.attn.q_proj"),
        *both(f"{BLOCK}.attention.key", "blocks.0.attn.k_proj"),
        *both(f"{BLOCK}.attention.value", "blocks.0.attn.v_proj"),
        *both(f"{BLOCK}.attention.dense", "blocks.0.attn.o_proj"),
        *both(f"{BLOCK}.attention.LayerNorm", "blocks.0.norm_attn"),
        *both(f"{BLOCK}.ffn", "blocks.0.mlp.up_proj"),
        *both(f"{BLOCK}.ffn_output", "blocks.0.mlp.down_proj"),
        *both(f"{BLOCK}.full_layer_layer_norm", "blocks.0.norm_mlp"),
        *both("pooler", "pooler"),
        *both("predictions.dense", "head.transform.dense"),
        *both("predictions.LayerNorm", "head.transform.norm"),
        Rule("predictions.bias", "head.bias"),
        *both("sop_classifier.classifier", "head.next_sentence"),
        *both("classifier", "head.classifier"),
        *both("qa_outputs", "head.ends"),
        Tied("predictions.decoder.weight", to="embeddings.word_embeddings.weight"),
        Tied("predictions.decoder.bias", to="predictions.bias"),
        Ignored("embeddings.position_ids", "a counting buffer, not a parameter"),
    ]


LORA_TARGETS = {"query": "attn.q_proj", "key": "attn.k_proj", "value": "attn.v_proj", "attention.dense": "attn.o_proj", "ffn": "mlp.up_proj",
                "ffn_output": "mlp.down_proj"}
