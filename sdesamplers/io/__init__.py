"""What crosses the border of the process: files, pictures, data sets, text, the terminal.

files.py     files that are written whole or not at all
reading.py   pictures and arrays, read with bounds
datasets.py  data for a model, from folders and arrays
images.py    samples as pictures
text.py      what others say, as text that a terminal does not obey
terminal.py  progress bars
"""
