"""The readers of text: caption files of every layout, vocabularies, options, results, picks, journals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.mutations import seeds as images
from pycap import config
from pycap.bulk import journal as bulk_journal
from pycap.bulk.merge import merge
from pycap.bulk.share import Passed
from pycap.bulk.target import Target as Captions
from pycap.config import TrainConfig
from pycap.data import Example, Problem, datasets, folders, forms, load_split, picks
from pycap.data.inputs import find
from pycap.data.results import read_references, read_results, renamed
from pycap.data.vocab import SPECIALS, Vocabulary, has_words
from pycap.picking import order
from pycap.picking.images import ImageFolder
from pycap.picking.journal import Journal as PicksJournal
from pycap.picking.results import Results
from pycap.picking.selection import Selection
from tests.data.fixtures import coco_body, karpathy_body
from tests.fuzz.target import Target, require

FLICKR_NAMES = tuple(f"{1000 + i}_abc{i}def.jpg" for i in range(8))
NOUNS = ("a cat", "the dog", "one bird", "caf\u00e9 au lait", "two cows")


def put_images(folder: Path, names: tuple[str, ...]) -> None:
    """The same small image under each of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(images()["plain.jpeg"])


def text(body: object, **how: Any) -> bytes:
    """A body as JSON."""
    return json.dumps(body, **how).encode()


def lines(*rows: object) -> bytes:
    """JSON Lines."""
    return b"".join(text(row) + b"\n" for row in rows)


# Captioned images -----------------------------------------------------------------------------------------------------

Split = tuple[list[Example], list[Problem]]


def sound_split(found: Split) -> None:
    """What every split is, whatever file it was read from."""
    examples, problems = found
    require(bool(examples), "no example")
    for example in examples:
        require(type(example.image_id) in (int, str), f"the image id {example.image_id!r}")
        require(isinstance(example.file_name, str) and example.path.is_file(), f"the file {example.path}")
        require(bool(example.captions), f"{example.file_name} without a caption")
        for caption in example.captions:
            require(has_words(caption) and caption == " ".join(caption.split()), f"the caption {caption!r}")
    require(len({type(e.image_id)(e.image_id) for e in examples}) == len(examples), "an image id twice")
    for problem in problems:
        require({"file", "reason"} <= problem.keys(), f"the problem {problem}")
        json.loads(forms.json_line(problem))


def split_of(stage: str, split: str = "train") -> Callable[[Path], Split]:
    """The reader of one split of the folder."""
    return lambda folder: load_split(stage, folder, split)


def captions_are(images: int, each: int) -> Callable[[str, Any], None]:
    """Whether a sound file gives so many images with so many captions each."""

    def same(seed: str, found: Split) -> None:
        counts = [len(example.captions) for example in found[0]]
        require(counts == [each] * images, f"{seed}: captions an image {counts}, written were {[each] * images}")

    return same


def _coco_seeds() -> Mapping[str, bytes]:
    body = coco_body(4, 2)
    named = {**body, "info": {"year": 2017, "date": None}, "licenses": [{"id": 1.5, "url": "http://x/\u00e9"}]}
    return {"plain": text(body), "whole": text(named, ensure_ascii=False), "indented": text(body, indent=1)}


def _coco(folder: Path) -> None:
    put_images(folder / "train2017", tuple(f"{i:012d}.jpg" for i in range(4)))
    (folder / "annotations").mkdir()


def _karpathy(folder: Path) -> None:
    for name in ("train2014", "val2014", "Images"):
        put_images(folder / name, tuple(f"pic{i}.jpg" for i in range(4)))


def _karpathy_read(folder: Path) -> Split:
    datasets.load(datasets.parse("coco", folder), "all")
    return load_split("coco", folder, "train")


def _token_seeds() -> Mapping[str, bytes]:
    tokens = "".join(f"{name}#{k}\t{NOUNS[k]} runs .\n" for name in FLICKR_NAMES for k in range(5))
    table = "image,caption\n" + "".join(f'{name},"{noun}, far away ."\n' for name in FLICKR_NAMES for noun in NOUNS)
    return {"tokens": tokens.encode(), "kaggle": table.encode(), "marked": b"\xef\xbb\xbf" + tokens.encode()}


