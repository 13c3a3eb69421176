"""Denoisers and samplers in the form in which other libraries pass them.

azula_denoisers.py  `from_azula`, `as_azula`: denoisers of azula
denoisers.py   `from_denoiser`: k-diffusion's and ComfyUI's `model(x, sigma)` as a model
k_sampler.py   `as_k_sampler`: a sampler as one of their functions `sample_...(model, x, sigmas, ...)`
exported.py    `export_solver`: a solver on its grid as plain numbers, for other languages
"""
