"""The builds of each kernel file that must compile for every GPU: (file, constants)."""
NORM = [("norm.cu", {"SCALAR": scalar, "RMS": rms, "VECTOR": vector, "PER_THREAD": each})
        for scalar, vector, each in (("bf16", 8, 1), ("fp16", 8, 4), ("float", 4, 8), ("float", 1, 8)) for rms in (0, 1)]
ADAMW = [("adamw.cu", {"SCALAR": scalar}) for scalar in ("float", "fp16", "bf16")]
NORM += [("norm.cu", {"SCALAR": "bf16", "STREAM": "float", "OUT": out, "RMS": rms, "VECTOR": 4, "PER_THREAD": each}) for out, rms, each in (("bf16", 0, 1), ("float", 1, 8))]
MASK_TOKENS = [("mask_tokens.cu", {})]
ACTIVATION = [("activation.cu", {"SCALAR": scalar, "ACTIVATION": activation, "VECTOR": vector})
              for scalar, activation, vector in (("bf16", "gelu", 8), ("bf16", "silu", 8), ("fp16", "gelu_tanh", 8), ("float", "gelu", 4), ("float", "relu", 1))]
CROSS_ENTROPY = [("cross_entropy.cu", {"SCALAR": scalar}) for scalar in ("bf16", "fp16", "float")]
LORA = [("lora.cu", {"SCALAR": scalar, "RANK": rank, "VECTOR": vector, "PIECE": piece})
        for scalar, rank, vector, piece in (("float", 8, 4, 2), ("float", 13, 1, 1), ("bf16", 8, 8, 2), ("fp16", 16, 8, 2), ("bf16", 64, 8, 1))]
EMBEDDING = [("embedding.cu", {"SCALAR": scalar, "VECTOR": vector, "PER_THREAD": each})
             for scalar, vector, each in (("bf16", 8, 1), ("fp16", 8, 4), ("float", 4, 8), ("float", 1, 8))]
TENSOR_CORES = [{"SCALAR": scalar, "HEAD_DIM": Dh, "STRIPS": strips, "BIAS": bias, "DROPOUT": dropout, "LEAN": lean} for scalar, Dh, strips, bias, dropout, lean in
                (("bf16", 32, 2, 0, 0, 0), ("fp16", 32, 1, 0, 0, 0), ("bf16", 64, 2, 0, 0, 0), ("fp16", 64, 2, 0, 0, 0), ("fp16", 64, 1, 0, 0, 0),
                 ("bf16", 64, 1, 1, 1, 0), ("fp16", 80, 1, 1, 1, 0), ("fp16", 96, 1, 1, 1, 0), ("bf16", 128, 1, 0, 0, 0),
                 ("bf16", 128, 1, 1, 1, 0), ("fp16", 128, 1, 1, 1, 0), ("fp16", 128, 1, 0, 0, 1), ("fp16", 128, 1, 1, 1, 1))]
ATTENTION = [(f"attention_{part}.cu", constants) for part in ("forward", "backward") for constants in TENSOR_CORES]
ATTENTION += [("attention_bias.cu", constants) for constants in TENSOR_CORES if constants["BIAS"]]
ATTENTION += [("attention_simple.cu", {"SCALAR": scalar, "HEAD_DIM": Dh, "DROPOUT": dropout})
              for scalar, Dh, dropout in (("float", 32, 0), ("float", 64, 1), ("float", 96, 0), ("float", 128, 1), ("bf16", 80, 1), ("fp16", 128, 0))]
ROPE = [("rope.cu", {"SCALAR": scalar, "VECTOR": vector}) for scalar, vector in (("bf16", 8), ("fp16", 8), ("float", 4), ("float", 1))]
BUILDS = [*NORM, *ADAMW, *MASK_TOKENS, *ACTIVATION, *CROSS_ENTROPY, *LORA, *EMBEDDING, *ATTENTION, *ROPE]
