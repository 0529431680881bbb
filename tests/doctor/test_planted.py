"""`pycap doctor DIR` finds every planted defect of every layout by kind and name, and nothing else; in clean sets nothing."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pycap.data import demo
from pycap.doctor import files, kinds, layouts
from pycap.doctor.findings import Findings
from tests.doctor import planting
from tests.doctor.examining import Captions, Expected, examined, names, token_file
from tests.doctor.planting import FILES, clean, karpathy, photograph, saved


def spoil_captions(c: Captions, expected: Expected) -> None:
    """One caption of an image each."""
    texts: dict[str, Any] = {
        "caption-not-text": None,
        "caption-without-words": "?! 12",
        "caption-only-unknown": "zyxgl qwrtz",
        "caption-very-long": "a red circle " * 40,
        "mojibake": "a red circle at the caf\u00c3\u00a9",
        "control-characters": "a red \x00circle",
        "not-nfc": unicodedata.normalize("NFD", "a red circle \u00e0 la carte"),
    }
    for kind, text in texts.items():
        image, annotations = c.take()
        annotations[0]["caption"] = text
        expected[kind] = {image["file_name"]}
    image, annotations = c.take()
    annotations[0]["caption"] = ""
    expected["caption-without-words"] |= {image["file_name"]}
    image, annotations = c.take()
    annotations[0]["caption"] = annotations[1]["caption"]
    expected["caption-twice"] = {image["file_name"]}
    image, annotations = c.take()
    for annotation in annotations:
        c.annotations.remove(annotation)
    expected["image-without-captions"] = {image["file_name"]}


def spoil_files(c: Captions, expected: Expected) -> None:
    for number, (kind, (suffix, content, (width, height))) in enumerate(FILES.items()):
        image, _ = c.take()
        c.rename(image, f"{kind}{suffix}")
        c.path(image).write_bytes(content(1000 + number))
        image.update(width=width, height=height)
        expected[kind] = {image["file_name"]}
    image, _ = c.take()
    image["width"] += 7
    expected["size-differs"] = {image["file_name"]}
    image, _ = c.take()  # turned by EXIF: annotated as people see it
    c.path(image).write_bytes(saved(photograph(76, 60, 40)))
    image.update(width=40, height=60)
    image, _ = c.take()
    c.path(image).unlink()
    expected["missing-image"] = {image["file_name"]}
    image, _ = c.take()
    c.path(image).rename(c.path(image).with_suffix(".JPG"))
    expected["name-differs"] = {image["file_name"]}
    image, _ = c.take()
    c.path(image).unlink()
    c.path(image).symlink_to(c.path(image))  # what nobody may read, whoever runs this
    expected["unreadable-image"] = {image["file_name"]}
    (c.root / "train2017" / "orphan.jpg").write_bytes(saved(photograph(77)))
    expected["orphan-image"] = {str(c.root / "train2017" / "orphan.jpg")}
    one, other = c.take()[0], c.take()[0]
    shutil.copyfile(c.path(one), c.path(other))
    expected["same-image"] = {other["file_name"]}


def spoil_keys(c: Captions, expected: Expected) -> None:
    image, _ = c.take()
    c.images.append({**image, "file_name": "again.jpg"})
    expected["image-id-twice"] = {image["file_name"]}
    image, annotations = c.take()
    c.images.append({**image, "id": 555})
    annotations[4]["image_id"] = 555
    expected["image-twice"] = {image["file_name"]}
    _, annotations = c.take()
    annotations[0]["id"] = annotations[1]["id"]
    expected["annotation-id-twice"] = {str(annotations[0]["id"])}
    c.annotations.append({"id": -1, "image_id": 987654, "caption": "a red circle"})
    expected["unknown-image-id"] = {"987654"}
    image, annotations = c.take()
    annotations[0]["image_id"] = str(image["id"])
    expected["id-types"] = {repr(str(image["id"]))}
    broken = len(c.images), len(c.annotations)
    c.images += [{"id": 556}, {"id": None, "file_name": "none.jpg"}, {"id": 557, "file_name": ""}, "train.jpg"]
    c.images.append({"id": True, "file_name": "true.jpg"})
    c.annotations += [["a red circle"], {"image_id": 1}, {"image_id": 1.5, "caption": "a red circle"}]
    expected["broken-entry"] = {f"captions_train2017.json: images[{broken[0] + i}]" for i in range(5)}
    expected["broken-entry"] |= {f"captions_train2017.json: annotations[{broken[1] + i}]" for i in range(3)}
    image, _ = c.take()
    c.rename(image, "../../outside.jpg")
    (c.root.parent / "outside.jpg").write_bytes(saved(photograph(78)))
    expected["path-outside"] = {"../../outside.jpg"}


def spoil_splits(train: Captions, val: Captions, expected: Expected) -> None:
    one, (other, _) = train.take()[0], val.take()
    val.rename(other, one["file_name"])
    shutil.copyfile(train.path(one), val.path(other))
    for annotation in val.annotations:  # the id goes with the name
        annotation["image_id"] = one["id"] if annotation["image_id"] == other["id"] else annotation["image_id"]
    other["id"] = one["id"]
    expected["leak-name"] = {one["file_name"]}
    one, (other, _) = train.take()[0], val.take()
    shutil.copyfile(train.path(one), val.path(other))
    expected["leak-bytes"] = {one["file_name"]}
    one, (other, _) = train.take()[0], val.take()
    train.path(one).write_bytes(saved(photograph(79, 200, 150), quality=92))
    val.path(other).write_bytes(saved(photograph(79, 200, 150).resize((100, 75)), quality=70))
    one.update(width=200, height=150)
    other.update(width=100, height=75)
    expected["leak-pixels"] = {one["file_name"]}
    (one, said), (_, repeated) = train.take(), val.take()
    for annotation, caption in zip(repeated, reversed([a["caption"] for a in said]), strict=True):
        annotation["caption"] = caption
    expected["leak-captions"] = {one["file_name"]}
    for _ in range(10):
        val.take()[1][0]["caption"] = "no description available"
    expected["caption-of-many"] = {"'no description available'"}


def test_coco_with_all_defects(tmp_path: Path) -> None:
    root = clean("coco", tmp_path / "data")
    train, val = Captions(root, "train"), Captions(root, "val")
    expected: Expected = {}
    spoil_splits(train, val, expected)
    spoil_files(train, expected)
    spoil_captions(train, expected)
    spoil_keys(train, expected)
    _, annotations = train.take()
    annotations[0]["caption"] += " at the caf\u00e9"
    train.write("latin-1")
    expected["not-utf8"] = {"captions_train2017.json"}
    val.write("utf-8-sig")
    expected["byte-order-mark"] = {"captions_val2017.json"}
    found = examined(root)
    assert names(found) == expected
    assert len(expected) == 41 and found.findings.errors
    # What is left of it is trained on: the reader itself, on a file whose encoding and entries were corrected.
    assert found.images["looked_at"] == found.images["named"]


def test_every_kind_is_planted_in_some_test() -> None:
    source = Path(__file__).read_text("utf-8") + Path(planting.__file__).read_text("utf-8")
    assert [kind for kind in kinds.KINDS if f'"{kind}"' not in source] == []


@pytest.mark.parametrize("layout", ["coco", "flickr8k", "flickr30k", "imageclef", "classes"])
def test_a_clean_set_has_no_finding(tmp_path: Path, layout: str) -> None:
    found = examined(clean(layout, tmp_path))
    assert names(found) == {} and found.kind == {"classes": "pretrain"}.get(layout, layout)
    assert found.images["readable"] == sum(split["images"] for split in found.splits.values())


def test_clean_sets_of_other_forms(tmp_path: Path) -> None:
    assert names(examined(demo.generate(tmp_path / "demo", train=40, val=10, size=48))) == {}
    assert names(examined(karpathy(tmp_path, clean("coco", tmp_path)))) == {}
    for layout in ("flickr8k", "imageclef"):
        clean(layout, tmp_path)
    (tmp_path / "dataset_coco.json").unlink(missing_ok=True)
    together = examined(tmp_path)
    assert names(together) == {} and together.kind == "coco+flickr8k+imageclef"


def test_flickr8k_with_all_defects(tmp_path: Path) -> None:
    root = clean("flickr8k", tmp_path / "data")
    tokens, lines = token_file(root, "Flickr8k_text/Flickr8k.token.txt")
    train, trained = token_file(root, "Flickr8k_text/Flickr_8k.trainImages.txt")
    _, held = token_file(root, "Flickr8k_text/Flickr_8k.devImages.txt")
    images = root / "Flicker8k_Dataset"
    expected: Expected = {}
    lines += ["a line without a tab", "77_abcdef.jpg.1#0\ta red circle", f"{trained[0]}#0\ta red circle"]
    expected["broken-line"] = {tokens.name}
    expected["broken-key"] = {"77_abcdef.jpg.1"}
    expected["annotation-id-twice"] = {f"{trained[0]}#0"}
    trained.append(trained[1])
    expected["image-twice"] = {trained[1]}
    trained.append(held[0])
    expected["leak-name"] = {held[0]}
    (images / trained[2]).unlink()
    expected["missing-image"] = {trained[2]}
    lines = [line for line in lines if not line.startswith(trained[3])]
    expected["image-without-captions"] = {trained[3]}
    stem = trained[4].removesuffix(".jpg")
    (images / f"{stem}.png").write_bytes(saved(photograph(80), "PNG"))
    lines.append(f"{stem}.png#0\ta blue square on the left")
    trained.append(f"{stem}.png")
    expected["image-id-twice"] = {f"{stem}.png"}
    (images / "orphan.jpg").write_bytes(saved(photograph(81)))
    expected["orphan-image"] = {str(images / "orphan.jpg")}
    (root / "outside.jpg").write_bytes(saved(photograph(82)))
    trained.append("../../outside.jpg")
    (root.parent / "outside.jpg").write_bytes(saved(photograph(82)))
    lines.append("../../outside.jpg#0\ta blue square on the right")
    expected["path-outside"] = {"../../outside.jpg"}
    lines.append(f"{trained[5]}#9\ta caf\u00e9 and a square")
    tokens.write_text("\n".join(lines) + "\n", "latin-1")
    expected["not-utf8"] = {tokens.name}
    train.write_text("\ufeff" + "\n".join(trained) + "\n")
    expected["byte-order-mark"] = {train.name}
    assert names(examined(root)) == expected


def test_flickr30k_with_defects_of_pipes(tmp_path: Path) -> None:
    """Kaggle's form of the file."""
    root = clean("flickr30k", tmp_path)
    tokens, lines = token_file(root, "results_20130124.token")
    tokens.unlink()
    rows = ["image_name| comment_number| comment"]
    for line in lines:
        key, _, caption = line.partition("\t")
        name, _, number = key.partition("#")
        rows.append(f"{name}| {number}| {caption}")
    rows += [rows[1], "no pipe in it"]
    (root / "results.csv").write_text("\n".join(rows) + "\n")
    name = rows[1].partition("|")[0]
    assert names(examined(root)) == {
        "annotation-id-twice": {f"{name}| 0"}, "caption-twice": {name}, "broken-line": {"results.csv"},
    }  # fmt: skip


