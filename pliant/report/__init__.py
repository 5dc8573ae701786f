"""Reports: what a folder of records says, as tables, figures and one page that is readable without a network.

A report reads records and nothing else: it runs nothing, and it never imports PyTorch.
"""

from pliant.report.figures import figure_svg
from pliant.report.html import html_text, write_report
from pliant.report.summary import summarise
from pliant.report.tables import csv_text, markdown_text, terminal_tables, write_csv, write_markdown
from pliant.report.trials import Trials, read_trials

__all__ = [
    "Trials",
    "csv_text",
    "figure_svg",
    "html_text",
    "markdown_text",
    "read_trials",
    "summarise",
    "terminal_tables",
    "write_csv",
    "write_markdown",
    "write_report",
]
