"""A run in several processes: where each finds its place and the others, and what it says when one of them is lost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from smog import distributed
from smog.errors import AGAIN, RunError, UsageError
from smog.progress import say

MEETING = timedelta(minutes=5)  # until all processes are there
ANSWER = timedelta(minutes=10)  # of a living process within a step
PATIENCE = timedelta(hours=6)  # while rank 0 prepares data; that a process has died shows in a minute, not after this
BEAT = 1.0  # seconds between two signs of life
QUIET = 5.0  # seconds without one after which a collective that broke is blamed on that process
LOST = 40.0  # seconds without one after which a process that may be stuck in a collective ends itself

_BROKEN = re.compile(r"gloo|nccl", re.IGNORECASE)  # their errors have no type of their own, but name their source
_joined = itertools.count()


@dataclass(frozen=True)
class Place:
    """A process among ``world``; ``local_rank`` counts on its machine, ``host:port`` is where all meet."""

    rank: int
    world: int
    local_rank: int
    host: str
    port: int


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Return where torchrun's or Slurm's environment puts this process, or None when it is the only one."""
    found = os.environ if environment is None else environment
    try:
        if int(found.get("WORLD_SIZE", "1")) > 1:
            return _of_torchrun(found)
        # of the step, since a batch script that asks for many tasks is not yet one of them; what srun starts is
        if "SLURM_STEP_ID" in found and int(_tasks(found)) > 1 and "WORLD_SIZE" not in found:
            return _of_slurm(found)
    except KeyError as error:
        raise UsageError(f"several processes, but {error.args[0]} is not set: start them by torchrun or srun") from None
    except ValueError as error:
        raise UsageError(f"the place among several processes can't be read: {error}") from None
    return None


