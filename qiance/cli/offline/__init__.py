"""The offline loop on real logged responses: train, propose, optimise, estimate off-policy, report.

Nothing here is simulated and nothing goes live: what a policy would have earned is estimated from the log.
"""

from qiance.cli.offline.conductor import run_offline

__all__ = ["run_offline"]
