from . import Case

SIZES = {"vocab_size": 101, "embedding_size": 19, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53,
         "max_position_embeddings": 37}
CASES = [Case("albert", "albert", SIZES, token_types=True),
         Case("albert-square", "albert", SIZES | {"embedding_size": 28, "hidden_act": "gelu"}, token_types=True, heads=("masked",))]
