"""unipc: to be written in this session."""
