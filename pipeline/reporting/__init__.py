"""The report: results of a run next to published ones, on one self-contained page."""
