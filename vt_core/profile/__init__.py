"""Profiling: from a corpus to a task vocabulary."""
