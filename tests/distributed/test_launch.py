"""Who started a process, where ranks meet under Slurm, and what each has of its machine: told from what they find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pycap import device
from pycap.distributed import DistributedError, slurm
from pycap.distributed.launch import Launch, detect
from pycap.distributed.machine import Place, assign_gpus, cpu_part, shortage

MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPENMPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "2"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}
SBATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "5"}


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, None),
        (MPICH, Launch("mpich", 1, 4)),
        (OPENMPI, Launch("openmpi", 2, 4)),
        (SRUN, Launch("slurm", 3, 8)),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "8"}, Launch("slurm", 3, 8)),  # srun --mpi=pmi2
        (SBATCH, None),
        (SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        # mpirun in a batch script starts its helpers, one a machine, with srun.
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2"} | MPICH, Launch("mpich", 1, 4)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2"} | OPENMPI, Launch("openmpi", 2, 4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Launch("mpich", 1, 2)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"PMIX_RANK": "5"}, Launch("openmpi", 5, 0)),
    ],
)
def test_the_environment_says_who_started_a_process(environ: dict[str, str], launch: Launch | None) -> None:
    assert detect(environ) == launch


@pytest.mark.parametrize(
    ("rank", "told"), [("x", "PMI_RANK='x', which is no number"), ("4", "PMI_RANK=4, of PMI_SIZE=4")]
)
def test_a_rank_that_is_none_is_an_error(rank: str, told: str) -> None:
    with pytest.raises(DistributedError, match=re.escape(told)):
        detect(MPICH | {"PMI_RANK": rank})


# Slurm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-09,12],login", "gpu07"), ("r[3,5]c[01-02],x", "r3c01"),
        ("a.b-c[1-2].net", "a.b-c1.net"), ("", ""),
    ],
)  # fmt: skip
def test_the_first_of_slurms_list_of_machines(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_where_ranks_meet() -> None:
    step = {"SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}
    host, port = slurm.meeting_point(step)
    assert host == "gpu07" and 10_000 <= port < 30_000
    assert slurm.meeting_point(step) == (host, port) != slurm.meeting_point(step | {"SLURM_STEP_ID": "1"})
    assert slurm.meeting_point(step | {"PYCAP_HOST": "10.0.0.7", "PYCAP_PORT": "5000"}) == ("10.0.0.7", 5000)
    with pytest.raises(DistributedError, match="name it in PYCAP_HOST"):
        slurm.meeting_point({})
    with pytest.raises(DistributedError, match="PYCAP_PORT='99999' is no port"):
        slurm.meeting_point(step | {"PYCAP_PORT": "99999"})


def test_the_key_is_the_users_own(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path), "SLURM_JOB_ID": "12"}
    key = slurm.key(home)
    token = tmp_path / "pycap" / "token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    assert [path.name for path in token.parent.iterdir()] == ["token"]
    assert slurm.key(home) == key and len(key) == 32
    assert slurm.key(home | {"SLURM_JOB_ID": "13"}) != key
    assert slurm.key(home | {"PYCAP_TOKEN": "mine"}) != key
    assert slurm.key({"PYCAP_TOKEN": "mine"}) == slurm.key({"PYCAP_TOKEN": "mine", "XDG_CONFIG_HOME": "/nowhere"})
    (tmp_path / "file").touch()
    with pytest.raises(DistributedError, match="set PYCAP_TOKEN to one of your own"):
        slurm.key({"XDG_CONFIG_HOME": str(tmp_path / "file")})


# The machine --------------------------------------------------------------------------------------------------------


def _place(host: str = "a", cpus: range = range(8), gpus: str = "") -> Place:
    return Place(host, frozenset(cpus), tuple(gpus))


def test_ranks_share_the_cpus_that_they_have_in_common() -> None:
    three = [_place(), _place("b"), _place(), _place()]
    assert [cpu_part(three, rank) for rank in range(4)] == [2, 8, 3, 3]
    bound = [_place(cpus=range(0, 4)), _place(cpus=range(4, 8))]
    assert [cpu_part(bound, rank) for rank in range(2)] == [4, 4]
    many = [_place(cpus=range(2))] * 3
    assert [cpu_part(many, rank) for rank in range(3)] == [1, 1, 1]


def test_cpu_count_is_a_ranks_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = device.cpu_count()
    try:
        device.share(before + 5)
        assert device.cpu_count() == before + 5
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert device.cpu_count() == 3
    finally:
        device.share(None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert device.cpu_count() == before


@pytest.mark.parametrize(
    ("places", "numbers", "short"),
    [
        ([_place(gpus="xy"), _place(gpus="xy")], [0, 1], ""),
        ([_place(gpus="x"), _place(gpus="y")], [0, 0], ""),  # as srun --gpus-per-task shows each rank its own
        ([_place(gpus="xy"), _place("b", gpus="xy")], [0, 0], ""),
        ([_place(gpus="yx"), _place(gpus="xy")], [0, 0], ""),
        ([_place(), _place()], [None, None], ""),
        ([_place(gpus="x"), _place(gpus="x")], [0, None], "a has 1 GPU for 2 ranks"),
        ([_place(gpus="xyz"), _place("b")], [0, None], "b has 0 GPUs for 1 ranks"),
    ],
)
def test_each_rank_takes_a_gpu_that_no_other_has(places: list[Place], numbers: list[int | None], short: str) -> None:
    found = assign_gpus(places)
    assert found == numbers
    assert shortage(places, found).partition(":")[0] == short


def test_where_gpus_are_too_few_none_is_taken() -> None:
    try:
        device.share(None, "a has 1 GPU for 2 ranks: start one for each GPU")
        with pytest.raises(
            device.DeviceError, match="a has 1 GPU for 2 ranks: start one for each GPU; or choose --device cpu"
        ):
            device.require("cuda")
        device.require("cpu")
    finally:
        device.share(None)
