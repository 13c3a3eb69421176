"""distilled: to be written in this session."""
