"""dpm_solver_sde: to be written in this session."""
