"""A training run, piece by piece.

| file | its job |
|---|---|
| `sources.py` | a stage's images and captions, or the demo set; vocabulary and loaders |
| `start.py`, `extend.py` | what a run starts from: a VGG, preprocessing; a checkpoint with a longer vocabulary |
| `trainer.py` | one step, and the validation loss: model, optimiser, schedule |
| `scst.py` | captions that the model draws, and what they are worth: self-critical training |
| `plan.py` | what a run needs of a GPU's memory, and the micro-batch that fits |
| `captioning.py` | what is validated and shown of a captioner |
| `folder.py` | the run's folder: log, samples page, captions, skipped files |
| `progress.py` | what the person at the terminal sees |
| `run.py` | the loop: epochs, validation, checkpoints, resuming, signals |
"""
