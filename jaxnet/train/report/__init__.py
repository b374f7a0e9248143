"""One self-contained page per training run, and one update step worked through with its numbers."""

from jaxnet.train.report.page import Report as Report
from jaxnet.train.report.worked_update import WorkedUpdate as WorkedUpdate
from jaxnet.train.report.worked_update import work_update as work_update
