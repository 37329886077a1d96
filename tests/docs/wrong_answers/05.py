"""What learners write in 05, and what the verdict has to say: name -> (answer, pattern) ..."""
import torch


def bert_fields(V, D, L, H, longest):
    return {"vocab_size": V, "d_model": D, "n_layers": L, "n_heads": H, "d_ff": 4 * D, "max_len": longest, "causal": True}


def neighbours(x, cos, sin):
    R = 2 * cos.shape[-1]
    a, b = x[..., :R:2], x[..., 1:R:2]
    return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), x[..., R:]], dim=-1)


def the_other_way(x, cos, sin):
    R = 2 * cos.shape[-1]
    a, b = x[..., :R].chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin, x[..., R:]], dim=-1)


def without_rest(x, cos, sin):
    a, b = x[..., :2 * cos.shape[-1]].chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def swapped(x, gate, up, down):
    inner = x @ up.T
    return (inner * inner.sigmoid() * (x @ gate.T)) @ down.T


WRONG = {
    "gpt2_fields": [(bert_fields, "norm_position='post', GPT-2 has 'pre'")],
    "turn": [(neighbours, "in the engine, "), (the_other_way, "by a right angle"), (without_rest, "by a right angle")],
    "rms_norm": [(lambda x, weight, eps: x / x.square().mean(-1, keepdim=True).sqrt() * weight, "has a NaN"),
                 (lambda x, weight, eps: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + eps) * weight, "in the engine, "),
                 (lambda x, weight, eps: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps) * weight, "in the engine, ")],
    "gated_feed_forward": [(swapped, "in the engine, "), (lambda x, gate, up, down: ((x @ gate.T).sigmoid() * (x @ up.T)) @ down.T, "in the engine, ")],
}
