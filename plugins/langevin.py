"""langevin: to be written in this session."""
