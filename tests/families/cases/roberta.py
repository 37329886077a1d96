from . import Case

SIZES = {"vocab_size": 101, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53, "max_position_embeddings": 37,
         "type_vocab_size": 1, "layer_norm_eps": 1e-5}
WITHOUT = {"ForCausalLM": "a decoder of RoBERTa's layout has no published weights"}
CASES = [Case("roberta", "roberta", SIZES, without=WITHOUT), Case("xlm-roberta", "xlm-roberta", SIZES, without=WITHOUT),
         Case("camembert", "camembert", SIZES, without=WITHOUT), Case("roberta-relu", "roberta", SIZES | {"hidden_act": "relu"}, heads=("masked",))]
