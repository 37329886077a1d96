"""Two tiny models with tokenizers, found under the names of the bundled ones."""
from pathlib import Path

import pytest
import torch

from minitransfer import samples
from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.text import Tokenizer, read_texts
from minitransfer.weights import sources

CAUSAL = {"norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "n_token_types": 0, "embed_norm": False,
          "final_norm": True, "pooler": False}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder like checkpoints/, with a mini-bert and a mini-gpt of a few thousand parameters, spread out so that outputs differ between texts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = list(read_texts(samples.path("general.txt"), documents="line"))
    for name, kind, head, changes in (("mini-bert", "wordpiece", "masked", {}), ("mini-gpt", "byte_bpe", "causal", CAUSAL)):
        tok = Tokenizer.train(texts, kind, 500, max_len=128)
        model = Model(ModelConfig(vocab_size=tok.vocab_size, d_model=24, n_layers=2, n_heads=3, d_ff=40, max_len=128, **changes), head)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.2 * torch.randn(p.shape, generator=generator)
        model.save_pretrained(folder / name)
        tok.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(tiny, tmp_path, monkeypatch) -> Path:
    """An empty current folder, where mini-bert and mini-gpt are the tiny ones and caches are thrown away."""
    monkeypatch.setattr(sources, "bundled", lambda: tiny)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
