"""Denoisers and samplers in the form in which other libraries pass them.

denoisers.py        `from_denoiser`: k-diffusion's and ComfyUI's `model(x, sigma)` as a model
noise_samplers.py   k-diffusion's `noise_sampler(sigma, sigma_next)` as a noise source
k_sampler.py        `as_k_sampler`: a sampler as one of their functions `sample_...(model, x, sigmas, ...)`
schedule_process.py the process of a schedule that another library defines
keyword_denoiser.py a condition that is a dictionary of keywords, which both of the next have
azula_denoisers.py  `from_azula`, `as_azula`: denoisers of azula
deepinv_sdes.py     `from_deepinv`, `as_deepinv`: diffusion SDEs of deepinv
deepinv_solvers.py  `as_deepinv_solver`: a sampler as one of its solvers
exported.py         `export_solver`: a solver on its grid as plain numbers, for other languages
"""
