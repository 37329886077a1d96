from . import Case

SIZES = {"vocab_size": 101, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53, "max_position_embeddings": 37}
WITHOUT = {"ForNextSentencePrediction": "its question is half of ForPreTraining", "LMHeadModel": "a decoder of BERT's layout has no published weights"}
CASES = [Case("bert", "bert", SIZES, token_types=True, without=WITHOUT)]
