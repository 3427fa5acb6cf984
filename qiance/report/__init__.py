"""The report of a run: `report.json` for programs, one page for people, a table for the terminal."""

from qiance.report.figures import money
from qiance.report.model import RunReport
from qiance.report.page import write_report
from qiance.report.summary import summary_table

__all__ = ["RunReport", "money", "summary_table", "write_report"]
