"""Answers to the exercises of 05_two_choices: minitransfer check 05 notebooks/solutions/05_two_choices.py"""
import torch


def gpt2_fields(V, D, L, H, longest):
    return {"vocab_size": V, "d_model": D, "n_layers": L, "n_heads": H, "d_ff": 4 * D, "max_len": longest, "causal": True, "norm_position": "pre", "norm_eps": 1e-5,
            "activation": "gelu_tanh", "n_token_types": 0, "embed_norm": False, "final_norm": True, "pooler": False}


def turn(x, cos, sin):
    turning, rest = x[..., :2 * cos.shape[-1]], x[..., 2 * cos.shape[-1]:]
    a, b = turning.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gated_feed_forward(x, gate, up, down):
    inner = x @ gate.T
    return (inner * inner.sigmoid() * (x @ up.T)) @ down.T
