"""What a model learned and what transfer is worth: each function gives data with intervals, which print as a table and draw as a figure."""
from .forgetting import Forgetting, cka, forgetting
from .gain import TransferGain, transfer_gain
from .ladder import Ladder, ladder

__all__ = ["Forgetting", "Ladder", "TransferGain", "cka", "forgetting", "ladder", "transfer_gain"]
