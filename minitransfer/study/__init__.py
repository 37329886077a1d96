"""What a model learned and what transfer is worth: each function gives data with intervals, which print as a table and draw as a figure."""
from . import surgery
from .claims import CLAIMS, claims, run_claim
from .domain import DomainReport, domain_report
from .forgetting import Forgetting, cka, forgetting
from .gain import TransferGain, transfer_gain
from .ladder import Ladder, ladder
from .slices import Slices, slices

__all__ = ["CLAIMS", "DomainReport", "Forgetting", "Ladder", "Slices", "TransferGain", "cka", "claims", "domain_report", "forgetting", "ladder", "run_claim", "slices",
           "surgery", "transfer_gain"]
