"""er_sde: to be written in this session."""
