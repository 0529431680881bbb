"""Train a captioner from a checkout: ``python train.py --stage coco``."""

from pycap.train import main

if __name__ == "__main__":
    main()
