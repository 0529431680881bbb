"""The chain of the ImageCLEF 2016 paper as data: what is trained after what, its tables, and what they are said to show.

Numbers are those of Zhu et al., "Joint Learning of CNN and LSTM for Image Captioning", tables 1 to 3 and section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What captions are tested on: the target's whole validation set, or the quarter of it that FT(3/4 validation set) leaves.
ALL, QUARTER = "validation set", "1/4 validation set"
VGG = "vgg"  # a Stage.start: the pre-trained CNN


@dataclass(frozen=True)
class Stage:
    """One training run. does: what, for the person at the terminal.

    recipe: of recipes/, for real data; demo: for the demo domains. options: laid over either. seen: options for a CNN that
    is pre-trained on ImageNet, with real data. start: `VGG`, or the stage whose captioner goes on learning; "" for none.
    test: on what its captions are scored ("" for a classifier). checkpoint: which one is tested: `best` was chosen on images
    that the run held out; where it held out none, or those of the test, `last`.
    """

    name: str
    does: str
    recipe: str
    demo: str
    start: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)
    test: str = ALL
    checkpoint: str = "best"


# On features made once, as the paper's LSTM was trained (with NeuralTalk).
_FROZEN = {"freeze_cnn": True, "finetune_cnn_after": 0, "features": "auto"}
_JOINT = {"finetune_cnn_after": 0}
_SEEN = {"cnn_learning_rate": 1e-5}  # as the recipes say for a CNN that sees already

PRETRAIN, SELECTED = "pretrain", "ft_selected"
BASELINE, TUNED = "coco_all_joint", "ft_flickr"

STAGES: tuple[Stage, ...] = (
    Stage(PRETRAIN, "the VGG learns to classify single objects", "pretrain", "paper_demo_pretrain", "", test=""),
    Stage("coco_frozen", "LSTM only, on COCO's train split", "coco", "paper_demo", VGG, _FROZEN),
    Stage("flickr8k_frozen", "LSTM only, on Flickr8k", "flickr8k", "paper_demo", VGG, _FROZEN),
    Stage("flickr30k_frozen", "LSTM only, on Flickr30k", "flickr30k", "paper_demo", VGG, _FROZEN),
    Stage("coco_joint", "CNN and LSTM jointly, on COCO's train split", "coco", "paper_demo", VGG, _JOINT, _SEEN),
    Stage(
        BASELINE,
        "CNN and LSTM jointly, on all of COCO: the baseline",
        "coco_all",
        "paper_demo",
        VGG,
        _JOINT,
        _SEEN,
        checkpoint="last",  # COCO's validation images are trained on
    ),
    Stage(
        "ft_val",
        "the baseline is fine-tuned on 3/4 of the validation set",
        "imageclef",
        "paper_demo_finetune",
        BASELINE,
        {**_JOINT, "extend_vocab": True},
        test=QUARTER,
        checkpoint="last",  # what the run validates on is the quarter that it is tested on
    ),
    Stage(
        TUNED,
        "the baseline is fine-tuned on Flickr8k and Flickr30k",
        "flickr",
        "paper_demo_finetune",
        BASELINE,
        {**_JOINT, "extend_vocab": True},
    ),
    Stage(
        SELECTED,
        "the baseline is fine-tuned on Flickr8k, Flickr30k and the selected pairs",
        "selected",
        "paper_demo_finetune",
        BASELINE,
        {**_JOINT, "extend_vocab": True},
    ),
)


@dataclass(frozen=True)
class Row:
    """A line of a table: its first columns, the stage and test whose score it shows, and the paper's number."""

    cells: tuple[str, ...]
    stage: str
    paper: float | None
    test: str = ALL


@dataclass(frozen=True)
class Table:
    """A table of the paper. columns: heads of the rows' cells. note: what to know when numbers are compared."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


TABLES: tuple[Table, ...] = (
    Table(
        1,
        "the LSTM alone, trained on different data",
        ("training data",),
        (
            Row(("MSCOCO",), "coco_frozen", 0.1326719463),
            Row(("Flickr8k",), "flickr8k_frozen", 0.1168440478),
            Row(("Flickr30k",), "flickr30k_frozen", 0.1231898764),
        ),
    ),
    Table(
        2,
        "CNN and LSTM learned jointly or not",
        ("change parameters in CNN", "training data"),
        (
            Row(("no", "MSCOCO"), "coco_frozen", 0.1326719463),
            Row(("yes", "MSCOCO"), "coco_joint", 0.1646048292),
        ),
        "Both rows here are trained on COCO's train split. The paper's number of the second row is that of all of COCO in its "
        "table 3, where the train split alone has 0.1369.",
    ),
    Table(
        3,
        "fine-tuning on different data",
        ("training data",),
        (
            Row(("only the training split of MSCOCO",), "coco_joint", 0.1368988204),
            Row(("MSCOCO (baseline)",), BASELINE, 0.1646048292),
            Row(("MSCOCO (baseline), for comparison",), BASELINE, None, QUARTER),
            Row(("FT(3/4 validation set)",), "ft_val", 0.1159403729, QUARTER),
            Row(("FT(Flickr8k+Flickr30k)",), TUNED, 0.1738749916),
            Row(("FT(Flickr8k+Flickr30k+1000_selected)",), SELECTED, 0.2042696662),
        ),
        "The paper compares its score on the 1/4 with one on the whole validation set; the row for comparison has the "
        "baseline's score on the same 1/4.",
    ),
)


@dataclass(frozen=True)
class Claim:
    """`more` scores above `less` on the same test; or_equal: or as high."""

    text: str
    more: str
    less: str
    test: str = ALL
    or_equal: bool = False


CLAIMS: tuple[Claim, ...] = (
    Claim("of the LSTM alone, COCO's is better than Flickr8k's", "coco_frozen", "flickr8k_frozen"),
    Claim("of the LSTM alone, COCO's is better than Flickr30k's", "coco_frozen", "flickr30k_frozen"),
    Claim("joint is better than a frozen CNN", "coco_joint", "coco_frozen"),
    Claim("all of COCO is better than its train split", BASELINE, "coco_joint"),
    Claim("FT(Flickr8k+Flickr30k) is better than the baseline", TUNED, BASELINE),
    Claim("FT(3/4 validation set) is no better than the baseline", BASELINE, "ft_val", QUARTER, or_equal=True),
    Claim("the selected pairs do no harm to FT(Flickr8k+Flickr30k)", SELECTED, TUNED, or_equal=True),
)


@dataclass(frozen=True)
class Submission:
    """A run file that was sent to the campaign. median: the score that its server gave."""

    file: str
    stage: str
    model: str
    median: float


SUBMISSIONS: tuple[Submission, ...] = (
    Submission("id_sentence2.txt", BASELINE, "MSCOCO (baseline)", 0.1676),
    Submission("id_sentence3.txt", BASELINE, "the same again", 0.1676),
    Submission("id_sentence.txt", TUNED, "FT(Flickr8k+Flickr30k)", 0.1710),
    Submission("id_sentence4.txt", SELECTED, "FT(Flickr8k+Flickr30k+1000_selected)", 0.1711),
)

#: Pairs that the paper picked by hand, of captions of 510,123 images; with the demo domains the same part of the images that
#: are fine-tuned on (1,000 of Flickr's 37,783).
PICKED = 1000
PICKED_SHARE = 1000 / 37_783
FIGURE_IMAGES = 9  # of the paper's Figure 3
BEAM = 3
