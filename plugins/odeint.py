"""odeint: to be written in this session."""
