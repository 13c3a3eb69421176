"""Networks that others trained: what their configurations say, where they are, and how they are asked.

conventions.py      how a diffusers scheduler's configuration says that a network is asked
configuration.py    a scheduler's configuration, completed; the grid and the clipping that it says
scheduler_words.py  every word of every scheduler class: read, refused, or of no matter here
saved_words.py      what a `Scheduler` of ours adds to a configuration
grids.py            the grid of a model's makers, laid out by diffusers' own class
trained.py          how a network was trained, if the caller says it
trust.py            code that comes with a model is not run, and pickles are not read
components.py       the classes of a pipeline's components, which must be diffusers' and transformers' own
folders.py          a folder of a pipeline of pixels, checked before any weights are read
placement.py        where a network lives, and in what precision it is run
quiet.py            loading without others' warnings
unets.py            UNets of pixels as models
pipelines/          whole pipelines as models
hub.py              the Hugging Face Hub
options.py          what `load` is asked for
factories.py        models that a function of the user's makes
loading.py          `load`
asking.py           how a network of one's own takes its arguments
trial.py            ... which a trial call finds out
wrapping.py         `wrap`
"""
