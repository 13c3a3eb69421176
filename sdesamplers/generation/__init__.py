"""Large jobs, on any number of processes, that can be interrupted and resumed: `stream` and `generate`.

identity.py  everything that determines a job's samples, as plain data
code.py      fingerprints of a sampler's code and of files that its options name
claims.py    which run is working on which part of a job
job.py       the output folder, and which of its shards are finished
facts.py     which job a folder belongs to: start, resume or discard it, or restore its damaged file
shards.py    the shards of a job, and the records of finished ones
formats.py   safetensors, PNG, WebDataset and grids
memory.py    the largest batch size that fits in memory
conditions.py  the conditions of its samples, one for all or one per sample
batches.py   batches, halved when memory runs out
streaming.py `stream`
ranks.py     the rank of this process among several
writer.py    a thread that writes files while the next samples are generated
progress.py  one progress bar for all processes, and the event log
work.py      the work of one process
run.py       `generate`
argument_names.py  the names of its arguments in messages
"""

from .run import Generated, generate
from .streaming import stream

__all__ = ["Generated", "generate", "stream"]
