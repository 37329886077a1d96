"""T5: an encoder-decoder that turns every question into text.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer". Version 1.1 and FLAN-T5 (Chung et al. 2022) gate the
feed-forward part, use no dropout in pretraining and have an output matrix of their own; mT5 (Xue et al. 2021) is version 1.1 on a hundred languages.

Differs from BERT: a decoder beside the encoder; pre-norm with RMSNorm, no biases at all; no position table, a number for each bucket of distances is added to the
scores of every block; scores are not divided by sqrt(Dh), heads need not share the width equally; logits of a tied output matrix are divided by sqrt(D).
Differs from the reference library: the table of distances stands beside the blocks (in the files the first block owns it); a sequence head reads the last token, which
is `</s>` where texts end with it (there: the last `</s>`, and texts without are refused); token heads are on the encoder alone, there as here.
Differs from its paper: fresh weights are N(0, init_std^2) like everyone's.

Files of 32,100 tokens have tables of 32,128 rows: a multiple of 128. Whether the output matrix is the token table is told by the file, not by its config.
"""
from ..config import ModelConfig
from .rules import Ignored, Rule, Table, Tied, activation, spelling

MODEL_TYPES = {"t5": "T5", "mt5": "MT5"}
PREFIX = ""
HEADS = {"Model": "none", "ForConditionalGeneration": "seq2seq", "ForSequenceClassification": "sequence", "ForQuestionAnswering": "span"}
ENCODER_HEADS = {"EncoderModel": "none", "ForTokenClassification": "token"}
ODD_PREFIXES = {f"{stem}{ending}": "transformer." for stem in MODEL_TYPES.values() for ending in ("ForSequenceClassification", "ForTokenClassification")}
OUTPUT = ("lm_head.weight", "shared.weight")
REQUIRED: dict[str, object] = {"is_decoder": False}
RENAMED: dict[str, str] = {}


def feed_forward(said: str) -> tuple[str, bool]:
    """The activation and whether it is a gate, of "relu" or "gated-gelu", which means the tanh form. Raises: ValueError that names the field for another form."""
    *gate, bend = said.split("-")
    if gate not in ([], ["gated"]):
        raise ValueError(f"feed_forward_proj={said!r} in config.json; it is the name of an activation, or gated- and one: use another checkpoint")
    return "gelu_new" if gate and bend == "gelu" else bend, bool(gate)


def config_from_hf(hf: dict) -> ModelConfig:
    plain = hf["model_type"] == "t5"
    bend, gated = feed_forward(hf.get("feed_forward_proj", "relu" if plain else "gated-gelu"))
    tied = hf.get("tie_word_embeddings", True)
    names_it = "feed_forward_proj" if hf.get("dense_act_fn") in (None, bend) else "dense_act_fn"
    return ModelConfig(
        vocab_size=hf["vocab_size"], d_model=hf["d_model"], n_layers=hf["num_layers"], n_heads=hf["num_heads"], d_ff=hf["d_ff"], max_len=hf.get("n_positions", 512),
        head_width=hf["d_kv"], n_decoder_layers=hf.get("num_decoder_layers") or hf["num_layers"], start_id=hf.get("decoder_start_token_id") or 0,
        pad_id=hf.get("pad_token_id") or 0, n_token_types=0, positions="none", relative_buckets=hf.get("relative_attention_num_buckets", 32),
        relative_distance=hf.get("relative_attention_max_distance", 128), norm_position="pre", norm="rms", norm_eps=hf.get("layer_norm_epsilon", 1e-6),
        qkv_bias=False, o_bias=False, mlp_bias=False, attn_scale=1.0, activation=activation({names_it: hf.get("dense_act_fn") or bend}, names_it, bend),
        gated=hf.get("is_gated_act", gated), wide_stream=True, embed_norm=False, final_norm=True, pooler=False, tied=tied,
        logit_scale=hf["d_model"] ** -0.5 if plain and hf.get("scale_decoder_outputs", tied) else 1.0, classifier="dense",
        dropout=hf.get("dropout_rate", 0.1), mlp_dropout=hf.get("dropout_rate", 0.1), head_dropout=hf.get("classifier_dropout", 0.0))


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    bend = "gelu" if c.gated and c.activation == "gelu_tanh" else spelling(c.activation)
    said = {"vocab_size": c.vocab_size, "d_model": c.d_model, "num_layers": c.n_layers, "num_decoder_layers": c.n_decoder_layers or c.n_layers,
            "num_heads": c.n_heads, "d_kv": c.d_head, "d_ff": c.d_ff, "n_positions": c.max_len, "relative_attention_num_buckets": c.relative_buckets,
            "relative_attention_max_distance": c.relative_distance, "layer_norm_epsilon": c.norm_eps, "feed_forward_proj": f"gated-{bend}" if c.gated else bend,
            "tie_word_embeddings": c.tied, "dropout_rate": c.dropout, "classifier_dropout": c.rate("head_dropout"), "pad_token_id": c.pad_id,
            "decoder_start_token_id": c.start_id}
    return said | ({"scale_decoder_outputs": c.logit_scale != 1} if model_type == "t5" else {})


