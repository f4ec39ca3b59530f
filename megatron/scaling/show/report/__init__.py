"""The result a stranger can hold: tables, `report.json`, figures and one page, from the runs of one or more objectives."""

from megatron.scaling.show.report.result import Report, as_record, build_report, write_report
from megatron.scaling.show.report.study import Study, study_runs

__all__ = ["Report", "Study", "as_record", "build_report", "study_runs", "write_report"]
