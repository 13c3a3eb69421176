"""Many samples, on many processes, with nothing lost: `stream` and `generate`.

identity.py  what decides a job's samples, as plain data
code.py      fingerprints of a sampler's own code and of files that its options name
claims.py    who is at work on which part of a job
job.py       the folder that they go to, and what is finished there
facts.py     whose folder it is: taken, taken up again, discarded, its file made again where it is damaged
shards.py    the pieces of a job, and what is known of a finished one
formats.py   safetensors, PNG, WebDataset and grids
memory.py    how many samples fit at once
conditions.py  the conditions of its samples, one for all or one each
batches.py   batches, halved where memory runs out
streaming.py `stream`
ranks.py     which of several processes this is
writer.py    files written while the next samples are made
progress.py  one bar for all processes, and the log
work.py      what one process does
run.py       `generate`
"""

from .run import Generated, generate
from .streaming import stream

__all__ = ["Generated", "generate", "stream"]
