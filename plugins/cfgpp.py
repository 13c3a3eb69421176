"""cfgpp: to be written in this session."""
