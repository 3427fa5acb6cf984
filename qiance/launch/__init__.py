"""Policies on their way to be live: judged by the log of decisions, in shadow, launched."""

from qiance.launch.desk import Evaluation, Launched, PolicyDesk
from qiance.launch.plans import UnknownPolicyError, derive_plan, plans, read_plan, write_plan
from qiance.launch.setup import GateSetup
from qiance.launch.shadow import ShadowDay

__all__ = [
    "Evaluation",
    "GateSetup",
    "Launched",
    "PolicyDesk",
    "ShadowDay",
    "UnknownPolicyError",
    "derive_plan",
    "plans",
    "read_plan",
    "write_plan",
]
