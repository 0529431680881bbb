"""A training run, piece by piece.

| file | its job |
|---|---|
| `sources.py` | a stage's images and captions, or the demo set; vocabulary and loaders |
| `start.py`, `extend.py` | what a run starts from: another run, or a VGG; a checkpoint with a longer vocabulary |
| `features.py` | a frozen CNN's features, made once |
| `feed.py` | batches on their way to the device |
| `trainer.py` | one step, and the validation loss: model, optimiser, schedule |
| `step.py`, `shapes.py` | a step that stays on the GPU; what decides its launches, on which ranks agree |
| `shares.py` | what each of several ranks has of a batch, and how it is put together again |
| `scst.py` | captions that the model draws, and what they are worth: self-critical training |
| `alarms.py` | warnings of a run that goes on; what is usual in it |
| `relus.py`, `variety.py` | which ReLUs never answer; how much captions differ |
| `diagnosis.py`, `remedies.py` | where a step first was not finite; what a person is told of it |
| `gradients.py` | `--check-gradients`: backward held against differences of the loss |
| `plan.py` | what a run needs of a GPU's memory, and the micro-batch that fits |
| `captioning.py`, `classification.py` | what is validated and shown of a captioner, of a classifier |
| `folder.py`, `samples.py` | the run's folder: log, captions, skipped files; the page of samples |
| `record.py` | what a run leaves there: checkpoints, rows of the log; of several ranks the first writes |
| `provenance.py` | with what, on what and from where the run was started, and gone on with |
| `watch.py` | who is told of a run as it goes |
| `progress.py` | what the person at the terminal sees |
| `run.py` | the loop: epochs, validation, checkpoints, resuming |
"""
