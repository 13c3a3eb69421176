"""Input and output: files, pictures, data sets, the terminal.

paths.py     paths as users type them
files.py     atomic, durable file writes; reads of regular files only
reading.py   pictures and arrays from untrusted files, in bounded time and memory
datasets.py  data for a model, from folders, files and arrays
images.py    samples as pictures
sheets.py    pictures in labelled rows and columns
terminal.py  progress bars in a terminal
notebook.py  progress bars in a notebook
log.py       the logger "sdesamplers" and its verbosity
"""
