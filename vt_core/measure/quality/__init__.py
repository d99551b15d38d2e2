"""Quality of the original head, static pruning, approximate and exact decoding on the five tasks."""
