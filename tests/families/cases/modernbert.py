from . import Case

SIZES = {"vocab_size": 101, "hidden_size": 28, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 53, "max_position_embeddings": 64,
         "local_attention": 24, "global_rope_theta": 1600.0, "local_rope_theta": 100.0, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2,
         "sep_token_id": 2}
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
CASES = [
    Case("modernbert", "modernbert", SIZES),
    Case("modernbert-biases", "modernbert", SIZES | BIASES | {"hidden_activation": "gelu_pytorch_tanh", "classifier_activation": "relu", "global_attn_every_n_layers": 2}),
    Case("modernbert-mean", "modernbert", SIZES | {"classifier_pooling": "mean"}, heads=("sequence",)),
    Case("modernbert-untied", "modernbert", SIZES | {"tie_word_embeddings": False, "decoder_bias": False}, heads=("masked",)),
    Case("modernbert-global", "modernbert", SIZES | {"layer_types": ["full_attention"] * 5}, heads=("masked",)),
]
