"""The comparison of whole steps on a GPU, rehearsed on the CPU: the peer's ways agree, and rows say what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")

from benchmarks import joint_work
from benchmarks.peers import joint_gpu, joint_gpu_rows, torch_decode, torch_joint, torch_joint_cuda
from benchmarks.peers.joint_gpu import Comparison, Options, Side
from benchmarks.peers.joint_gpu_rows import Disagreement
from benchmarks.peers.joint_gpu_sides import Task, initial
from benchmarks.results import read
from pycap import ops
from pycap.autograd import Tensor
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data.vocab import PAD
from pycap.decode import beam_search
from pycap.training.feed import Fed
from pycap.training.sources import preprocess_spec
from pycap.training.trainer import Trainer
from tests.peers.test_models import END, START, UNK, nchw, small_nic

pytestmark = pytest.mark.peers

CPU = torch.device("cpu")
WORDS = 40


def config(**changes: Any) -> TrainConfig:
    options = {**joint_work.COCO, **joint_work.TINY, "drop_prob_lm": 0.0, "drop_prob_cnn": 0.0, **changes}
    return TrainConfig(**options).validate()


def _require_bfloat16() -> None:
    """Skip where PyTorch has no LSTM in bfloat16 for this CPU: oneDNN wants AVX-512."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(4, 4)(torch.zeros(2, 1, 4))
    except RuntimeError as error:
        pytest.skip(f"PyTorch has no bfloat16 LSTM for this CPU: {error}")


@pytest.mark.parametrize("options", [[], ["--precision", "fp32", "--freeze-cnn"]], ids=["bf16", "frozen_fp32"])
def test_a_rehearsal_leaves_rows(options, tmp_path: Path, monkeypatch, capsys) -> None:
    if not options:
        _require_bfloat16()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "joint.jsonl"
    command = ["--rehearse", "--sides", "pycap,torch eager", "--turns", "1", "--json", str(file), *options]
    assert torch_joint.main(command) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    step, beam, greedy = read(file)
    frozen = bool(options)
    assert [row["mode"] for row in (step, beam, greedy)] == ["frozen" if frozen else "step", "beam3", "greedy"]
    assert step["dtype"] == ("float32" if frozen else "bfloat16") and step["case"] == "vgg_micro-32px-4x2"
    assert step["ratio"] == pytest.approx(step["peer_median_s"] / step["median_s"])
    assert step["images_per_s"] == pytest.approx(4 / step["median_s"])
    assert step["ceiling_pct"] == pytest.approx(
        100 * step["flops"] / step["ceilings"][step["dtype"]] / step["median_s"]
    )
    assert step["err"] < (1e-5 if frozen else 1e-2)
    for row in (beam, greedy):
        assert row["err"] < 1e-3 and row["ratio"] > 0 and "4 of 4 captions word for word" in row["note"], row
    assert "losses agree to" in shown and "LSTM" in step["peer_variant"]


def test_from_jpegs_it_is_the_same_step_and_more(tmp_path: Path, capsys) -> None:
    _require_bfloat16()
    file = tmp_path / "joint.jsonl"
    command = [
        "--rehearse",
        "--input",
        "--sides",
        "pycap,torch eager",
        "--turns",
        "1",
        "--beams",
        "",
        "--json",
        str(file),
    ]
    assert torch_joint.main(command) == 0, capsys.readouterr()
    step, row = read(file)
    assert (step["mode"], row["mode"], row["peer"]) == ("step", "input", "torch eager")
    assert row["images_per_s"] == pytest.approx(4 / row["median_s"])
    for side, held in (("", step["median_s"]), ("peer_", step["peer_median_s"])):
        stall = 100 * (1 - held / row[f"{side}median_s"])
        assert row[f"{side}stall_pct"] == pytest.approx(max(stall, 0.0))
    assert row["ratio"] == pytest.approx(row["peer_median_s"] / row["median_s"])
    command += ["--words", "20"]
    assert torch_joint.main(command) == 1
    assert "the model has 20: give --words" in capsys.readouterr().err


