"""What learners write in 10, and what the verdict has to say: name -> (answer, pattern) ..."""


WRONG = {
    "lora_change": [(lambda x, A, B, alpha: (x @ A.T) @ B.T, "the change: a difference of"), (lambda x, A, B, alpha: alpha * (x @ A.T) @ B.T, "the change: a difference of"),
                    (lambda x, A, B, alpha: alpha / len(A) * (x @ A.T).detach() @ B.T, "in the engine, there is no gradient of"),
                    (lambda x, A, B, alpha: x @ A @ B, "it stopped with RuntimeError")],
    "merged_weight": [(lambda W, A, B, alpha: W + B @ A, "a difference of"), (lambda W, A, B, alpha: W + alpha / len(B) * B @ A, "a difference of"),
                      (lambda W, A, B, alpha: alpha / len(A) * B @ A, "a difference of")],
    "dora_weight": [(lambda W, A, B, alpha, m: m[:, None] * (W + alpha / len(A) * B @ A), "a difference of"),
                    (lambda W, A, B, alpha, m: m[:, None] * W / W.norm(dim=1, keepdim=True) + alpha / len(A) * B @ A, "a difference of"),
                    (lambda W, A, B, alpha, m: m[:, None] * (W + alpha / len(A) * B @ A) / (W + alpha / len(A) * B @ A).norm(dim=0), "a difference of")],
    "llama_lora": [(lambda L, d, inner, H, K, r: L * r * (8 * d + 3 * (d + inner)), "K=2"), (lambda L, d, inner, H, K, r: L * r * 8 * d, "K=4")],
}
