from . import Case

SIZES = {"vocab_size": 101, "embedding_size": 19, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53,
         "max_position_embeddings": 37}
WITHOUT = {"ForCausalLM": "a decoder of ELECTRA's layout has no published weights"}
CASES = [Case("electra", "electra", SIZES, token_types=True, without=WITHOUT),
         Case("electra-base", "electra", SIZES | {"embedding_size": 28, "hidden_act": "relu"}, token_types=True, heads=("masked", "replaced", "choice"))]
