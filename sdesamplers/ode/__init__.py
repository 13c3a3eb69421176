"""What follows a model's own ODE: exact encodings and likelihoods, and the statistics that DPM-Solver-v3 wants.

integration.py  the ODE between data and noise, walked either way
encoding.py     `encode`, `decode`, `interpolate`
likelihood.py   `log_likelihood`
consistency.py  `consistency_error`: whether a model's score is one
statistics.py   DPM-Solver-v3's empirical model statistics
"""
