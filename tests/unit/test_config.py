"""ModelConfig: defaults, derived sizes, and one clear error for each value that cannot be."""
import dataclasses

import pytest

import minitransfer as mt
from minitransfer.config import whole_number
from tests.unit.tiny import SIZES, bert, gpt2


@pytest.mark.parametrize("config", [bert(), gpt2(n_kv_heads=2, window=5, dropout=0.3)])
def test_a_dict_says_everything(config):
    assert mt.ModelConfig.from_dict(config.to_dict()) == config


def test_derived_sizes():
    assert bert().d_head == 7 and bert().kv_heads == 4 and bert(n_kv_heads=2).kv_heads == 2


def test_a_rate_follows_dropout_unless_given():
    config = bert(dropout=0.3, attn_dropout=0.0)
    assert config.rate("attn_dropout") == 0.0 and config.rate("embed_dropout") == 0.3 and config.rate("head_dropout") == 0.3


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        bert().d_model = 5


@pytest.mark.parametrize("changes, message", [
    *[({name: 0}, f"{name}=0; it is an int, 1 or more: give the number the architecture has") for name in SIZES],
    ({"n_layers": True}, "n_layers=True; it is an int"),
    ({"n_token_types": -1}, "n_token_types=-1; it is an int, 0 or more"),
    ({"d_model": 30}, "d_model=30 is not a multiple of n_heads=4: choose a width every head can share"),
    ({"n_kv_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3: each key/value head serves"),
    ({"n_kv_heads": 0}, "n_kv_heads=0; it is an int, 1 or more"),
    ({"n_kv_heads": -2}, "n_kv_heads=-2; it is an int, 1 or more"),
    ({"window": 0}, "window=0; it is an int, 1 or more"),
    *[({name: value}, f"{name}={value}; it is a probability in [0, 1): give 0.0 to switch it off")
      for name in ("dropout", "attn_dropout", "embed_dropout", "head_dropout") for value in (1.0, -0.1)],
    ({"dropout": float("nan")}, "dropout=nan; it is a probability"),
    ({"norm_eps": -1e-5}, "norm_eps=-1e-05; it is a number, 0 or more"),
    ({"init_std": float("nan")}, "init_std=nan; it is a number, 0 or more"),
    ({"norm_position": "middle"}, "norm_position='middle'; it is one of 'pre', 'post': choose one of these"),
    ({"activation": "mish"}, "activation='mish'; it is one of 'gelu', 'gelu_tanh', 'relu', 'silu'"),
])
def test_refused(changes, message):
    with pytest.raises(ValueError) as error:
        bert(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["101", 5.5, None, True, 2])
def test_a_size_of_another_type(value):
    """What a config.json may hold; annotations are checked in tests only, this always."""
    with pytest.raises(ValueError, match=r"d_ff=.*; it is an int, 3 or more"):
        whole_number("d_ff", value, 3)
    whole_number("d_ff", 3, 3)


def test_a_field_that_does_not_exist():
    with pytest.raises(KeyError, match=r"unknown fields \['hidden_size'\]; a ModelConfig has \['vocab_size', .*: correct or remove them"):
        mt.ModelConfig.from_dict(bert().to_dict() | {"hidden_size": 5})


def test_a_size_that_is_absent():
    with pytest.raises(KeyError, match=r"no d_ff, max_len; a ModelConfig needs the sizes \['vocab_size', .*: add them"):
        mt.ModelConfig.from_dict({name: n for name, n in SIZES.items() if name not in ("d_ff", "max_len")})
