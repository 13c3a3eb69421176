"""stochastic_runge_kutta: to be written in this session."""
