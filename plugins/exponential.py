"""exponential: to be written in this session."""
