"""pycap: image captioning with VGG and LSTM, trained jointly on kernels written by hand, without a deep-learning framework.

    import pycap
    captioner = pycap.load("runs/coco/best")
    for caption in captioner.caption(["a.jpg", "b.jpg"], beam_size=3):
        print(caption.file_name, caption.text, caption.logprob)

`pycap.train(config)` trains, `pycap.evaluate(results, references)` scores. Importing this loads NumPy and nothing more.
"""

import os as _os

from pycap.autograd import Tensor, no_grad
from pycap.caption import load
from pycap.evaluate import evaluate
from pycap.train import train

__version__ = "0.1.0"
__all__ = ["Tensor", "__version__", "evaluate", "load", "no_grad", "train"]

if _modules := _os.environ.get("PYCAP_MODULES"):  # compiled modules of another build come first (docs/env.md)
    __path__.insert(0, _os.path.abspath(_modules))
