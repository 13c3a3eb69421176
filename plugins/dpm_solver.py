"""dpm_solver: to be written in this session."""