def test_imageclef_with_all_defects(tmp_path: Path) -> None:
    root = clean("imageclef", tmp_path)
    file, lines = token_file(root, "sentences.txt")
    keys = list(dict.fromkeys(line.partition("\t")[0] for line in lines))
    image = {key: root / "scaleconcepts16_images" / key[:2] / f"{key}.jpg" for key in keys}
    image[keys[0]].unlink()
    image[keys[1]].write_bytes(b"")
    lines += ["ffff\t12 34", f"{keys[2]}\ta red \x07circle"]
    file.write_text("\n".join(lines) + "\n")
    assert names(examined(root)) == {
        "missing-image": {f"{keys[0]}.jpg"}, "empty-image": {f"{keys[1]}.jpg"}, "broken-line": {"sentences.txt"},
        "control-characters": {f"{keys[2]}.jpg"},
    }  # fmt: skip


def test_karpathy_with_all_defects(tmp_path: Path) -> None:
    root = karpathy(tmp_path, clean("coco", tmp_path / "data"))
    file = root / "dataset_coco.json"
    body = json.loads(file.read_text())
    images: list[Any] = body["images"]
    names_of = [image["filename"] for image in images]
    images[0]["split"] = "training"
    images[1]["sentences"][0]["sentid"] = images[1]["sentences"][1]["sentid"]
    images[2]["cocoid"] = images[3]["cocoid"]
    images[4]["filepath"] = "../elsewhere"
    (tmp_path / "data" / "elsewhere").mkdir()
    shutil.move(root / "train2017" / names_of[4], tmp_path / "data" / "elsewhere" / names_of[4])
    images[5]["sentences"].append({"tokenised": []})
    images.append({**images[6], "cocoid": 777, "sentences": [{"raw": "a red circle on the left"}]})
    images += [{"filename": "a.jpg"}, 17]
    file.write_text(json.dumps(body))
    count = len(images)
    assert names(examined(root)) == {
        "unknown-split": {names_of[0]},
        "annotation-id-twice": {str(body["images"][1]["sentences"][0]["sentid"])},
        "image-id-twice": {f"train2017/{names_of[3]}"},
        "path-outside": {f"../elsewhere/{names_of[4]}"},
        "broken-entry": {f"{file.name}: images[5].sentences[5]"}
        | {f"{file.name}: images[{count - i}]" for i in (1, 2)},
        "image-twice": {names_of[6]},
        "orphan-image": {str(root / "train2017" / names_of[0])},
    }