def stack(side: str, ours: str, gated: bool) -> list[Rule]:
    """The rules of one stack; `ours` is what our names begin with."""
    attention = {"SelfAttention": "attn"} | ({"EncDecAttention": "cross_attn"} if side == "decoder" else {})
    norms = ("attn", "cross", "mlp") if side == "decoder" else ("attn", "mlp")
    last = f"{side}.block.{{i}}.layer.{len(norms) - 1}.DenseReluDense"
    return [
        *(Rule(f"{side}.block.{{i}}.layer.{n}.{theirs}.{x}.weight", f"{ours}blocks.{{i}}.{name}.{x}_proj.weight")
          for n, (theirs, name) in enumerate(attention.items()) for x in "qkvo"),
        *(Rule(f"{side}.block.{{i}}.layer.{n}.layer_norm.weight", f"{ours}blocks.{{i}}.norm_{name}.weight") for n, name in enumerate(norms)),
        *(Rule(f"{last}.{theirs}.weight", f"{ours}blocks.{{i}}.mlp.{name}_proj.weight")
          for theirs, name in (({"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}) | {"wo": "down"}).items()),
        Rule(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{ours}relative.table.weight"),
        Rule(f"{side}.final_layer_norm.weight", f"{ours}norm.weight")]


def weights(c: ModelConfig) -> Table:
    whole = c.n_decoder_layers > 0
    first = "encoder." if whole else ""
    decoder = stack("decoder", "decoder.", c.gated)
    return [
        Rule("shared.weight", f"{first}embed.tokens.weight"),
        *stack("encoder", first, c.gated),
        *(decoder if whole else [Ignored(rule.theirs, "of the decoder, which this head does not need") for rule in decoder]),
        Tied("encoder.embed_tokens.weight", to="shared.weight"),
        Tied("decoder.embed_tokens.weight", to="shared.weight"),
        Tied("lm_head.weight", to="shared.weight") if c.tied else Rule("lm_head.weight", "head.unembed.weight"),
        *(Rule(f"classification_head.{name}.{part}", f"head.{ours}.{part}", heads=("sequence",))
          for name, ours in (("dense", "transform.dense"), ("out_proj", "classifier")) for part in ("weight", "bias")),
        *(Rule(f"classifier.{part}", f"head.classifier.{part}", heads=("token",)) for part in ("weight", "bias")),
        *(Rule(f"qa_outputs.{part}", f"head.ends.{part}") for part in ("weight", "bias")),
        Ignored("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", "of cross-attention in old files, which nothing reads")]


LORA_TARGETS = {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.o_proj", "wi": "mlp.up_proj", "wi_0": "mlp.gate_proj",
                "wi_1": "mlp.up_proj", "wo": "mlp.down_proj"}
