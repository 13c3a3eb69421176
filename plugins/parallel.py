"""parallel: to be written in this session."""
