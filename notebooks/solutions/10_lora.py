"""Answers to the exercises of 10_lora: minitransfer check 10 notebooks/solutions/10_lora.py"""


def lora_change(x, A, B, alpha):
    return alpha / len(A) * (x @ A.T) @ B.T


def merged_weight(W, A, B, alpha):
    return W + alpha / len(A) * B @ A


def dora_weight(W, A, B, alpha, m):
    V = W + alpha / len(A) * B @ A
    return m[:, None] * V / V.norm(dim=1, keepdim=True)


def llama_lora(L, d, inner, H, K, r):
    narrow = d // H * K
    matrices = [(d, d), (d, narrow), (d, narrow), (d, d), (d, inner), (d, inner), (inner, d)]
    return L * sum(r * (a + b) for a, b in matrices)
