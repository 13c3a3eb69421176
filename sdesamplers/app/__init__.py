"""A page in the browser that shows samplers side by side, `sdesamplers app MODEL`; needs `sdesamplers[app]`.

runs.py     what the page runs: several samplers at one budget, from the same starting noise
figures.py  trajectories and grids as pictures
page.py     the page and its server, on this machine only
"""