def test_picks_with_all_defects(tmp_path: Path) -> None:
    file = tmp_path / "picks.jsonl"
    (tmp_path / "a.jpg").write_bytes(saved(photograph(1)))
    (tmp_path / "b.jpg").write_bytes(b"")
    rows = [{"file_name": "a.jpg", "caption": "a red circle"}, {"file_name": "a.jpg", "caption": "a red circle"}]
    rows += [{"file_name": "b.jpg", "caption": "a red circle"}, {"file_name": "c.jpg", "caption": "a red circle"}]
    rows += [{"file_name": "a.jpg", "caption": "?"}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\nno JSON\n")
    assert names(examined(file)) == {
        kind: {"b.jpg" if kind == "empty-image" else "picks.jsonl"}
        for kind in ("empty-image", "caption-twice", "missing-image", "caption-without-words", "broken-line")
    }


def test_classes_with_all_defects(tmp_path: Path) -> None:
    root = clean("classes", tmp_path)
    classes = sorted(path.name for path in (root / "train").iterdir())
    (root / "train" / "nothing").mkdir()
    shutil.rmtree(root / "val" / classes[0])
    one, *others = sorted((root / "train" / classes[1]).iterdir())
    shutil.copyfile(one, root / "val" / classes[1] / "copy.jpg")
    others[0].write_bytes(b"")
    (root / "train" / "beside.jpg").write_bytes(saved(photograph(3)))
    assert names(examined(root)) == {
        "class-without-images": {"train/nothing"}, "class-without-validation": {f"val/{classes[0]}"},
        "leak-bytes": {f"train/{classes[1]}/{one.name}"}, "empty-image": {f"train/{classes[1]}/{others[0].name}"},
        "orphan-image": {str(root / "train" / "beside.jpg")},
    }  # fmt: skip


def test_words_that_say_little(tmp_path: Path) -> None:
    root = clean("coco", tmp_path)
    train, val = Captions(root, "train"), Captions(root, "val")
    for number, annotation in enumerate(train.annotations):
        annotation["caption"] = f"a {('red', 'blue', 'green')[number % 3]} thing number {'abcde'[number % 5]}"
    for number, annotation in enumerate(val.annotations):
        annotation["caption"] = f"strange words {chr(97 + number % 26)}{chr(97 + number // 26)}q alone"
    train.write()
    val.write()
    found = names(examined(root))
    assert found["few-distinct-captions"] == {"coco train"} and found["unknown-words"] == {"coco val"}


def test_a_set_that_another_holds_out_is_told_once(tmp_path: Path) -> None:
    for name in ("flickr8k", "flickr30k"):
        clean(name, tmp_path)
    held = (tmp_path / "flickr8k/Flickr8k_text/Flickr_8k.testImages.txt").read_text().split()[0]
    number = held.partition("_")[0]
    trained, lines = token_file(tmp_path / "flickr30k", "flickr30k_train.txt")
    before = lines[0]
    trained.write_text("\n".join([f"{number}.jpg", *lines[1:]]) + "\n")
    tokens, rows = token_file(tmp_path / "flickr30k", "results_20130124.token")
    tokens.write_text("\n".join(row.replace(before, f"{number}.jpg") for row in rows) + "\n")
    (tmp_path / "flickr30k/flickr30k-images" / before).unlink()
    shutil.copyfile(
        tmp_path / "flickr8k/Flicker8k_Dataset" / held, tmp_path / "flickr30k/flickr30k-images" / f"{number}.jpg"
    )
    found = examined(tmp_path)
    # The photograph is left out of training, so that its bytes are no leak.
    assert names(found) == {"held-out-elsewhere": {f"flickr30k/{number}.jpg"}}
    assert not found.findings.errors


def test_what_training_refuses_is_told_and_the_rest_looked_at(tmp_path: Path) -> None:
    root = clean("coco", tmp_path)
    (root / "annotations" / "captions_val2017.json").write_text('{"images": [')
    (root / "train2017" / sorted(os.listdir(root / "train2017"))[0]).write_bytes(b"")
    found = examined(root)
    assert names(found).keys() == {"unreadable-file", "empty-image"} and names(found)["unreadable-file"] == {"val"}
    assert "not valid JSON at line 1" in found.findings.sorted()[0].first[0][1]
    assert found.splits["train"]["images"] == 60


def test_a_folder_of_no_layout_and_the_nearest_match(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    assert names(examined(tmp_path)) == {"layout": {str(tmp_path)}}
    root = clean("coco", tmp_path / "down" / "further")
    assert f"give {root}" in layouts.recognise(tmp_path / "down").reason
    assert f"give {root}" not in layouts.recognise(tmp_path).reason
    for inner in ("annotations", "train2017"):
        assert f"it is a part of coco's folder {root}" in layouts.recognise(root / inner).reason


def test_a_file_of_all_unknown_ids_is_refused_as_training_does(tmp_path: Path) -> None:
    root = clean("coco", tmp_path)
    train = Captions(root, "train")
    for annotation in train.annotations:
        annotation["image_id"] += 5000
    train.write()
    found = examined(root)
    assert names(found)["unreadable-file"] == {"train"}
    assert "come from different files" in found.findings.sorted()[0].first[0][1]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"captions.txt": "image,caption\na.jpg,a red circle\n", "Images/a.jpg": ""}, "flickr8k"),
        ({"captions.txt": "a.jpg#0\ta red circle\n", "images/a.jpg": ""}, "flickr8k"),
        ({"captions.txt": "a\ta red circle\n", "images/a.jpg": ""}, "imageclef"),
        ({"captions.json": "{}", "images/a.jpg": ""}, "imageclef"),
        ({"results.csv": "", "flickr30k_images/a.jpg": ""}, "flickr30k"),
        ({"dataset_mine.json": "", "a.jpg": ""}, "coco"),
        ({"train2014/a.jpg": ""}, "coco"),
        ({"train/a/a.jpg": ""}, "pretrain"),
        ({"train/a/a.txt": "", "a.jpg": ""}, ""),
        ({"coco/train2014/a.jpg": "", "flickr8k/Flickr8k_text/x": "", "picks.jsonl": ""}, "coco+flickr8k+picks"),
    ],
)
def test_layouts_are_recognised_by_their_files(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert layouts.recognise(tmp_path).kind == kind


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    root = clean("coco", tmp_path)
    name = sorted(os.listdir(root / "train2017"))[0]
    (root / "train2017" / name).unlink()
    os.mkfifo(root / "train2017" / name)
    assert names(examined(root)) == {"unreadable-image": {name}}


def test_many_of_a_kind_are_counted_and_the_first_named(tmp_path: Path) -> None:
    root = clean("coco", tmp_path)
    shutil.rmtree(root / "train2017")
    (root / "train2017").mkdir()
    found = examined(root)
    (finding,) = [finding for finding in found.findings.sorted() if finding.kind == "unreadable-file"]
    assert "none of 60 images can be used" in finding.first[0][1]
    for name in sorted(os.listdir(root / "val2017"))[:1]:
        shutil.copyfile(root / "val2017" / name, root / "train2017" / "000000000001.jpg")
    (finding,) = [finding for finding in examined(root).findings.sorted() if finding.kind == "missing-image"]
    assert finding.count == 59 and len(finding.first) == 50


def test_what_comes_in_numbers_is_counted(tmp_path: Path) -> None:
    root = clean("flickr8k", tmp_path)
    tokens, lines = token_file(root, "Flickr8k_text/Flickr8k.token.txt")
    key = lines[0].partition("\t")[0]
    lines += ["77_abcdef.jpg.1#0\ta red circle", "77_abcdef.jpg.1#1\ta circle", f"{key}\ta circle", f"{key}\ta red one"]
    lines += [f"no tab {number}" for number in range(60)]  # each split's reader meets them again
    tokens.write_text("\n".join(lines) + "\n")
    found = {finding.kind: finding.count for finding in examined(root).findings.sorted()}
    assert found == {"broken-key": 2, "annotation-id-twice": 2, "broken-line": 60}


def test_caption_files_are_read_once_and_whatever_their_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = karpathy(tmp_path, clean("coco", tmp_path))
    parsed: list[Path] = []
    parse = files.parse_json
    monkeypatch.setattr(files, "parse_json", lambda path, text: parsed.append(path) or parse(path, text))
    assert names(examined(root)) == {} and parsed == [root / "dataset_coco.json"]
    for encoding in ("cp1252", "utf-16", "utf-8-sig"):
        file = tmp_path / "captions.txt"
        file.write_text("1\ta \u201ccaf\u00e9\u201d\n", encoding)
        assert files.CheckedFiles(Findings()).text(file) == "1\ta \u201ccaf\u00e9\u201d\n"


def test_a_file_that_is_named_twice_is_read_once_and_an_error_told_once(tmp_path: Path) -> None:
    root = clean("flickr8k", tmp_path)
    train, trained = token_file(root, "Flickr8k_text/Flickr_8k.trainImages.txt")
    _, held = token_file(root, "Flickr8k_text/Flickr_8k.devImages.txt")
    train.write_text("\n".join([*trained, held[0]]) + "\n")
    found = examined(root)
    assert names(found) == {"leak-name": {held[0]}} and found.images["looked_at"] == found.images["named"] == 60
    (tmp_path / "bare" / "scaleconcepts16_images").mkdir(parents=True)
    assert names(examined(tmp_path / "bare")) == {"unreadable-file": {"train"}}
