"""What a run needs: of a GPU's memory, part by part, and of the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycap import backends, device
from pycap.doctor import disk, machine
from pycap.doctor.rows import row

if TYPE_CHECKING:
    from pycap.config import TrainConfig


def of_run(config: TrainConfig, vocabulary: int, ranks: int = 1) -> dict[str, Any]:
    """`memory_plan`, on a CPU without what is planned on GPUs alone, and under `disk` what `disk.check` tells; plain JSON
    values. Raises ConfigError for a run that does not fit on the GPU."""
    planned = on_cpu(config, vocabulary) if config.device == "cpu" else memory_plan(config, vocabulary, ranks)
    return {**planned, "disk": disk.check(config, vocabulary)}


def on_cpu(config: TrainConfig, vocabulary: int) -> dict[str, Any]:
    """As `memory_plan`, of what can be told: on the CPU activations are taken as they come."""
    from pycap.training import plan

    weights, optimizer = plan.saved_bytes(config, vocabulary)
    return {
        "ranks": 1,
        "batch_size": config.batch_size,
        "micro_batch": config.micro_batch or config.batch_size,
        "passes": -(-config.batch_size // (config.micro_batch or config.batch_size)),
        "vocabulary": vocabulary,
        "bytes": {"weights": weights, "optimizer": optimizer},
        "gpu": None,
        "no_gpu": "--device cpu",
    }


def memory_plan(config: TrainConfig, vocabulary: int, ranks: int = 1) -> dict[str, Any]:
    """Plain JSON values. bytes: what a run needs of the memory of each of `ranks` GPUs, by part, and in all. batch_size: images
    of a step on one of them. micro_batch: images a pass, the largest that fits where there is a GPU. gpu: its name, memory and
    what of it is free; None where a plan is for an H100.

    Raises ConfigError for a run that does not fit.
    """
    from pycap.training import plan

    gpu = None
    obstacle = device.obstacle()
    if obstacle:
        planned = plan.plan(config, vocabulary, ranks)
    else:
        with backends.use(config.backend, "cuda"):
            available = plan.available_bytes()
            planned = plan.fit(config, vocabulary, available, ranks)
            found = machine.gpu()
        gpu = {"name": found["name"], "memory_bytes": found["memory_bytes"], "available_bytes": available}
    return {
        "ranks": ranks,
        "batch_size": planned.batch_size,
        "micro_batch": planned.micro_batch,
        "passes": planned.passes,
        "vocabulary": vocabulary,
        "bytes": {**planned.parts, "total": planned.total},
        "gpu": gpu,
        "no_gpu": obstacle,
    }


def as_text(planned: dict[str, Any], config: TrainConfig) -> str:
    """`of_run` for people: a line a part, then what there is, and the disks."""
    learns = "frozen" if config.freeze_cnn else "learning too"
    size, passes = config.image_size, planned["passes"]
    of_all = f" (of {config.batch_size}, on {planned['ranks']} GPUs)" if planned["ranks"] > 1 else ""
    lines = [
        row(
            "a step",
            f"{planned['batch_size']} images{of_all} of {size}x{size}, {config.seq_per_img} captions each; "
            f"{config.cnn} {learns}, "
            f"{planned['vocabulary']} words, {config.optimizer}, {config.precision}",
        )
    ]
    lines += [f"{name:13}{count / 2**30:8.2f} GiB" for name, count in planned["bytes"].items()]
    gpu = planned["gpu"]
    there = (
        f"{gpu['name']}: {machine.gib(gpu['memory_bytes'])}, {machine.gib(gpu['available_bytes'])} of it free for a run"
        if gpu
        else ""
    )
    if config.device == "cpu":
        lines.append(
            row("cpu", f"{machine.memory_text(machine.memory())}; gradients and activations are taken as they come")
        )
    else:
        lines.append(row("gpu", there or f"none that pycap can use ({planned['no_gpu']}); planned for an H100"))
    each = "the whole batch in one pass" if passes == 1 else f"{passes} passes a step, of the same gradient"
    lines.append(row("micro-batch", f"{planned['micro_batch']} images: {each}"))
    return "\n".join([*lines, *disk.as_lines(planned["disk"])])
