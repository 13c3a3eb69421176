"""dpm_solver_v3: to be written in this session."""
