from . import Case

SIZES = {"vocab_size": 103, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 59,
         "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
CASES = [
    Case("llama", "llama", SIZES),
    Case("llama-3", "llama", SIZES | {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 8}, heads=("causal",)),
    Case("llama-linear", "llama", SIZES | {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}, "attention_bias": True, "mlp_bias": True},
         heads=("causal",)),
    Case("mistral", "mistral", SIZES | {"sliding_window": 11, "head_dim": 10}),
    Case("qwen2", "qwen2", SIZES | {"tie_word_embeddings": True}),
    Case("qwen2-window", "qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, heads=("causal",)),
    Case("qwen3", "qwen3", SIZES | {"head_dim": 10}),
]