def _of_torchrun(found: Mapping[str, str]) -> Place:
    rank, world, local = (int(found[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, world, local, found["MASTER_ADDR"], int(found["MASTER_PORT"]))


def _tasks(found: Mapping[str, str]) -> str:
    return found.get("SLURM_STEP_NUM_TASKS") or found.get("SLURM_NTASKS", "1")


def _of_slurm(found: Mapping[str, str]) -> Place:
    nodes = found.get("SLURM_STEP_NODELIST") or found["SLURM_JOB_NODELIST"]
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"scontrol can't say which machines {nodes} are: {error}") from None
    # from the job and the step, so that all of its tasks, and no other's, meet there
    port = 20000 + (int(found["SLURM_JOB_ID"]) * 16 + int(found["SLURM_STEP_ID"])) % 12000
    rank, local = int(found["SLURM_PROCID"]), int(found["SLURM_LOCALID"])
    return Place(rank, int(_tasks(found)), local, listed.stdout.split()[0], port)


def speaks() -> bool:
    """Say whether this process is the one that prints results: the only one, or rank 0."""
    here = place()
    return here is None or here.rank == 0


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: on CUDA each one's own, by its number on the machine."""
    here = place()
    if here is None or device.type != "cuda":
        return device
    if device.index is not None:
        raise UsageError(f"runtime.device={device} for {here.world} processes: take cuda, and each gets its own")
    count = torch.cuda.device_count()
    if count > 1 and here.local_rank >= count:
        raise UsageError(f"process {here.rank} has no CUDA device of its own: this machine has {count}")
    device = torch.device("cuda", here.local_rank if count > 1 else 0)  # one: Slurm may have given each its own
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def joined(kind: str) -> Iterator[None]:
    """Be one of several processes within the body where the environment says so, and alone otherwise.

    ``kind`` is that of the device: NCCL carries tensors on cuda, gloo those on cpu and all messages. Raises RunError
    where another process is lost.
    """
    here = place()
    if here is None or dist.is_initialized():
        yield
        return
    pulse = _meet(here, kind)
    try:
        yield
        distributed.wait()
    except BaseException as error:
        lost = pulse.blame(error) if _of_others(error) else pulse.confess(error)
        pulse.end()
        _part(broken=True)
        if lost:
            raise RunError(lost, kind="node") from error
        raise
    pulse.end()
    _part()


def _of_others(error: BaseException) -> bool:
    """Say whether a collective raised this. Gloo's errors are plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _BROKEN.search(str(error)) is not None
    )


def _meet(here: Place, kind: str) -> Pulse:
    name = f"smog/{next(_joined)}"  # a script may train several runs, one after the other
    try:
        store = _store(here)
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=dist.PrefixStore(name, store),
            rank=here.rank,
            world_size=here.world,
            timeout=ANSWER,
        )
        distributed.control = dist.new_group(backend="gloo", timeout=PATIENCE)
        pulse = Pulse(dist.PrefixStore(f"{name}/pulse", store.clone()), here)
        distributed.wait()
    except RuntimeError as error:
        where = f"{here.host}:{here.port}"
        raise RunError(
            f"rank {here.rank} of {here.world} did not meet the others at {where} ({_line(error)})", kind="node"
        ) from error
    pulse.start()
    return pulse


@functools.cache
def _store(here: Place) -> dist.Store:
    """Return the table that all processes share: torchrun's, or one that rank 0 serves as long as it lives."""
    return next(dist.rendezvous(f"tcp://{here.host}:{here.port}", here.rank, here.world, timeout=MEETING))[0]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _part(broken: bool = False) -> None:
    distributed.control = None
    if broken and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()  # the other way it would wait for those that are lost
    else:
        dist.destroy_process_group()


class Pulse:
    """Signs of life between the processes, once a second through the table that they share. So who is lost has a
    number; and a process that waits for it in a collective that never returns (NCCL's, or any when a machine is gone)
    still ends and says why. A sign is the time, or why the process leaves."""

    def __init__(self, store: dist.Store, here: Place) -> None:
        self.store, self.name, self.leaves = store, f"rank {here.rank}", ""
        self.server = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
        self.signs = {f"rank {other}": b"" for other in range(here.world) if other != here.rank}
        self.beats = 0  # our own: time is counted in them, so that none passes while this process itself is held
        self.last = dict.fromkeys([*self.signs, self.server], 0)
        self.ended = threading.Event()
        self._beat()  # all give the first one before anybody looks

    def start(self) -> None:
        """Give and expect signs until ``end``."""
        for work in (self._listen, self._watch):  # apart: the store of a process that is frozen does not answer
            threading.Thread(target=work, daemon=True).start()

    def end(self) -> None:
        """Give and expect no more signs."""
        self.ended.set()

    def _beat(self) -> None:
        self.store.set(self.name, self.leaves or str(time.time()))

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # raised once the store is gone
            while not self.ended.wait(BEAT):
                self._beat()
                signs = dict(zip(self.signs, self.store.multi_get(list(self.signs)), strict=True))
                heard = [other for other, sign in signs.items() if sign != self.signs[other]]
                self.last.update(dict.fromkeys([*heard, self.server], self.beats))
                self.signs = signs

    def _watch(self) -> None:
        while not self.ended.wait(BEAT):
            self.beats += 1
            if self._silent(LOST):
                say(f"failed: {self._reason(LOST)}")
                os._exit(1)

    def confess(self, error: BaseException) -> str:
        """Tell the others why this process leaves; nobody is lost."""
        self.leaves = f"failed ({str(error) or type(error).__name__})"
        with contextlib.suppress(RuntimeError):
            self._beat()
        return ""

    def blame(self, error: BaseException) -> str:
        """Say who is missing after a collective broke with this error; wait a little until that shows."""
        until = self.beats + 2 * QUIET / BEAT
        while self.beats < until:
            if reason := self._reason(QUIET):
                return reason
            time.sleep(BEAT / 4)
        return f"another process did not answer ({_line(error)}); {AGAIN}"

    def _reason(self, seconds: float) -> str:
        for other, sign in self.signs.items():
            if sign.startswith(b"failed"):
                return f"{other} {sign.decode()}"
        silent = self._silent(seconds)
        return f"{' and '.join(silent)} {'were' if len(silent) > 1 else 'was'} lost; {AGAIN}" if silent else ""

    def _silent(self, seconds: float) -> list[str]:
        """Name who gave no sign for so long. Without the store no sign arrives: then it is its server alone."""
        silent = [other for other, when in self.last.items() if (self.beats - when) * BEAT > seconds]
        return [self.server] if self.server in silent else silent
