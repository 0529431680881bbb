"""Captioning many images: a job that goes on where it was stopped, in one process or many.

| file | what it holds |
|---|---|
| `job.py` | a job: begun, continued, stopped, finished |
| `journal.py` | what a job has done so far, valid whenever the process ends |
| `target.py` | where captions go: the file of a form, or text files beside the images |
| `share.py` | which images a process captions, and in which batches |
| `merge.py` | one file of what shards wrote |
| `screen.py` | captions on the screen |
| `names.py` | sets of names in eight bytes each |
"""
