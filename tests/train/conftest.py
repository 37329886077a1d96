"""What the tests of the loop share."""
import signal

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models this small only lose by a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ctrl_c():
    """A process that hears Ctrl-C, whatever the shell that started the tests says."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
