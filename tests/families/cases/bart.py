from . import Case

SIZES = {"vocab_size": 103, "d_model": 28, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 7, "encoder_ffn_dim": 53,
         "decoder_ffn_dim": 47, "max_position_embeddings": 61, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
DECODER = {"ForCausalLM": "half of an encoder-decoder"}
# (Pegasus begins with its padding id, whose vector the reference never trains: begun with another one, every gradient can be compared.)
CASES = [Case("bart", "bart", SIZES | {"scale_embedding": True}, without=DECODER), Case("mbart", "mbart", SIZES, without=DECODER),
         Case("pegasus", "pegasus", SIZES | {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 5}, without=DECODER),
         Case("m2m-100", "m2m_100", SIZES)]
