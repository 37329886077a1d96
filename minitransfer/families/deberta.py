"""DeBERTa v2 and v3: what a token is and where it stands are kept apart.

He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention"; He et al. 2023, "DeBERTaV3: Improving DeBERTa using ELECTRA-Style Pre-Training with
Gradient-Disentangled Embedding Sharing". Both have model_type deberta-v2.

Differs from BERT: scores compare contents with vectors of distances (nn/disentangled.py), in the place of a position table (or beside it); usually no token
types; a classifier reads the first token through a GELU layer of its own; v2 adds a convolution of the embeddings to the first block.
Differs from the reference library: distances count attended tokens, also in the convolution, so a padding token in the middle of a text is none; the masked
head of newer files (`legacy` false, `lm_predictions`) is read, and saved under the older names, which mean the same; `cls_dropout`, if given, is a token head's too.
Differs from its paper: nn/disentangled.py says where.
"""
from typing import Any

from ..config import Convolution, Disentangled, ModelConfig
from .rules import Ignored, Rule, Table, Tied, activation, both, spelling

MODEL_TYPES = {"deberta-v2": "DebertaV2"}
PREFIX = "deberta."
HEADS = {"Model": "none", "ForMaskedLM": "masked", "ForSequenceClassification": "sequence", "ForMultipleChoice": "choice", "ForTokenClassification": "token",
         "ForQuestionAnswering": "span"}
REQUIRED = {"tie_word_embeddings": True, "z_steps": 0}
RENAMED = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias",
           **{f"lm_predictions.lm_head.{layer}.{part}": f"cls.predictions.transform.{layer}.{part}" for layer in ("dense", "LayerNorm") for part in ("weight", "bias")},
           "lm_predictions.lm_head.bias": "cls.predictions.bias"}


def parts(said: str | list[str] | None) -> list[str]:
    """What a field lists: `"p2c|c2p"`, or a list already."""
    return [one.strip() for one in said.lower().split("|")] if isinstance(said, str) else list(said or ())


def refuse(hf: dict, field: str, why: str) -> None:
    raise ValueError(f"{field}={hf.get(field)!r} in config.json; {why}: use another checkpoint")


def disentangled_from_hf(hf: dict) -> Disentangled | None:
    """Raises: ValueError naming the field for a term, a norm or buckets that we do not have."""
    terms, norms = parts(hf.get("pos_att_type")), parts(hf.get("norm_rel_ebd"))
    if strangers := {*terms} - {"c2p", "p2c"}:
        refuse(hf, "pos_att_type", f"we compute c2p and p2c, and not {', '.join(sorted(strangers))}")
    if strangers := {*norms} - {"none", "layer_norm"}:
        refuse(hf, "norm_rel_ebd", f"we compute none and layer_norm, and not {', '.join(sorted(strangers))}")
    if bool(terms) != hf.get("relative_attention", False):
        refuse(hf, "pos_att_type", f"with relative_attention={hf.get('relative_attention', False)} it has to name {'no' if terms else 'some'} terms of the scores")
    if not terms:
        if "layer_norm" in norms:
            refuse(hf, "norm_rel_ebd", "without relative_attention there is nothing to be normed")
        return None
    furthest = hf.get("max_relative_positions", -1)
    return Disentangled(furthest if furthest >= 1 else hf["max_position_embeddings"], max(hf.get("position_buckets", -1), 0), "c2p" in terms, "p2c" in terms,
                        hf.get("share_att_key", False), "layer_norm" in norms)