def _flickr8k(folder: Path) -> None:
    put_images(folder / "Images", FLICKR_NAMES)


def _pipe_seeds() -> Mapping[str, bytes]:
    rows = "".join(f"{name}| {k}| {NOUNS[k]} runs .\n" for name in FLICKR_NAMES for k in range(5))
    return {"pipes": b"image_name| comment_number| comment\n" + rows.encode()}


def _flickr_split(folder: Path) -> None:
    _flickr8k(folder)
    (folder / "Flickr8k_text").mkdir()
    (folder / "Flickr8k_text/Flickr8k.token.txt").write_bytes(_token_seeds()["tokens"])


def _imageclef(folder: Path) -> None:
    put_images(folder / "images", tuple(f"im{i}.jpg" for i in range(8)))
    put_images(folder / "images", tuple(f"{i:012d}.jpg" for i in range(4)))


def _sentence_seeds() -> Mapping[str, bytes]:
    tabs = "".join(f"im{i}\t{NOUNS[0]}\t{NOUNS[1]} .\n" for i in range(8))
    blanks = "".join(f"im{i} {noun} runs\n" for i in range(8) for noun in NOUNS[:2])
    return {"tabs": tabs.encode(), "blanks": blanks.encode()}


def _picks_seeds() -> Mapping[str, bytes]:
    rows = [{"file_name": f"Images/{name}", "caption": NOUNS[i % 5]} for i, name in enumerate(FLICKR_NAMES)]
    decided = [
        {**row, "image_id": i, "rank": 1, "logprob": -3.5, "decision": "accept", "edited": False, "time": "2026-01-01T00:00Z"}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    undone = [*decided, {**decided[3], "decision": "undo"}, {**decided[3], "decision": "accept"}]
    return {"plain": lines(*rows), "decided": lines(*decided), "undone": lines(*undone)}


def _picks_read(folder: Path) -> Split:
    listed = picks.listed(folder / "picks.jsonl", folder)
    for entry in listed.entries:
        require(all(has_words(caption) for caption in entry.captions) and entry.path.is_file(), f"the pair {entry}")
    examples = [Example(e.image_id, e.file_name, e.path, tuple(e.captions)) for e in listed.entries]
    return examples, listed.problems


def _sound_picks(found: Split) -> None:
    examples, problems = found
    if examples:
        sound_split(found)
    require(bool(examples or problems), "neither a pair nor a problem")


def _class_names(found: dict[str, str]) -> None:
    require(all(name and name == name.strip() for name in found.values()), "a name that is blank")


# What is captioned, and captions --------------------------------------------------------------------------------------


def _list_read(folder: Path) -> list[tuple[str, bool]]:
    return [(item.name, isinstance(item.source, str)) for item in find([folder / "list.txt"])]


def _list_same(seed: str, found: list[tuple[str, bool]]) -> None:
    require([name for name, _ in found] == [f"a/{name}" for name in FLICKR_NAMES], f"{seed}: {found}")


def _result_rows() -> list[dict[str, Any]]:
    return [
        {"image_id": f"im{i}", "file_name": f"Images/im{i}.jpg", "caption": NOUNS[i % 5], "logprob": -1.5 - i}
        for i in range(8)
    ]


def _result_seeds() -> Mapping[str, bytes]:
    rows = _result_rows()
    numbered = [{**row, "image_id": i} for i, row in enumerate(rows)]
    beams = [{**row, "beams": [{"caption": NOUNS[0], "logprob": -1.0}, {"caption": NOUNS[1]}]} for row in rows]
    return {
        **{form: b"".join(forms.pieces(form, numbered if form == "coco" else rows)) for form in forms.FILE_FORMATS},
        "beams": lines(*beams),
    }


def _results_read(folder: Path) -> dict[int | str, str]:
    found = read_results(folder / "results")
    return renamed(found, [f"im{i}" for i in range(8)])


def _sound_results(found: dict[int | str, str]) -> None:
    require(all(type(name) in (int, str) for name in found), "an image id that is neither a number nor a name")
    require(all(isinstance(caption, str) for caption in found.values()), "a caption that is no text")


def _results_same(seed: str, found: dict[int | str, str]) -> None:
    rows = _result_rows()
    names = range(8) if seed == "coco" else [row["image_id"] for row in rows]
    want = {name: row["caption"] for name, row in zip(names, rows, strict=True)}
    require(found == want, f"{seed}: read {found}, written was {want}")


def _sound_references(found: dict[int | str, list[str]]) -> None:
    require(all(type(name) in (int, str) for name in found), "an image id that is neither a number nor a name")
    require(all(isinstance(each, str) for said in found.values() for each in said), "a caption that is no text")


def _select_seeds() -> Mapping[str, bytes]:
    made = _result_seeds()
    return {"rows": made["jsonl"], "beams": made["beams"]}


def _select(folder: Path) -> None:
    put_images(folder / "Images", tuple(f"im{i}.jpg" for i in range(8)))


def _select_read(folder: Path) -> tuple[Results, list[dict[str, Any]]]:
    results = Results(folder / "results.jsonl", ImageFolder(folder / "Images"))
    try:
        numbers = order.base(results, "logprob")
        late = order.capped(results, numbers, 2)
        require(sorted(order.last(numbers, late).tolist()) == list(range(len(results))), "an order that lacks rows")
        picked = folder / "picks.jsonl"
        picked.unlink(missing_ok=True)
        with PicksJournal(picked) as journal:
            selection = Selection(results, numbers, journal, 10)
            shown, count = selection.shown(0, 100, "all")
            require(count == len(selection) == len(shown), "pairs that are not shown")
            for pair in shown[:3]:
                selection.decide(pair["position"], "accept")
            json.dumps(selection.state()), json.dumps(shown)
        if shown:
            entries = picks.listed(picked, folder).entries
            require(len(entries) == len(shown[:3]), f"{len(shown[:3])} were accepted and {len(entries)} are trained on")
    finally:
        results.close()
    return results, shown


def _select_same(seed: str, found: tuple[Results, list[dict[str, Any]]]) -> None:
    require([pair["file_name"] for pair in found[1]] == [row["file_name"] for row in _result_rows()], seed)


def _decisions_read(folder: Path) -> int:
    picked = folder / "picks.jsonl"
    before = picked.read_bytes()
    with PicksJournal(picked) as journal:
        rows = len(journal.rows)
        journal.append({"file_name": "Images/im0.jpg", "caption": "a cat", "decision": "reject"})
    after = picked.read_bytes()
    require(after.startswith(before[: before.rfind(b"\n") + 1]), "whole lines of the file were lost")
    again = [row for _, row, _ in picks.rows(after) if row is not None]
    require(len(again) == rows + 1 and again[-1]["decision"] == "reject", "what was appended is not read again")
    return rows


@cache
def _journal_seed(rows: int = 6, complete: bool = True) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.jsonl.shard-1-of-1"
        header = {
            "batch_size": 2,
            "shard": "1/1",
            "inputs": ["images"],
            "skip_existing": None,
            "checkpoints": ["ab" * 32],
        }
        header |= {"_format": "jsonl", "_separator": "\t", "_output": "captions.jsonl", "_checkpoints": ["runs/x/best"]}
        with bulk_journal.Journal(path, header) as journal:
            passed = Passed()
            for number, row in enumerate(_result_rows()[:rows]):
                journal.add([row if number != 2 else {"file_name": row["file_name"], "error": "no such file"}])
                passed.add(row["file_name"])
            if complete:
                journal.complete(passed.images, passed.digest())
        return path.read_bytes()


def _shard_read(folder: Path) -> list[dict[str, Any]]:
    """Merged, and gone through by itself."""
    path = folder / "captions.jsonl.shard-1-of-1"
    for old in folder.glob("captions*"):
        if old != path:
            old.unlink()
    content = path.read_bytes()
    bulk_journal.read_header(path)
    rows = list(bulk_journal.read_rows(path))
    bulk_journal.standing(path)
    output = folder / "captions.jsonl"
    merge(output)
    got = [json.loads(line) for line in output.read_bytes().splitlines()]
    require(len(got) == sum("error" not in row for row in rows), "a merged file that lacks captions")
    require(not path.exists() and content != output.read_bytes(), "the shard is left")
    return got


def _partial_read(folder: Path) -> int:
    """Continued: what was there stays, and the next rows are read again."""
    path = folder / "captions.jsonl.partial"
    header = {k: v for k, v in bulk_journal.read_header(path).items() if k != "journal"}
    with bulk_journal.Journal(path, header) as journal:
        before = journal.standing
        if before.complete:
            list(bulk_journal.read_rows(path))
            return before.rows
        list(bulk_journal.read_rows(path))
        journal.add([{"image_id": "x", "file_name": "x.jpg", "caption": "a cat"}])
        require(journal.standing.rows == before.rows + 1, "a row that does not count")
    rows = list(bulk_journal.read_rows(path))
    require(bool(rows) and rows[-1]["file_name"] == "x.jpg", "what was added is not read again")
    return before.rows


def _kept_seeds(form: str) -> Mapping[str, bytes]:
    rows = [{**row, "image_id": i if form == "coco" else row["image_id"]} for i, row in enumerate(_result_rows())]
    return {form: b"".join(forms.pieces(form, rows))}


def _kept_read(form: str, folder: Path) -> int:
    """What `--skip-existing` asks: which images a file of captions has; and then one more is added."""
    target = Captions(folder / "captions", form)
    kept = target.kept()
    lacks = target.lacks(kept)
    lacks("Images/im0.jpg")
    row = {"image_id": "y", "file_name": "y/strange.jpg", "caption": "a cat", "logprob": -1.0}
    before = target.file.read_bytes()
    target.finish([row], {"size": kept.size, "sha256": kept.sha256} if kept else None)
    after = target.file.read_bytes()
    require(b"strange" in after or b'"y"' in after or b"y\t" in after, "what was added is not in it")
    if kept:
        require(after.startswith(before[: kept.size]), "what was kept is changed")
    return len(kept.names) if kept else 0


# Vocabularies and options ---------------------------------------------------------------------------------------------


def _vocabulary_seeds() -> Mapping[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        built = Vocabulary.build(["a cat and a dog", "a bird and a cow"], 1)
        built.save(Path(folder) / "a")
        Vocabulary([f"word{chr(97 + i)}" for i in range(26)], 5).save(Path(folder) / "b")
        return {name: (Path(folder) / name).read_bytes() for name in "ab"}


def _sound_vocabulary(vocab: Vocabulary) -> None:
    require(vocab.words[:4] == SPECIALS, f"the specials {vocab.words[:4]}")
    require(all(isinstance(word, str) for word in vocab.words), "a word that is no text")
    require(len(vocab.ids) == len(vocab), "two words with one id")
    ids = vocab.encode(list(vocab.words[4:24]), 20)
    require(vocab.decode(ids) == " ".join(vocab.words[4:24]), "words that come back as others")
    require(all(vocab.words), "an empty word")
    require(type(vocab.threshold) is int and vocab.threshold >= 1, f"the threshold {vocab.threshold!r}")
    json.dumps(vocab.report)


def _vocabulary_same(seed: str, vocab: Vocabulary) -> None:
    require(len(vocab) == {"a": 10, "b": 30}[seed], f"{seed}: {len(vocab)} words")


def _config_seeds() -> Mapping[str, bytes]:
    recipes = {path.stem: path.read_bytes() for path in sorted(config.recipes_dir().glob("*.yaml"))}
    whole = config.to_yaml(TrainConfig(stage="flickr8k", learning_rate=1e-3))
    return {"whole": whole.encode(), **{name: recipes[name] for name in ("coco", "imageclef")}}


def _config_read(folder: Path) -> TrainConfig:
    path = folder / "config.yaml"
    config.recipe(str(path))
    config.resumed_options(folder)
    return config.load(path)


def _sound_config(found: TrainConfig) -> None:
    again = found.validate()
    require(asdict(again) == asdict(found), "options that change when they are checked")
    json.dumps(config.to_dict(found))
    config.to_yaml(found)


def _config_same(seed: str, found: TrainConfig) -> None:
    require(found.stage == {"whole": "flickr8k"}.get(seed, seed), f"{seed}: {found.stage}")


TEXT = (
    Target("coco", "annotations/captions_train2017.json", split_of("coco"), _coco_seeds, "json", _coco,
           sound_split, captions_are(4, 2)),
    Target("karpathy", "dataset_coco.json", _karpathy_read, lambda: {"coco": text(karpathy_body()),
    "flickr": text(karpathy_body(False))},
           "json", _karpathy, sound_split, captions_are(2, 5)),
    Target("flickr-tokens", "captions.txt", split_of("flickr8k", "all"), _token_seeds, "lines", _flickr8k,
           sound_split, captions_are(8, 5)),
    Target("flickr-csv", "results.csv", split_of("flickr30k", "all"), _pipe_seeds, "lines", _flickr8k,
           sound_split, captions_are(8, 5)),
    Target("flickr-split", "Flickr8k_text/Flickr_8k.trainImages.txt", split_of("flickr8k"),
           lambda: {"names": "".join(f"{name}\n" for name in FLICKR_NAMES).encode()}, "lines", _flickr_split,
           sound_split, captions_are(8, 5)),
    Target("imageclef-text", "captions.txt", split_of("imageclef"), _sentence_seeds, "lines", _imageclef,
           sound_split, captions_are(6, 2)),
    Target("imageclef-json", "captions.json", split_of("imageclef"), lambda: {"coco": text(coco_body(4, 2))}, "json",
    _imageclef,
           sound_split, captions_are(3, 2)),
    Target("picks", "picks.jsonl", _picks_read, _picks_seeds, "jsonl", _flickr8k, _sound_picks, captions_are(8, 1)),
    Target("class-names", "classes.tsv", folders.class_names,
    lambda: {"tabs": b"n01\tgreat white shark\nn02\ta cat\n"}, "lines",
           check=_class_names),
    Target("list", "list.txt", _list_read, lambda: {"names": "".join(f"a/{name}\n" for name in FLICKR_NAMES).encode()},
           "lines", same=_list_same),
    Target("results", "results", _results_read, _result_seeds, "jsonl", check=_sound_results, same=_results_same),
    Target("references", "captions.json", lambda folder: read_references(folder / "captions.json"),
           lambda: {"coco": text(coco_body(3, 2)), "text": _sentence_seeds()["tabs"]}, "json", check=_sound_references),
    Target("select-results", "results.jsonl", _select_read, _select_seeds, "jsonl", _select, same=_select_same),
    Target("select-picks", "picks.jsonl", _decisions_read, _picks_seeds, "jsonl"),
    Target("caption-shard", "captions.jsonl.shard-1-of-1", _shard_read,
           lambda: {"whole": _journal_seed()}, "jsonl"),
    Target("caption-partial", "captions.jsonl.partial", _partial_read,
           lambda: {"whole": _journal_seed(), "open": _journal_seed(4, False)}, "jsonl"),
    *(
        Target(f"caption-kept-{form}", "captions", partial(_kept_read, form), partial(_kept_seeds, form),
               {"jsonl": "jsonl", "coco": "json"}.get(form, "lines"))  # type: ignore[arg-type]
        for form in forms.FILE_FORMATS
    ),
    Target("vocabulary", "vocab.json", lambda folder: Vocabulary.load(folder / "vocab.json"), _vocabulary_seeds, "json",
           check=_sound_vocabulary, same=_vocabulary_same),
    Target("config", "config.yaml", _config_read, _config_seeds, "yaml", check=_sound_config, same=_config_same),
)  # fmt: skip
