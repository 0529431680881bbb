"""Caption files as the doctor reads them: once, with their encoding looked at, and what the layouts' readers refuse told
entry by entry and taken out, so that the rest can be looked at as well."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycap.data import DataError
from pycap.data.layout import parse_json
from pycap.doctor.findings import Findings

_SPLITS = ("train", "restval", "val", "test")  # Karpathy's
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
#: A token's key with the number of the caption: `NAME.jpg#K<TAB>`, `NAME.jpg| K|`.
_KEY = re.compile(r"^([^\t|\n]+#\d+\t|[^\t|\n]+\| *\d+ *\|)", re.MULTILINE)
_NAME = re.compile(r"[^\t|,]+\.(jpe?g|png)", re.IGNORECASE)


class CheckedFiles:
    """What `layout.reading` takes. sizes: width and height as COCO's files have them, by image's file name and caption file."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._texts: dict[Path, str] = {}
        self._documents: dict[Path, Any] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    def text(self, path: Path) -> str:
        """The file, whatever its encoding. DataError where it cannot be read or is empty."""
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def json(self, path: Path) -> Any:
        """The document without its broken entries. DataError where it is no JSON."""
        if path not in self._documents:
            body = parse_json(path, self._read(path))
            check = self._karpathy if path.name.startswith("dataset_") else self._coco
            self._documents[path] = check(body, path.name) if isinstance(body, dict) else body
        return self._documents[path]

    def _read(self, path: Path) -> str:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
            ) from error
        text = self._decoded(path.name, content)
        if not text.strip():
            raise DataError(f"{path}: the file is empty; fetch it again")
        if path.suffix != ".json":
            self._repeated_keys(path.name, text)
        return text

    def _decoded(self, name: str, content: bytes) -> str:
        add = self._findings.add
        if content.startswith(_UTF16):
            add("not-utf8", name, "it begins as UTF-16 does")
            return content.decode("utf-16", "replace")
        if content.startswith(codecs.BOM_UTF8):
            add("byte-order-mark", name)
            content = content.removeprefix(codecs.BOM_UTF8)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            add("not-utf8", name, f"line {line}, byte {error.start}: {content[error.start : error.start + 1]!r}")
            text = content.decode("utf-8", "surrogateescape")
            # As WINDOWS-1252, which it mostly is: the words are then what they were meant to be.
            text = re.sub("[\udc80-\udcff]+", _western, text)
        return text

    def _repeated_keys(self, name: str, text: str) -> None:
        """Token files number the captions of an image; a split's file names each image once."""
        keys = Counter(key.rstrip("\t|").strip() for key in _KEY.findall(text))
        kind = "annotation-id-twice"
        if not keys:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            keys, kind = Counter(line for line in lines if _NAME.fullmatch(line)), "image-twice"
        for key, count in keys.items():
            if count > 1:
                self._findings.add(kind, key, f"{count} times in {name}", count - 1)

    def _coco(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        images, annotations = body.get("images"), body.get("annotations")
        if not isinstance(images, list) or not isinstance(annotations, list):
            return body  # the reader says so
        kept = list(self._whole(images, "images", ("id", "file_name"), name))
        ids = {image["id"]: image["file_name"] for image in kept}
        files: dict[str, Any] = {}
        for image in kept:
            file_name, image_id = image["file_name"], image["id"]
            if files.setdefault(file_name, image_id) != image_id:
                self._findings.add("image-twice", file_name, f"ids {files[file_name]!r} and {image_id!r} in {name}")
            width, height = image.get("width"), image.get("height")
            if type(width) is int and type(height) is int:
                self.sizes[file_name] = width, height
        self._mixed(ids, name)
        captions = [a for a in annotations if isinstance(a, dict) and "caption" in a]
        if annotations and not captions:
            return {**body, "images": kept}  # another of COCO's files, as the reader says
        whole = list(self._whole(annotations, "annotations", ("image_id", "caption"), name))
        known = [a for a in whole if a["image_id"] in ids]
        if known:
            self._unknown((a for a in whole if a["image_id"] not in ids), ids, name)
        seen: Counter[Any] = Counter(a["id"] for a in whole if isinstance(a.get("id"), (int, str)))
        for annotation_id, count in seen.items():
            if count > 1:
                self._findings.add("annotation-id-twice", annotation_id, f"{count} times in {name}", count - 1)
        return {**body, "images": kept, "annotations": known or whole}

    def _unknown(self, annotations: Iterator[dict[str, Any]], ids: dict[Any, str], name: str) -> None:
        """Annotations of which no image has the id, unless it is one that is written otherwise."""
        meant = {str(image_id): image_id for image_id in ids}
        for annotation in annotations:
            image_id, caption = annotation["image_id"], f"{annotation['caption']!r:.60} in {name}"
            if str(image_id) in meant:
                self._findings.add(
                    "id-types", repr(image_id), f'"images" has {meant[str(image_id)]!r}; caption {caption}'
                )
            else:
                self._findings.add("unknown-image-id", image_id, f"caption {caption}")

    def _mixed(self, ids: dict[Any, str], name: str) -> None:
        """Of ids that are text among numbers, or the other way round, the rarer ones."""
        texts = [image_id for image_id in ids if isinstance(image_id, str)]
        numbers = [image_id for image_id in ids if not isinstance(image_id, str)]
        if texts and numbers:
            for image_id in min(texts, numbers, key=len):
                self._findings.add("id-types", repr(image_id), f"{ids[image_id]}: most ids of {name} are otherwise")

    def _whole(self, entries: list[Any], where: str, keys: tuple[str, str], name: str) -> Iterator[dict[str, Any]]:
        """The entries of COCO's lists that the reader takes; the others are told. keys: of the id, and of a text."""
        id_key, text_key = keys
        for i, entry in enumerate(entries):
            place = f"{name}: {where}[{i}]"
            if not isinstance(entry, dict):
                self._findings.add("broken-entry", place, f"a {type(entry).__name__}, not an object")
            elif missing := [key for key in keys if key not in entry]:
                self._findings.add("broken-entry", place, f'lacks "{missing[0]}" (it has: {", ".join(entry)})')
            elif isinstance(entry[id_key], bool) or not isinstance(entry[id_key], (int, str)):
                self._findings.add("broken-entry", place, f'"{id_key}" is {entry[id_key]!r:.60}, not an id')
            elif text_key == "file_name" and not (isinstance(entry[text_key], str) and entry[text_key]):
                self._findings.add("broken-entry", place, f'"{text_key}" is {entry[text_key]!r:.60}, not a name')
            else:
                yield entry

    def _karpathy(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        if not isinstance(body.get("images"), list):
            return body  # the reader says so
        kept: list[dict[str, Any]] = []
        listed: set[tuple[str, Any, str]] = set()
        sentences: Counter[Any] = Counter()
        add = self._findings.add
        for i, image in enumerate(body["images"]):
            reason = _broken(image)
            if reason:
                add("broken-entry", f"{name}: images[{i}]", reason)
                continue
            whole = []
            for k, sentence in enumerate(image["sentences"]):
                if not isinstance(sentence, dict) or not ("raw" in sentence or "tokens" in sentence):
                    add("broken-entry", f"{name}: images[{i}].sentences[{k}]", 'neither "raw" nor "tokens"')
                else:
                    whole.append(sentence)
                    sentences.update([sentence["sentid"]] if isinstance(sentence.get("sentid"), (int, str)) else [])
            file_name, split = image["filename"], image["split"]
            if split not in _SPLITS:
                add("unknown-split", file_name, f'"split" is {split!r}')
                continue
            if (split, image.get("filepath"), file_name) in listed:
                add("image-twice", file_name, f"both times in {split} of {name}")
            listed.add((split, image.get("filepath"), file_name))
            kept.append({**image, "sentences": whole})
        for sentence_id, count in sentences.items():
            if count > 1:
                add("annotation-id-twice", sentence_id, f'{count} times as "sentid" in {name}', count - 1)
        return {**body, "images": kept}


def _broken(image: Any) -> str:
    """Why an entry of Karpathy's list is none; empty where it is one."""
    if not isinstance(image, dict):
        return f"a {type(image).__name__}, not an object"
    kinds: dict[str, type] = {"filename": str, "split": str, "sentences": list}
    for key, kind in kinds.items():
        if key not in image:
            return f'lacks "{key}" (it has: {", ".join(image)})'
        if not isinstance(image[key], kind):
            return f'"{key}" is a {type(image[key]).__name__}'
    if "filepath" in image and not isinstance(image["filepath"], str):
        return f'"filepath" is {image["filepath"]!r}, not a folder'
    return ""


def _western(found: re.Match[str]) -> str:
    """Bytes that are no UTF-8, as WINDOWS-1252 has them."""
    return found[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace")
