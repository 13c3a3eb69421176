"""noises: to be written in this session."""
