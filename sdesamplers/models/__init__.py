"""The `Model` interface, and models from functions, densities and closed forms.

base.py        the `Model` interface
function.py    models from functions, including flow maps
output.py      predictions with additional values: `Output`
conditions.py  selecting rows of conditions, copying and joining them
calling.py     calling foreign networks without side effects on the run
running.py     the environment of a run: evaluation mode, autograd, torch's global state
clipping.py    bounds of x0
guidance.py    classifier-free guidance: `Guided`
guidance_methods.py  its formulas by name
analytic.py    Gaussians and Gaussian mixtures, with exact scores
density.py     densities for Langevin dynamics
"""
