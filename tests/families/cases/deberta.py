from . import Case

SIZES = {"vocab_size": 101, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53, "max_position_embeddings": 37,
         "type_vocab_size": 0, "relative_attention": True, "pos_att_type": "p2c|c2p"}
V3 = SIZES | {"position_buckets": 6, "max_relative_positions": 23, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu"}
TYPES = {"type_vocab_size": 2, "embedding_size": 17, "max_relative_positions": 7, "pooler_hidden_act": "relu"}
CASES = [
    Case("deberta-v3", "deberta-v2", V3, bar=2e-5),
    Case("deberta-v2", "deberta-v2", V3 | CONVOLUTION, bar=2e-5, heads=("masked", "token")),
    Case("deberta-v2-own-keys", "deberta-v2", SIZES | TYPES, token_types=True, bar=2e-5),
    Case("deberta-v2-c2p", "deberta-v2", SIZES | {"pos_att_type": ["c2p"], "conv_kernel_size": 5, "conv_groups": 7}, bar=2e-5, heads=("masked",)),
    Case("deberta-v2-p2c", "deberta-v2", V3 | {"pos_att_type": ["p2c"], "share_att_key": False, "position_buckets": 5}, bar=2e-5, heads=("masked",)),
    Case("deberta-v2-plain", "deberta-v2", SIZES | {"relative_attention": False, "pos_att_type": None}, bar=2e-5, heads=("masked",)),
]
