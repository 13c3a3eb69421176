"""Solvers computed for a model: `tune` finds the grid, the weights and the network's times of a `SolverTable`.

tune.py     the call: starts, fixed settings, the choice between them and the tuned table, its facts
result.py   the tables of a call: saved to a folder, pushed to the Hub
card.py     the page that describes them
search.py   random search over grids and the times that the network receives
fit.py      weights of all steps by least squares, on the solver's own states
gradient.py improvement by the gradient of the error with respect to weights, grid and times
field.py    a model's velocity in angle coordinates for a set of starts, and a teacher's states
trace.py    the solver table of a fixed sampler, read off its run on basis vectors
"""
