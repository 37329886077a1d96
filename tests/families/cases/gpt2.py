from . import Case

SIZES = {"vocab_size": 103, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 41, "n_inner": 59, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
CASES = [Case("gpt2", "gpt2", SIZES, without={"DoubleHeadsModel": "a language model and a choice at once: put on one after the other"})]
