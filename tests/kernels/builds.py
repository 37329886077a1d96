"""The builds of each kernel file that must compile for every GPU: (file, constants)."""
NORM = [("norm.cu", {"SCALAR": scalar, "RMS": rms, "VECTOR": vector, "PER_THREAD": each})
        for scalar, vector, each in (("bf16", 8, 1), ("fp16", 8, 4), ("float", 4, 8), ("float", 1, 8)) for rms in (0, 1)]
ACTIVATION = [("activation.cu", {"SCALAR": scalar, "ACTIVATION": activation, "VECTOR": vector})
              for scalar, activation, vector in (("bf16", "gelu", 8), ("bf16", "silu", 8), ("fp16", "gelu_tanh", 8), ("float", "gelu", 4), ("float", "relu", 1))]
CROSS_ENTROPY = [("cross_entropy.cu", {"SCALAR": scalar}) for scalar in ("bf16", "fp16", "float")]
EMBEDDING = [("embedding.cu", {"SCALAR": scalar, "VECTOR": vector, "PER_THREAD": each})
             for scalar, vector, each in (("bf16", 8, 1), ("fp16", 8, 4), ("float", 4, 8), ("float", 1, 8))]
ROPE = [("rope.cu", {"SCALAR": scalar, "VECTOR": vector}) for scalar, vector in (("bf16", 8), ("fp16", 8), ("float", 4), ("float", 1))]
BUILDS = [*NORM, *ACTIVATION, *CROSS_ENTROPY, *EMBEDDING, *ROPE]
