"""seeds: to be written in this session."""
