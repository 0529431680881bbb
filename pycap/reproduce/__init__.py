"""The command `pycap reproduce RUN`: a run made again from its beginning, and compared with the one that is there as it goes.

| file | its job |
|---|---|
| `original.py` | what a run's folder tells of it, and the options with which it is made again |
| `changes.py` | what is otherwise now than it was then, and whether bits depend on it |
| `differences.py` | rows of logs and arrays compared; what rounding can explain |
| `follow.py` | told of the run as it goes: finds where it first differs, and ends it where the original ended |
| `ending.py` | the folders compared when both have ended |
| `command.py` | the command: its words, JSON and exit status |
"""
