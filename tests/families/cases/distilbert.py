from . import Case

SIZES = {"vocab_size": 101, "dim": 28, "n_layers": 3, "n_heads": 4, "hidden_dim": 53, "max_position_embeddings": 37}
CASES = [Case("distilbert", "distilbert", SIZES), Case("distilbert-waves", "distilbert", SIZES | {"sinusoidal_pos_embds": True, "activation": "relu"}, heads=("masked",))]
