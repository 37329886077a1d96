from . import Case

SIZES = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 59, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0, "partial_rotary_factor": 0.5}
CASES = [
    Case("gpt_neox", "gpt_neox", SIZES),
    Case("gpt_neox-serial", "gpt_neox", SIZES | {"use_parallel_residual": False, "tie_word_embeddings": True, "rotary_pct": 1.0, "hidden_act": "gelu_fast"}, heads=("causal",)),
    Case("gpt_neox-linear", "gpt_neox", SIZES | {"rope_parameters": LINEAR, "attention_bias": False}, heads=("causal",)),
]
