"""Solvers computed for a model: `tune` finds the grid, the weights and the network's times of a `SolverTable`.

tune.py     the call
result.py   its tables, saved to a folder or pushed to the Hub
card.py     the page that describes them
tuner.py    starts, teacher, fixed settings, the choice between them and the tuned tables, the facts of a table
stored.py   the tables of earlier calls in the output folder
stopping.py how far a stopped search came, and from where the next one continues
functions.py  what identifies a distance or features function
search.py   search for the grid and the times that the network receives
fit.py      weights of all steps by least squares, on the solver's own states
joint.py    improvement of all numbers at once by Gauss-Newton steps
gradient.py the same by the gradient of the error and Adam
gauss_newton.py  damped Gauss-Newton steps
field.py    a model's velocity in angle coordinates for a set of starts, and a teacher's states
moments.py  how far the mean and covariance of features are from those of a teacher's samples
trace.py    the solver table of a fixed sampler, read off its run on basis vectors
"""