def test_every_way_of_the_peer_comes_to_pycaps_loss_and_to_the_same_gradients() -> None:
    settings = config(precision="fp32")
    made = joint_work.batches(settings, 1, WORDS)[0]
    spec = preprocess_spec(settings)
    trainer = Trainer(build_model(settings, WORDS), settings, spec, 10)
    trainer.begin_epoch(0)
    expected = trainer.step(made).loss
    assert (made.tokens[1:] == PAD).any(), "without padding the ways would not differ"
    gradients = {}
    ways = [way for precision in ("fp32", "bf16") for way in torch_joint_cuda.ways(False, precision)]
    assert {way.lstm for way in ways} == {"autocast", "float32", "packed"}
    for way in ways:
        model = torch_joint_cuda.build(settings, WORDS, initial(settings, WORDS), CPU)
        loss = torch_joint_cuda.Loss(model, spec, "fp32", way)(torch_joint_cuda.Feed.of(made, CPU))
        assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-5), way
        loss.backward()
        gradients[way] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    first = gradients[ways[0]]
    for way, found in gradients.items():
        for name, gradient in found.items():
            assert (gradient - first[name]).abs().max() <= 1e-5 * first[name].abs().max(), f"{way}: {name}"


def test_padded_tokens_change_nothing() -> None:
    """What is compiled gets them, to keep its sizes."""
    settings = config(precision="fp32")
    made = joint_work.batches(settings, 1, WORDS)[0]
    model = torch_joint_cuda.build(settings, WORDS, initial(settings, WORDS), CPU)
    losses = [
        torch_joint_cuda.Loss(model, preprocess_spec(settings), "fp32", torch_joint_cuda.Way(compact=compact))
        for compact in (False, True)
    ]
    feeds = [torch_joint_cuda.Feed.of(made, CPU, *padded) for padded in ((0, 0), (20, 150))]
    assert feeds[1].tokens.shape[0] == 20 > feeds[0].tokens.shape[0]
    assert feeds[1].kept.shape == (150,) and feeds[0].kept.shape[0] < 150
    for loss in losses:
        assert loss(feeds[1]).item() == pytest.approx(losses[0](feeds[0]).item(), rel=1e-6)


def test_crops_on_the_device_are_pycaps() -> None:
    settings = config()
    made, spec = joint_work.batches(settings, 1, WORDS)[0], preprocess_spec(settings)
    assert set(made.crops[:, 2]) == {0, 1}
    ours = ops.preprocess(made.images, made.crops, spec.crop, spec.mean, spec.std, np.dtype(np.float32)).data
    arrays = (torch.from_numpy(made.images), torch.from_numpy(made.crops.astype(np.int64)))
    statistics = torch.tensor(spec.mean), 1 / torch.tensor(spec.std)
    theirs = torch_joint_cuda.crop_normalise(*arrays, spec.crop, *statistics)
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1).numpy(), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_peers_search_finds_pycaps_sentences(k: int) -> None:
    ours, peer = small_nic(seed=2, vivid=2.0)
    images = np.random.default_rng(6).standard_normal((25, 32, 32, 3)).astype(np.float32)
    how: dict[str, Any] = {"beam_size": k, "max_length": 8, "start": START, "end": END, "suppress": (PAD, START, UNK)}
    with torch.inference_mode():
        words, scores = torch_decode.beam_search(peer, torch_decode.encode(peer, nchw(images), False), **how)
        best = [[*ids[: ids.index(END)], END] if END in ids else ids for ids in words[:, -1].tolist()]
        scored = torch_decode.score(peer, torch_decode.encode(peer, nchw(images), False), best, START, how["suppress"])
    assert scored.tolist() == pytest.approx(scores[:, -1].tolist(), abs=1e-4)
    assert k == 1 or len({len(ids) for ids in best}) > 1
    lengths = set()
    for said, logprobs, found in zip(
        words.tolist(), scores.tolist(), beam_search(ours, Tensor(images), **how), strict=True
    ):
        cut = [tuple(ids[: ids.index(END)] if END in ids else ids) for ids in said]
        assert cut == [h.ids for h in found]
        assert logprobs == pytest.approx([h.logprob for h in found], abs=1e-4)
        lengths |= {len(h.ids) for h in found}
    assert len(lengths) > 1, "the sentences are all alike: the test shows too little"


def test_a_result_is_read_when_the_next_step_is_under_way() -> None:
    events: list[str] = []

    class Working:
        ahead = 1

        def launch(self, batch: Any, images: Any) -> Any:
            events.append(f"launch {batch}{'' if images is None else ' fed'}")

            def result() -> Any:
                events.append(f"result {batch}")
                return SimpleNamespace(loss=float(batch))

            return SimpleNamespace(result=result)

    fed = Fed(2, "images")  # type: ignore[arg-type]
    working: Any = Working()
    assert joint_work.run_steps(working, [1, fed, 3]) == [1.0, 2.0, 3.0]  # type: ignore[list-item]
    assert events == ["launch 1", "launch 2 fed", "result 1", "launch 3", "result 2", "result 3"]
    assert joint_work.run_steps(working, []) == []
    working.ahead = 0
    events.clear()
    joint_work.run_steps(working, [1, 2])  # type: ignore[list-item]
    assert events == ["launch 1", "result 1", "launch 2", "result 2"]


