"""ancestral: to be written in this session."""
