"""What every test may use: real data by the environment, the reference models, one thread policy."""
import os
import signal
from pathlib import Path

import jaxtyping
import pytest
import torch

from . import shapes

os.environ["HF_HUB_OFFLINE"] = "1"          # tests never reach for the network
torch.set_num_threads(1)                    # models here are tiny: a second thread would only wait, and the sums keep one order


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real corpora and labelled sets, named by MINITRANSFER_DATA."""
    folder = os.environ.get("MINITRANSFER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MINITRANSFER_DATA names no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def shapes_are_checked():
    jaxtyping.config.jaxtyping_disable = shapes.Enough()


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def ctrl_c():
    """A process that hears Ctrl-C, whatever the shell that started the tests says."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
