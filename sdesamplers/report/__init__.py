"""Figures of a comparison, for papers and for its page.

view.py        what the figures read: samplers, budgets, values with their intervals and units
style.py       one colour, marker and dash for each sampler; new figures
curves.py      work-precision curves
rows.py        a row for each sampler: its time grid, the error of each of its samples
planes.py      samples and trajectories in two dimensions
inline.py      small figures for notebooks: samples as points, histograms
pictures.py    samples as a table of pictures
plots.py       the figures by their names
svg.py         a figure as part of a page
thumbnails.py  small pictures as text
reading.py     the sentences, tables and pictures of a page
page.py        the page: one HTML file
page/          its template, style sheet and script
"""
