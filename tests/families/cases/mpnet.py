from . import Case

SIZES = {"vocab_size": 101, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53, "max_position_embeddings": 157}
CASES = [Case("mpnet", "mpnet", SIZES, lengths=(13, 149))]
