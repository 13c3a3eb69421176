"""churn: to be written in this session."""
