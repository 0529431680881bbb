"""The chain at work: each stage an ordinary training run that is trained once, its captions and their scores kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pycap import backends, config
from pycap.config import FIELDS, TrainConfig
from pycap.data import DataError, Example, datasets, demo_domains, folders
from pycap.data.demo import is_true
from pycap.data.disk import write_whole
from pycap.data.inputs import find
from pycap.device import cpu_count
from pycap.paper import plan, scores, selection
from pycap.paper.plan import Stage
from pycap.paper.scores import Score
from pycap.training import folder as run_folder
from pycap.training import run as training

STATE = "chain.json"
#: Options that do not change what is learned, or whose contents stand in a stage's identity instead of their places.
_PLACES = ("data", "out_dir", "store", "vgg_weights", "init_from", "picks", "resume")
MACHINE = ("device", "backend", "threads", "workers", "log_every", "save_checkpoint_every", "micro_batch")
#: Options that the chain itself decides.
DECIDED = ("stage", "datasets", "freeze_cnn", "finetune_cnn_after", "extend_vocab", "features", "model", *_PLACES)
_SHORT = {plan.ALL: "validation", plan.QUARTER: "quarter"}  # names of tests in file names
# Of a step with a frozen CNN, beside a joint one: of vgg_micro half the work is the LSTM's, of VGG16 hardly any.
_FROZEN_COST = {True: 0.5, False: 0.05}  # by whether the data is the demo's


@dataclass(frozen=True)
class Request:
    """What is asked for. root: the folder of coco/, flickr8k/, flickr30k/, imageclef/ (target/, for the selection); out: where
    runs and results go. vgg: the file with the pre-trained CNN; None: it is pre-trained on root/imagenet. demo: whether root
    holds the demo domains. picks: the picked pairs; None with auto: the most probable captions; None without: the
    selection is left to a person. options: of training, over every stage's recipe.
    """

    root: Path
    out: Path
    vgg: Path | None = None
    demo: bool = False
    picks: Path | None = None
    auto: bool = False
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Selection:
    """The selection step. how: in words; pairs: 0 where nobody has picked. todo: what a person has to do, else empty."""

    how: str
    pairs: int = 0
    true: float | None = None
    todo: str = ""


class Chain:
    """The stages of a request. say: called with each line for the person at the terminal."""

    def __init__(self, request: Request, say: Callable[[str], None] = print) -> None:
        """DataError where data is missing, before anything is trained."""
        self.request, self.say = request, say
        self.stages = [s for s in plan.STAGES if s.name != plan.PRETRAIN or request.vgg is None]
        self.state: dict[str, Any] = self._read_state()
        self.selection = Selection("not reached")
        self.results: dict[tuple[str, str], Score] = {}
        self._data: dict[str, tuple[int, str]] = {}
        self._identities: dict[str, str] = {}
        self._scenes = demo_domains.load_scenes(request.root) if request.demo else None
        options = request.options or {}
        backends.select(options.get("device", "auto"), options.get("backend", "auto"))
        backends.set_threads(options.get("threads", 0) or cpu_count())

    # what is there ----------------------------------------------------------------------------------------------------

    @cached_property
    def validation(self) -> list[Example]:
        """The target's validation images, with captions."""
        return datasets.load(datasets.parse("imageclef", self.request.root / "imageclef"), "all")[0]

    @cached_property
    def quarter(self) -> list[Example]:
        """The part of them that FT(3/4 validation set) is not trained on."""
        return datasets.load(datasets.parse("imageclef", self.request.root / "imageclef"), "test")[0]

    @cached_property
    def target(self) -> list[Path]:
        """The target's images without captions, sorted; none that is tested on, and none at all where there is no target/."""
        folder = self.request.root / "target"
        tested = {e.path.stem for e in self.validation}
        paths = [Path(item.name) for item in find([folder])] if folder.is_dir() else []
        return [path for path in paths if path.stem not in tested]

    def examples(self, test: str) -> list[Example]:
        """The images of a test."""
        return self.quarter if test == plan.QUARTER else self.validation

    def folder(self, stage: str) -> Path:
        """A stage's run."""
        return self.request.out / stage

    def seconds(self, stage: str) -> float | None:
        """How long the stage trained, interruptions left out; None where it is not finished."""
        entry = self.state["stages"].get(stage, {})
        return entry["seconds"] if entry.get("done") else None

    # the chain --------------------------------------------------------------------------------------------------------

    def run(self, report: Callable[[], None]) -> None:
        """Do what is not done yet; report is called after each stage. Raises what a training run raises, and Stopped."""
        for stage in self.stages:  # what is missing is told before anything is trained
            self._dataset(stage)
        if self.request.picks:
            self._picked(self.request.picks)
        else:
            _ = self.target
        for number, stage in enumerate(self.stages, 1):
            if stage.name == plan.SELECTED and not self._select():
                self.say(f"[{number}/{len(self.stages)}] {stage.name}: {self.selection.todo}")
                continue
            self._train(stage, f"[{number}/{len(self.stages)}] {stage.name}: {stage.does}")
            if stage.test:
                self._test(stage)
            report()
        self._submit()

    def _train(self, stage: Stage, told: str) -> None:
        identity, folder = self._identity(stage), self.folder(stage.name)
        entry = self.state["stages"].get(stage.name, {})
        if entry.get("identity") != identity:
            if aside := run_folder.make_room(folder):
                self.say(f"{folder} held a run of other options, data or weights; it is now {aside}")
            entry = self.state["stages"][stage.name] = {"identity": identity, "done": False, "seconds": 0.0}
            self._write_state()
        elif entry["done"] and (folder / stage.checkpoint / "state.json").is_file():
            self.say(f"{told}: done")
            return
        options = self._config(stage)
        if run_folder.saved(folder):  # of this identity: there was room when it began
            options = config.resumed(folder, **{name: getattr(options, name) for name in MACHINE})
            told += ", continued"
        self.say(f"{told}. {self._remaining(stage)}")
        started = time.monotonic()
        try:
            training.run(options)
            entry["done"] = True
        finally:
            entry["seconds"] += time.monotonic() - started
            self._write_state()

    def _test(self, stage: Stage) -> None:
        """Caption the test's images, and score them; the baseline's on the quarter too."""
        examples = self.examples(stage.test)
        rows = self._captions(stage, "validation", [e.path for e in examples], [e.path.name for e in examples])
        by_name = {row["file_name"]: row["caption"] for row in rows}
        captions = {str(e.image_id): by_name[e.path.name] for e in examples if e.path.name in by_name}
        if not captions:
            raise DataError(f"{self.request.root / 'imageclef'}: none of the images can be read; run pycap doctor")
        for test in sorted({row.test for table in plan.TABLES for row in table.rows if row.stage == stage.name}):
            self.results[stage.name, test] = self._score(stage, test, captions)

    def _score(self, stage: Stage, test: str, captions: Mapping[str, str]) -> Score:
        """The score of captions by image id, computed once; again where METEOR has become possible since."""
        examples = self.examples(test)
        file = self.request.out / "captions" / f"{stage.name}.{_SHORT[test]}.score.json"
        identity = _digest([captions, [e.captions for e in examples], scores.metric()])
        if file.is_file() and self.state["scores"].get(file.name) == identity:
            return Score(**json.loads(file.read_text("utf-8")))
        found = scores.score(captions, examples, self.verdict)
        write_whole(file, json.dumps(asdict(found)) + "\n")
        self.state["scores"][file.name] = identity
        self._write_state()
        return found

    def _captions(self, stage: Stage, what: str, paths: Sequence[Path], names: Sequence[str]) -> list[dict[str, Any]]:
        """Captions by the stage's model, made once."""
        file = self.request.out / "captions" / f"{stage.name}.{what}.jsonl"
        identity = _digest([self._identity(stage), stage.checkpoint, plan.BEAM, list(names)])
        known = self.state["captions"].get(file.name)
        if known != identity:
            for old in (file, file.with_name(file.name + ".partial")):
                old.unlink(missing_ok=True)
            self.state["captions"][file.name] = identity
            self._write_state()
        if not file.is_file():
            checkpoint = self.folder(stage.name) / stage.checkpoint
            scores.caption(checkpoint, paths, names, file, plan.BEAM, f"{stage.name}: captions of {what} images")
        return scores.read(file)

    def _target_captions(self, name: str) -> list[dict[str, Any]]:
        """Captions of the target's images; of the validation images where there is no target/."""
        (stage,) = (s for s in self.stages if s.name == name)
        if not self.target:
            return scores.read(self.request.out / "captions" / f"{name}.validation.jsonl")
        names = [path.relative_to(self.request.root).as_posix() for path in self.target]
        return self._captions(stage, "target", self.target, names)

    def verdict(self, image: str, caption: str) -> bool | None:
        """Whether a caption of a validation image is true; None where the truth is not known."""
        return None if self._scenes is None else is_true(caption, self._scenes[image])

    # selection and submission -----------------------------------------------------------------------------------------

    @property
    def _picks(self) -> Path:
        return self.request.picks or self.request.out / "picks.jsonl"

    @property
    def wanted(self) -> int:
        """How many pairs are selected automatically."""
        if not self.request.demo:
            return plan.PICKED
        (stage,) = (s for s in self.stages if s.name == plan.TUNED)
        return max(1, round(self._dataset(stage)[0] * plan.PICKED_SHARE))

    def _select(self) -> bool:
        """Have the picked pairs ready; False where a person must pick them."""
        tested = {e.path.stem for e in self.validation}
        if self.request.picks is None:
            if not self.target:
                folder = self.request.root / "target"
                todo = f"no images in {folder}: put the target's there, or give picked pairs with --picks FILE"
                self.selection = Selection("none", todo=todo)
                return False
            rows = self._target_captions(plan.TUNED)
            if not self.request.auto:
                made = self.request.out / "captions" / f"{plan.TUNED}.target.jsonl"
                todo = (
                    f"pick good pairs (the paper: {plan.PICKED}) with pycap select {made} --images {self.request.root} for "
                    "--picks FILE, or give --auto-select"
                )
                self.selection = Selection("none", todo=todo)
                return False
            picked = selection.most_probable(rows, self.wanted, tested)
            run_folder.write_lines(
                self._picks,
                [{**row, "file_name": str(self.request.root.absolute() / row["file_name"])} for row in picked],
            )
        pairs = self._picked(self._picks)
        how = f"{len(pairs)} pairs of {self._picks}"
        if self.request.picks is None:
            how = f"automatic: the {len(pairs)} most probable distinct captions of {len(self.target)} images"
        true = None
        if self._scenes is not None and pairs and all(e.path.stem in self._scenes for e in pairs):
            true = sum(is_true(e.captions[0], self._scenes[e.path.stem]) for e in pairs) / len(pairs)
        self.selection = Selection(how, len(pairs), true)
        self.say(f"selection: {how}" + ("" if true is None else f"; {100 * true:.1f} % of them are true"))
        return True

    def _picked(self, file: Path) -> list[Example]:
        """The usable pairs of a file. DataError where there are none, or some are of images that are tested on."""
        part = datasets.parse("selected", self.request.root, file)
        pairs = [e for e in datasets.load(part, "train")[0] if str(e.image_id).startswith("picks/")]
        selection.require_untested(file, (e.file_name for e in pairs), {e.path.stem for e in self.validation})
        return pairs

    def _submit(self) -> None:
        """The run files, as far as their models are there."""
        for submission in plan.SUBMISSIONS:
            if (submission.stage, plan.ALL) in self.results:
                scores.run_file(self.request.out / submission.file, self._target_captions(submission.stage))

    # what identifies a stage ------------------------------------------------------------------------------------------

    def _config(self, stage: Stage) -> TrainConfig:
        """The stage's training run."""
        request, kind = self.request, stage.recipe
        options = {**config.recipe(stage.demo if request.demo else stage.recipe), "stage": kind}
        options |= {} if request.demo else stage.seen
        options |= {**(request.options or {}), **stage.options, "out_dir": self.folder(stage.name)}
        several = len(datasets.parse(kind)) > 1 if stage.test else False
        folder = "imagenet" if not stage.test else kind.removesuffix("_all")
        options["data"] = request.root if several else request.root / folder
        if stage.name == plan.SELECTED:
            options["picks"] = self._picks
        if stage.start == plan.VGG:
            options["vgg_weights"] = request.vgg or self.folder(plan.PRETRAIN)
        elif stage.start:
            (before,) = (s for s in self.stages if s.name == stage.start)
            options["init_from"] = self.folder(before.name) / before.checkpoint
        made = TrainConfig(**options)
        made.given = frozenset(options)  # no recipe is laid under it where data is found missing
        return made.validate()

    def _dataset(self, stage: Stage) -> tuple[int, str]:
        """(number of training images, digest of all images' names and captions) of a stage, picks left out."""
        made = self._config(stage)
        spec = "flickr" if stage.name == plan.SELECTED else made.stage
        if spec not in self._data:
            if stage.test:
                parts = datasets.parse(spec, made.data)
                train, val = (datasets.load(parts, split)[0] for split in ("train", "val"))
            else:
                train, val, _ = folders.load(self.request.root / "imagenet")
            self._data[spec] = (
                len(train),
                _digest([[(str(e.image_id), e.captions) for e in each] for each in (train, val)]),
            )
        return self._data[spec]

    def _identity(self, stage: Stage) -> str:
        """Changes with whatever the stage's result depends on: options, data, and what it starts from."""
        if stage.name not in self._identities:
            options = {n: v for n, v in config.to_dict(self._config(stage)).items() if n not in (*_PLACES, *MACHINE)}
            inputs = ""
            if stage.start == plan.VGG and self.request.vgg:
                inputs = _file_digest(self.request.vgg)
            elif stage.start:
                before = plan.PRETRAIN if stage.start == plan.VGG else stage.start
                inputs = self._identity(next(s for s in self.stages if s.name == before))
            picks = _file_digest(self._picks) if stage.name == plan.SELECTED else ""
            changed = {name: value for name, value in options.items() if value != FIELDS[name].default}
            self._identities[stage.name] = _digest([changed, self._dataset(stage)[1], inputs, picks])
        return self._identities[stage.name]

    # time and state ---------------------------------------------------------------------------------------------------

    def _cost(self, stage: Stage) -> float:
        made = self._config(stage)
        return self._dataset(stage)[0] * made.epochs * (_FROZEN_COST[self.request.demo] if made.freeze_cnn else 1.0)

    def _known(self, stage: Stage) -> bool:
        """Whether the stage need not be trained; not said of the selected pairs' before they are."""
        entry = self.state["stages"].get(stage.name, {})
        return stage.name != plan.SELECTED and bool(entry.get("done")) and entry["identity"] == self._identity(stage)

    def _remaining(self, stage: Stage) -> str:
        """What is expected of this stage and of those after it, by the speed of the finished ones."""
        done = [s for s in self.stages if self.seconds(s.name)]
        if not done:
            return "How long it all takes is told when this stage is done."
        rate = sum(self.seconds(s.name) or 0 for s in done) / sum(self._cost(s) for s in done)
        left = [s for s in self.stages[self.stages.index(stage) :] if not self._known(s)]
        own, all_of_them = (rate * sum(self._cost(s) for s in some) / 60 for some in (left[:1], left))
        return f"Expected: {own:.1f} min for this stage, {all_of_them:.1f} min for all that are left."

    def _read_state(self) -> dict[str, Any]:
        path = self.request.out / STATE
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return {"stages": {}, "captions": {}, "scores": {}}
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); remove it, and the stages are trained again") from error

    def _write_state(self) -> None:
        self.request.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.request.out / STATE, json.dumps(self.state, indent=1) + "\n")

    def summary(self) -> dict[str, Any]:
        """The stages for paper.json: options, seconds, identity."""
        told = {}
        for stage in self.stages:
            entry = self.state["stages"].get(stage.name)
            if entry:
                told[stage.name] = {**entry, "does": stage.does, "options": config.to_dict(self._config(stage))}
        return {"stages": told, "selection": asdict(self.selection)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    """Of a file's bytes; of a run's folder, those of its best CNN."""
    if path.is_dir():
        path = next((p for p in (path / "best" / "model.safetensors", path / "model.safetensors") if p.is_file()), path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
