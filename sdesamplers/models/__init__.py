"""What a model is, and models from functions, densities and closed forms.

base.py        the `Model` interface
function.py    models from functions, flow maps among them
output.py      what a network may return beside its answer
conditions.py  conditions of batches, cut and joined
calling.py     networks of others, called so that nothing they do changes a run
running.py     what a run puts around a model: evaluation mode, autograd, torch's global state
clipping.py    bounds of x0
guidance.py    classifier-free guidance: `Guided`
analytic.py    Gaussians and mixtures, whose scores are known
density.py     densities for Langevin dynamics
"""
