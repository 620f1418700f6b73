"""The conformance kit: does a part keep its contract? And tiny hosts to try things on."""

from tokenflex.testing.conformance import Case, cases, check_component
from tokenflex.testing.host_checks import check_host
from tokenflex.testing.report import ConformanceError, Report, Result

__all__ = ["Case", "ConformanceError", "Report", "Result", "cases", "check_component", "check_host"]
