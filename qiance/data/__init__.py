"""Logs and public data sets in, canonical tables out; no row is dropped in silence."""

from qiance.data.check import CheckReport, check_file, render_report
from qiance.data.complete_journey import COST_FRACTION, read_complete_journey
from qiance.data.errors import DataError, MappingError
from qiance.data.faults import FAULT_SCHEMA, FaultCount, Reason, TableReport
from qiance.data.hillstrom import read_hillstrom
from qiance.data.ingest import IngestReport
from qiance.data.mapped import EVENT_SCHEMA, MappedResult, Progress, read_mapped
from qiance.data.mapping import Mapping, load_mapping
from qiance.data.open_bandit import read_open_bandit
from qiance.data.responses import ResponseTable

__all__ = [
    "COST_FRACTION",
    "EVENT_SCHEMA",
    "FAULT_SCHEMA",
    "CheckReport",
    "DataError",
    "FaultCount",
    "IngestReport",
    "MappedResult",
    "Mapping",
    "MappingError",
    "Progress",
    "Reason",
    "ResponseTable",
    "TableReport",
    "check_file",
    "load_mapping",
    "read_complete_journey",
    "read_hillstrom",
    "read_mapped",
    "read_open_bandit",
    "render_report",
]
