"""Qiance: the domain of the decision loop, free of Ray, torch and Feast."""

__version__ = "0.1.0"