# The rules of the comparison ------------------------------------------------------------------------------------------


class FakeRemote:
    """A side whose step takes `seconds`."""

    def __init__(self, seconds: float, calls: list[tuple[str, int]], name: str, loss: float = 4.0) -> None:
        self.seconds, self.calls, self.name, self.loss = seconds, calls, name, loss

    def call(self, method: str, *arguments: Any) -> Any:
        _, count = arguments
        self.calls.append((self.name, count))
        return {"seconds": self.seconds, "losses": [self.loss] * count, "peak_mib": 10.0}


def fake(agreed: dict[str, list[float]], losses: dict[str, float] | None = None) -> tuple[Comparison, list]:
    calls: list[tuple[str, int]] = []
    meter = SimpleNamespace(joules=iter(range(0, 10_000, 100)).__next__, used_mib=lambda: None)
    task = Task(config(precision="bf16"), WORDS, 2, 2, ())
    made = Comparison(task, Options(turns=3, turn_s=0.1), meter)  # type: ignore[arg-type]
    for name, values in agreed.items():
        remote = FakeRemote(0.01, calls, name, (losses or {}).get(name, 4.0))
        made.sides[name] = Side(remote, {"agreed": values, "variant": "", "backend": name})  # type: ignore[arg-type]
    return made, calls


def test_turns_rotate_and_energy_is_an_images() -> None:
    made, calls = fake({"pycap": [], "torch eager": [], "torch compile": []})
    made.steps()
    turns = [name for name, count in calls if count == 10]
    assert turns[0::3] == ["pycap", "torch eager", "torch compile"], "each is first once"
    assert all(set(turns[i : i + 3]) == set(made.sides) for i in (0, 3, 6))
    assert made.sides["pycap"].joules == [100 / (10 * made.task.config.batch_size)] * 3
    assert made.sides["pycap"].steps == 30


def test_losses_that_differ_refuse_the_comparison() -> None:
    made, _ = fake({"pycap": [4.0, 3.9], "torch eager": [4.01, 3.92]})
    assert made.agree() == pytest.approx(0.02 / 3.92)
    made, _ = fake({"pycap": [4.0, 3.9], "torch eager": [4.0, 3.95]})
    with pytest.raises(Disagreement, match="nothing is compared"):
        made.agree()
    made.task = replace(made.task, config=config(precision="fp32"))
    made.sides["pycap"].info["agreed"] = [4.0, 3.9496]
    with pytest.raises(Disagreement, match="allowed 0.0001"):
        made.agree()
    made, _ = fake({"pycap": [float("nan"), 3.9], "torch eager": [4.0, 3.9]})
    with pytest.raises(Disagreement):
        made.agree()


def test_a_compiled_side_that_learns_otherwise_is_noticed() -> None:
    made, _ = fake({"pycap": [], "torch eager": [], "torch compile": []}, {"torch compile": 4.3})
    with pytest.raises(Disagreement, match="torch compile"):
        made.steps()


def test_a_peer_that_cannot_is_a_row_with_the_reason() -> None:
    made, _ = fake({"pycap": [], "torch eager": []})
    made.failed["torch compile"] = "no compiler"
    made.ceilings = {"bfloat16": 1e12}
    made.steps()
    eager, compiled = joint_gpu_rows.step_rows(made, {}, 5e9, 0.001)
    assert eager["ratio"] == 1.0 and eager["ceiling_pct"] == pytest.approx(50.0)
    assert compiled["note"] == "no compiler" and "ratio" not in compiled and compiled["peer"] == "torch compile"


def test_without_a_gpu_it_says_so_and_names_the_rehearsal(monkeypatch, capsys) -> None:
    monkeypatch.setattr(joint_gpu.device, "obstacle", lambda: "no NVIDIA driver")
    assert torch_joint.main(["--device", "cuda"]) == 1
    assert "no NVIDIA driver; --rehearse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--sides", "torch eager"], "begins with pycap"),
        (["--micro-batch", "2"], "--micro-batch"),
        (["--image-size", "33"], "33"),
    ],
)
def test_what_cannot_be_compared_is_refused(option, said, capsys) -> None:
    with pytest.raises(SystemExit):
        torch_joint.main(["--rehearse", *option])
    assert said in capsys.readouterr().err
