"""Settings that cannot be meant are refused before anything starts, by a sentence that names the field."""
from __future__ import annotations

import json
import subprocess
import sys

CASES = [("log_every", 1.5, "it counts whole ones"), ("steps", "3", "it is a number"), ("log_every", None, "it is a number: give one"), ("micro_batches", True, "it is a number"),
         ("lr", "1e-4", "it is a number"), ("save_every", 0, "above zero"), ("checkpointing", 1, "choose one"), ("checkpointing", ["mlp"], "choose one"),
         ("checkpointing", "blocks:²", "choose one"), ("checkpointing", "blocks:", "choose one"), ("checkpointing", "mlp:2", "choose one")]
CODE = """
import json, sys
from minitransfer.training import TrainSettings
for name, value, said in json.loads(sys.argv[1]):
    try:
        TrainSettings(**({"steps": 3} | {name: value}))
    except ValueError as error:
        assert str(error).startswith(f"{name}=") and said in str(error), error
    else:
        raise AssertionError(f"{name}={value!r} was accepted")
TrainSettings(epochs=1.5, tokens=1e6, checkpointing="blocks:2", max_grad_norm=None)
"""


def test_what_cannot_be_meant():
    """In a process of its own: the type checks of the tests would refuse some of these first, and users do not have them."""
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(CASES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
