from . import Case

SIZES = {"vocab_size": 103, "d_model": 28, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 5, "d_ff": 53, "n_positions": 37,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 19, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
GATED = SIZES | {"feed_forward_proj": "gated-gelu"}
CASES = [
    Case("t5", "t5", SIZES, bar=2e-5),
    Case("t5-v1.1", "t5", GATED | {"tie_word_embeddings": False}, bar=2e-5, heads=("seq2seq", "none"), untied=True),
    Case("mt5", "mt5", GATED, bar=2e-5),
]
