"""Pretrained networks: reading their configurations, loading them, and evaluating them.

conventions.py      how a network is evaluated, as derived from a diffusers scheduler's configuration
configuration.py    a scheduler's configuration with its class's defaults; its grid and clipping
scheduler_keys.py   every parameter of every scheduler class: whether it is used, refused or irrelevant here
saved_keys.py       the keys that our own `Scheduler` adds to a configuration
grids.py            a model's default grid, computed by its diffusers scheduler class
trained.py          how a network was trained, as overridden by the caller
trust.py            refuses code that comes with a model, and pickles
components.py       the classes of a pipeline's components, which must come from diffusers or transformers
folders.py          folders of pixel-space pipelines, checked before any weights are read
placement.py        device and precision of a network
quiet.py            loading without the warnings and progress bars of other libraries
unets.py            pixel-space UNets as models
pipelines/          whole pipelines as models
hub_files.py        files of samplers on the Hub, found without importing much
hub.py              models from the Hugging Face Hub
options.py          the options of `load`
factories.py        models created by a function in a user's Python file
loading.py          `load`
call_styles.py      the ways to call a user's network
trial.py            trial calls, which find the call style that works
call_errors.py      what those of them that failed mean
wrapping.py         `wrap`
"""
