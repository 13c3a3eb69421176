"""Denoisers and samplers in the form in which other libraries pass them.

denoisers.py        `from_denoiser`: k-diffusion's and ComfyUI's `model(x, sigma)` as a model
noise_samplers.py   k-diffusion's `noise_sampler(sigma, sigma_next)` as a noise source
k_sampler.py        `as_k_sampler`: a sampler as one of their functions `sample_...(model, x, sigmas, ...)`
azula_denoisers.py  `from_azula`, `as_azula`: denoisers of azula
exported.py         `export_solver`: a solver on its grid as plain numbers, for other languages
"""
