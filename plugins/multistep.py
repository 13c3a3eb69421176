"""multistep: to be written in this session."""
