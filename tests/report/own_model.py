"""A model for the command line, `own_model.py:mixture`."""

import sdesamplers as sds

mixture = sds.grid_mixture(sds.VP())
