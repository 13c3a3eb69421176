"""Functions of the probability-flow ODE: exact encodings and likelihoods, and the statistics of DPM-Solver-v3.

integration.py  the ODE between data and noise, solved in either direction
encoding.py     `encode`, `decode`, `interpolate`
likelihood.py   `log_likelihood`
consistency.py  `consistency_error`: distance of x0 predictions from the end of their ODE trajectory
statistics.py   DPM-Solver-v3's empirical model statistics
"""
