"""Runners start, stop and report job processes behind one contract (`base.Runner`)."""
