"""Scripts that regenerate the measured figures. Each takes its models and data as arguments."""
