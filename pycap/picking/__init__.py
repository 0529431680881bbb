"""Picking pairs: what a model said of half a million images, put in an order, and what a person decides about each of them.

| file | its job |
|---|---|
| `images.py` | the folder of images: which file a name in the results means, and that it lies in there |
| `results.py` | the results: where each row stands, what orders it, the rest read when it is asked for |
| `order.py` | in which order a person sees them |
| `duplicates.py` | images that look like one that came before, by their features |
| `journal.py` | the decisions on disk: appended, synced, never lost, never in pieces |
| `selection.py` | the pairs, what was decided, what comes next: all that a page asks |
"""
