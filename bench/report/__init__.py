"""The report: tables and one page of plots, from Records on disk. Trains nothing, and needs no torch."""

from bench.report.picture import main_picture
from bench.report.predictors import predictor_table
from bench.report.tables import text_table
from bench.report.write import Report, write_record_page, write_report

__all__ = ["Report", "main_picture", "predictor_table", "text_table", "write_record_page", "write_report"]
