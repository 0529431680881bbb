"""What `pycap doctor DIR` can find in a data folder: how bad it is, why it matters, what helps."""

from __future__ import annotations

from typing import NamedTuple

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


class Kind(NamedTuple):
    """severity: `error` where training fails, leaves out what it was given, or learns or scores what it should not;
    `warning` where captions or images are worse than they look; `note` where it is good to know. what: said after the count,
    `{s}` for the plural. why: it matters. remedy: `{folder}` is the data set's."""

    severity: str
    what: str
    why: str
    remedy: str


_FETCH = "fetch the original again and compare its checksum"

KINDS: dict[str, Kind] = {
    # The folder and its caption files.
    "layout": Kind(
        ERROR,
        "folder{s} of no known layout",
        "training cannot find captions and images",
        "arrange the folder as docs/data.md has it, or name the kind with --stage",
    ),
    "unreadable-file": Kind(
        ERROR,
        "split{s} or caption file{s} that cannot be used",
        "training ends with this error",
        "do as the message says; docs/data.md has the layouts",
    ),
    "not-utf8": Kind(
        ERROR,
        "caption file{s} not in UTF-8",
        "training refuses the file; read in another encoding, words are other words",
        "convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW (or -f UTF-16, as the bytes tell)",
    ),
    "byte-order-mark": Kind(
        NOTE,
        "file{s} with a byte order mark",
        "pycap drops it; other tools take it for a part of the first name",
        "remove it: sed -i '1s/^\\xef\\xbb\\xbf//' FILE",
    ),
    "broken-line": Kind(
        WARNING,
        "line{s} of another form",
        "the line's caption is left out",
        "correct the lines, or " + _FETCH,
    ),
    "broken-key": Kind(
        WARNING,
        "key{s} that are no image names",
        "their captions are left out",
        "correct the key to the image's file name (Flickr8k's own token file has one such key, which may stay)",
    ),
    "broken-entry": Kind(
        ERROR,
        "entr{ies} of a wrong type or without a key",
        "training refuses the whole file",
        "correct or remove these entries of the JSON, or " + _FETCH,
    ),
    "unknown-image-id": Kind(
        ERROR,
        'annotation{s} with image ids that "images" lacks',
        "their captions are left out",
        '"images" and "annotations" are of different versions: ' + _FETCH,
    ),
    "id-types": Kind(
        ERROR,
        "id{s} written as text here and as a number there",
        "the id 9 is not the id \"9\": the captions are left out, or scores count an image as missing",
        "write all ids of the file as numbers",
    ),
    "image-id-twice": Kind(
        ERROR,
        "image id{s} of two images",
        "captions of one are trained on with the other's pixels, or an image is left out",
        "give each image an id of its own",
    ),
    "image-twice": Kind(
        ERROR,
        "image{s} listed twice",
        "it is trained on twice as often, and scored twice",
        "merge the two entries, all captions under one of them",
    ),
    "annotation-id-twice": Kind(
        WARNING,
        "annotation id{s} given twice",
        "pycap does not mind; COCO's tools keep only one of the two captions",
        "number the annotations anew",
    ),
    "unknown-split": Kind(
        ERROR,
        "image{s} of a split of no known name",
        "the image is in no split, and never used",
        'write train, restval, val or test as the "split"',
    ),
    "path-outside": Kind(
        ERROR,
        "file name{s} that lead out of the folder",
        "another file than the set's would be trained on",
        "write names relative to the image folder, without ..",
    ),
    # Captions.
    "caption-not-text": Kind(
        ERROR, "caption{s} that are no text", "it is left out", "write the caption as a string, or remove the entry"
    ),
    "caption-without-words": Kind(
        WARNING,
        "caption{s} without a word",
        "it is left out; a caption needs a word of Latin letters",
        "write a caption, or remove the entry",
    ),
    "caption-only-unknown": Kind(
        WARNING,
        "training caption{s} of unknown words alone",
        "the model is taught to say nothing but UNK",
        "correct or remove the caption, or lower --word-count-threshold",
    ),
    "caption-very-long": Kind(
        WARNING,
        "caption{s} of more than 100 words",
        "all but the first --max-length words are cut off; such a text is rarely a caption",
        "write one sentence instead",
    ),
    "caption-twice": Kind(
        NOTE,
        "caption{s} given twice for one image",
        "it counts twice in training, once as a reference",
        "remove one, unless two people wrote the same",
    ),
    "caption-of-many": Kind(
        WARNING,
        "caption{s} that stand for many images",
        "the model learns to say it of every image",
        "remove it where it is a placeholder",
    ),
    "few-distinct-captions": Kind(
        WARNING,
        "split{s} whose captions are mostly the same",
        "the model learns a few sentences, whatever the image",
        "see whether captions were copied by a mistake",
    ),
    "mojibake": Kind(
        WARNING,
        "caption{s} decoded wrongly (\u00c3\u00a9 for \u00e9)",
        "its words are taken apart into other words",
        "encode the file as it was wrongly decoded: iconv -f UTF-8 -t WINDOWS-1252 FILE > NEW, which then is UTF-8",
    ),
    "control-characters": Kind(
        WARNING,
        "caption{s} or name{s} with control characters",
        "they cut words in two, and other tools stop at them",
        "remove them: tr -d '\\000-\\010\\013\\014\\016-\\037\\177' < FILE > NEW",
    ),
    "not-nfc": Kind(
        NOTE,
        "text{s} in decomposed Unicode",
        "pycap folds accents in captions; names of files must match byte by byte, and other tools see two spellings",
        "normalise the file: uconv -x any-nfc FILE > NEW",
    ),
    "image-without-captions": Kind(
        WARNING, "image{s} without a usable caption", "the image is left out", "add captions, or remove the entry"
    ),
    "unknown-words": Kind(
        WARNING,
        "split{s} with many words that training never learns",
        "the model cannot say them, and scores are lower for it",
        "lower --word-count-threshold, or add training captions of that kind",
    ),
    # Images.
    "missing-image": Kind(
        ERROR,
        "image{s} missing",
        "the image is left out of training and of scores, which others cannot compare theirs with",
        "fetch the images again, or remove their entries",
    ),
    "name-differs": Kind(
        ERROR,
        "image{s} whose file is named a little differently",
        "another case, suffix or spelling is another file: the image is left out",
        "rename the file as the caption file has it",
    ),
    "empty-image": Kind(ERROR, "image file{s} of zero bytes", "the image is left out", "fetch it again"),
    "corrupt-image": Kind(
        ERROR, "image{s} corrupt or cut short", "the image is left out", "fetch it again"
    ),
    "image-without-end": Kind(
        ERROR,
        "JPEG{s} whose end is missing",
        "decoders fill the rest with grey, so that training sees a part of the picture",
        "fetch it again; a download was stopped",
    ),
    "not-an-image": Kind(
        ERROR, "file{s} that are no image", "the file is left out", "fetch it again, or save it as a JPEG"
    ),
    "too-many-pixels": Kind(
        ERROR,
        "image{s} with too many pixels to be decoded safely",
        "the image is left out",
        "shrink it first: convert FILE -resize 1024x1024 NEW",
    ),
    "unreadable-image": Kind(
        ERROR,
        "file{s} or folder{s} that may not be read",
        "the image is left out",
        "chmod -R u+rX {folder}, or see to the disk",
    ),
    "other-format": Kind(
        NOTE,
        "image{s} of another format than the suffix says",
        "pycap looks at the content; other tools go by the name",
        "rename it, or save it anew",
    ),
    "animated": Kind(NOTE, "image{s} with several pictures", "the first picture is used", "save the one that is meant"),
    "cmyk": Kind(
        NOTE,
        "image{s} in CMYK",
        "converted without its colour profile: colours are a little off",
        "save it as RGB: convert FILE -colorspace sRGB NEW",
    ),
    "sixteen-bit": Kind(NOTE, "image{s} of 16 bits", "reduced to 8 bits", "none is needed"),
    "transparent": Kind(NOTE, "image{s} with transparency", "laid on white", "save it on the ground that is meant"),
    "tiny": Kind(
        WARNING,
        "image{s} of less than 32 pixels a side",
        "enlarged to what the CNN sees, it shows next to nothing",
        "find a larger copy, or remove it",
    ),
    "long-and-thin": Kind(
        WARNING,
        "image{s} ten times as long as wide, or more",
        "squashed into a square, nothing in it keeps its shape",
        "crop it, or remove it",
    ),
    "size-differs": Kind(
        WARNING,
        "image{s} of another size than the annotations say",
        "it may be another image than the one that was annotated",
        "fetch the image again; where all were resized on purpose, leave it",
    ),
    "orphan-image": Kind(
        NOTE, "image file{s} that nothing names", "never used", "none is needed; or add captions, or remove the file"
    ),
    # The same twice, and leaks.
    "same-image": Kind(
        NOTE,
        "image{s} whose bytes are another's of the split",
        "it is trained on, or scored, twice",
        "keep one of them, with all captions",
    ),
    "leak-name": Kind(
        ERROR,
        "image{s} in train and in a held-out split, by name",
        "scores tell what was memorised",
        "remove the image from one of the splits",
    ),
    "leak-bytes": Kind(
        ERROR,
        "image{s} in train and in a held-out split, byte for byte",
        "scores tell what was memorised",
        "remove the image from one of the splits",
    ),
    "leak-pixels": Kind(
        ERROR,
        "image{s} in train and in a held-out split, saved anew",
        "scores tell what was memorised",
        "look at both, and remove one",
    ),
    "leak-captions": Kind(
        ERROR,
        "image{s} whose captions are all those of an image of another split",
        "the same photograph in another form, or captions copied to the wrong image",
        "look at both images, and remove one, or correct the captions",
    ),
    "held-out-elsewhere": Kind(
        NOTE,
        "training image{s} that another of the sets holds out",
        "left out of training, so that nothing leaks",
        "none is needed",
    ),
    # Classified images.
    "class-without-images": Kind(
        WARNING, "folder{s} of a class without an image", "the class is left out", "add images, or remove the folder"
    ),
    "class-without-validation": Kind(
        WARNING, "class{es} with no image to validate on", "its accuracy is not known", "move some images to val/CLASS"
    ),
}  # fmt: skip


def plural(kind: str, count: int) -> str:
    """What was found, after its count: `images missing`."""
    s, ies, es = ("", "y", "") if count == 1 else ("s", "ies", "es")
    return KINDS[kind].what.format(s=s, ies=ies, es=es)