def check_widths(hf: dict) -> None:
    """Widths that a config.json may give, but that have to be what they are without it. Raises: ValueError naming the field."""
    D = hf["hidden_size"]
    for field, needed in (("pooler_hidden_size", D), ("attention_head_size", D // hf["num_attention_heads"])):
        if hf.get(field, needed) != needed:
            refuse(hf, field, f"with hidden_size={D} it can only be {needed}")
    if not hf.get("legacy", True) and hf.get("embedding_size", D) != D:
        refuse(hf, "legacy", f"such a masked head needs embedding_size={D}, the hidden size")
    if (width := hf.get("conv_kernel_size", 0)) > 0 and width % 2 == 0:
        refuse(hf, "conv_kernel_size", "a token stands in the middle of what a convolution reads, so it is odd")


def config_from_hf(hf: dict) -> ModelConfig:
    check_widths(hf)
    E, width = hf.get("embedding_size", hf["hidden_size"]), hf.get("conv_kernel_size", 0)
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["hidden_size"], n_layers=hf["num_hidden_layers"], n_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"], max_len=hf["max_position_embeddings"], n_token_types=hf.get("type_vocab_size", 0),
        d_embed=None if E == hf["hidden_size"] else E, widen_first=E != hf["hidden_size"],
        positions="learned" if hf.get("position_biased_input", True) else "none", disentangled=disentangled_from_hf(hf),
        convolution=Convolution(width, hf.get("conv_groups", 1), activation(hf, "conv_act", "tanh")) if width > 0 else None,
        norm_eps=hf.get("layer_norm_eps", 1e-7), activation=activation(hf, "hidden_act", "gelu"), pooler=False,
        classifier="dense", classifier_activation=activation(hf, "pooler_hidden_act", "gelu"),
        dropout=hf.get("hidden_dropout_prob", 0.1), attn_dropout=hf.get("attention_probs_dropout_prob", 0.1), head_dropout=hf.get("cls_dropout"),
        transform_dropout=hf.get("pooler_dropout", 0.0), init_std=hf.get("initializer_range", 0.02))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    said: dict[str, Any] = {
        "vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads, "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_len, "type_vocab_size": c.n_token_types, "position_biased_input": c.positions == "learned",
        "layer_norm_eps": c.norm_eps, "hidden_act": spelling(c.activation), "pooler_hidden_act": spelling(c.classifier_activation),
        "hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": c.rate("attn_dropout"), "cls_dropout": c.head_dropout,
        "pooler_dropout": c.rate("transform_dropout"), "initializer_range": c.init_std, "legacy": True,
        "relative_attention": c.disentangled is not None, "pos_att_type": []}
    if c.embed_width != c.d_model:
        said["embedding_size"] = c.embed_width
    if (d := c.disentangled) is not None:
        said |= {"pos_att_type": ["p2c"] * d.p2c + ["c2p"] * d.c2p, "share_att_key": d.shared_keys, "max_relative_positions": d.furthest,
                 "position_buckets": d.buckets or -1, "norm_rel_ebd": "layer_norm" if d.norm else "none"}
    if c.convolution is not None:
        said |= {"conv_kernel_size": c.convolution.width, "conv_groups": c.convolution.groups, "conv_act": spelling(c.convolution.activation)}
    return said


def weights(c: ModelConfig) -> Table:
    positions = "embeddings.position_embeddings.weight"
    return [
        Rule("embeddings.word_embeddings.weight", "embed.tokens.weight"),
        Ignored(positions, "with position_biased_input false nothing reads it") if c.positions == "none" else Rule(positions, "embed.positions.weight"),
        Rule("embeddings.token_type_embeddings.weight", "embed.types.weight"),
        Rule("embeddings.embed_proj.weight", "embed.widen.weight"),
        *both("embeddings.LayerNorm", "embed.norm"),
        Rule("encoder.rel_embeddings.weight", "relative.table.weight"),
        *both("encoder.LayerNorm", "relative.norm"),
        *both("encoder.layer.{i}.attention.self.query_proj", "blocks.{i}.attn.q_proj"),
        *both("encoder.layer.{i}.attention.self.key_proj", "blocks.{i}.attn.k_proj"),
        *both("encoder.layer.{i}.attention.self.value_proj", "blocks.{i}.attn.v_proj"),
        *both("encoder.layer.{i}.attention.self.pos_key_proj", "blocks.{i}.attn.pos_k_proj"),
        *both("encoder.layer.{i}.attention.self.pos_query_proj", "blocks.{i}.attn.pos_q_proj"),
        *both("encoder.layer.{i}.attention.output.dense", "blocks.{i}.attn.o_proj"),
        *both("encoder.layer.{i}.attention.output.LayerNorm", "blocks.{i}.norm_attn"),
        *both("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.up_proj"),
        *both("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.down_proj"),
        *both("encoder.layer.{i}.output.LayerNorm", "blocks.{i}.norm_mlp"),
        *both("encoder.conv.conv", "blocks.0.near.conv"),
        *both("encoder.conv.LayerNorm", "blocks.0.near.norm"),
        *both("pooler.dense", "head.transform.dense", heads=("sequence", "choice")),
        *both("cls.predictions.transform.dense", "head.transform.dense", heads=("masked",)),
        *both("cls.predictions.transform.LayerNorm", "head.transform.norm"),
        Rule("cls.predictions.bias", "head.bias"),
        *both("classifier", "head.classifier"),
        *both("qa_outputs", "head.ends"),
        Tied("cls.predictions.decoder.weight", to="embeddings.word_embeddings.weight"),
        Tied("cls.predictions.decoder.bias", to="cls.predictions.bias"),
        *[Ignored(f"mask_predictions.{name}", "v3's question in pretraining, was this token replaced; no head here asks it")
          for layer in ("dense", "LayerNorm", "classifier") for name in (f"{layer}.weight", f"{layer}.bias")],
        Ignored("embeddings.position_ids", "a counting buffer, not a parameter"),
    ]


LORA_TARGETS = {"query_proj": "attn.q_proj", "key_proj": "attn.k_proj", "value_proj": "attn.v_proj", "pos_key_proj": "attn.pos_k_proj",
                "pos_query_proj": "attn.pos_q_proj", "attention.output.dense": "attn.o_proj", "intermediate.dense": "mlp.up_proj", "output.dense": "mlp.down_proj"}
