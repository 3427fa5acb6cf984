"""Conversions that a log cut today has not seen yet: how late they come, and how many are still to come."""
