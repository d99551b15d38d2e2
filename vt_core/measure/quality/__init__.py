"""Quality of answers: rows of the five tasks, their metrics, unit tests in a sandbox, static pruning."""
