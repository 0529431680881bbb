"""`pycap doctor`: a data folder before it is trained on, the machine, and what a run needs of it.

| file | its job |
|---|---|
| `command.py` | what was asked for, and the status |
| `machine.py`, `rows.py` | CPU, memory, GPU, packages, which kernels run where, as text |
| `plan.py`, `disk.py` | what a run needs of a GPU's memory, and of the disks |
| `kinds.py`, `findings.py` | what can be wrong with data, why it matters and what helps; what was found, counted by kind |
| `layouts.py` | which kind of data set a folder holds |
| `files.py`, `captions.py` | caption files: encodings, entries, keys; names, texts, words |
| `images.py`, `leaks.py` | image files, each decoded; the same image or captions in two splits |
| `folder.py`, `watch.py`, `report.py` | all of that of one folder; what is shown meanwhile; what is told in the end |

What needs more than NumPy is imported where it is used: the machine's report runs where nothing optional is installed.
"""

from __future__ import annotations

from pycap.doctor.command import examine

__all__ = ["examine"]
