"""Small models of ours whose sizes are all different and whose weights were all moved."""
import torch

import minitransfer as mt

SIZES = {"vocab_size": 101, "d_model": 28, "n_layers": 2, "n_heads": 4, "d_ff": 53, "max_len": 37}
GPT2_FACTS = {"norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "n_token_types": 0, "embed_norm": False,
              "final_norm": True, "pooler": False}


def bert(**changes) -> mt.ModelConfig:
    return mt.ModelConfig(**(SIZES | changes))


def gpt2(**changes) -> mt.ModelConfig:
    return mt.ModelConfig(**(SIZES | GPT2_FACTS | changes))


@torch.no_grad()
def moved(model: mt.Model, scale: float = 0.1, seed: int = 1) -> mt.Model:
    """The model in eval mode with N(0, scale) added to every parameter: no bias is zero, no norm is one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def gradients(model: mt.Model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
