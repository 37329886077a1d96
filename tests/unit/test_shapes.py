"""The checks of shapes that go along with every other test."""
import jaxtyping
import pytest
import torch

from minitransfer.ops.linear import linear


def test_a_shape_that_is_not_the_one_of_the_signature_is_found_at_once_and_in_a_long_run():
    x, weight = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    with pytest.raises(jaxtyping.TypeCheckError, match="bias"):
        linear(x, weight, x[:1, 0])
    for _ in range(1000):
        linear(x, weight, weight[:, 0])
    with pytest.raises(jaxtyping.TypeCheckError, match="bias"):
        for _ in range(23):
            linear(x, weight, x[:1, 0])
