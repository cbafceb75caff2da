"""A private Slurm of two nodes on this machine, for tests: ``python tests/slurm/cluster.py COMMAND`` runs a command in
it, and with ``install`` in place of a command it only installs what is missing. Needs root and Debian's slurm-wlm and
munge. Nothing of it is seen from outside: its own munge with its own key, the loopback alone.

Slurm gives every node its own daemon, so two of them on one machine are two nodes. Jobs in ``high`` take the place of
those in ``main``. MaxArraySize is small, so that five jobs already need two arrays.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from debian import apt

NODES = ("n1", "n2")
MAX_ARRAY = 4
HOSTS = Path("/etc/hosts")
PACKAGES = "slurm-wlm munge"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")
# cred_expire: a requeued job waits that long; without it two minutes. MinJobAge: the stand-in for sacct asks slurmctld.
# preempt_send_user_signal: a preempted job gets the signal of --signal as well, as submitit advises clusters to set it.
CONF = """\
ClusterName=private
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=86400
MaxArraySize={array}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=ALL PriorityTier=1 GraceTime=20 Default=YES State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
{nodes}
"""


def missing() -> str:
    """Return why the cluster can't be here, or nothing."""
    if sys.platform != "linux" or os.geteuid():
        return "a private Slurm needs Linux and root"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"Slurm is not installed ({', '.join(absent)} missing)" if absent else ""


def install() -> str:
    """Install Slurm where it is missing and that is possible; return why it is not there after all, or nothing."""
    reason = missing()
    if reason.startswith("Slurm") and (failed := apt(PACKAGES)):
        return f"{reason}, and {failed}"
    return missing()


@contextlib.contextmanager
def running(home: Path) -> Iterator[dict[str, str]]:
    """Run the cluster within the body, and yield the environment in which Slurm's commands find it."""
    home.chmod(0o755)
    environment = _configured(home)
    started: list[subprocess.Popen[bytes]] = []
    with _known_hosts():
        try:
            started.extend(_start(command, home, environment) for command in _daemons(home))
            _wait_for_nodes(home, environment)
            yield environment
        finally:
            _empty(environment)
            for process in reversed(started):
                _end(process)


def _configured(home: Path) -> dict[str, str]:
    (home / "state").mkdir()
    (home / "bin").mkdir()
    shutil.copy(Path(__file__).with_name("sacct"), home / "bin" / "sacct")
    key = home / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(128))
    port, *ports = _free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={at} CPUs=2 RealMemory=8000 Feature={node}"
        for node, at in zip(NODES, ports, strict=True)
    ]
    conf = home / "slurm.conf"
    conf.write_text(CONF.format(home=home, port=port, array=MAX_ARRAY, nodes="\n".join(nodes)))
    return {"SLURM_CONF": str(conf), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _known_hosts() -> Iterator[None]:
    """Let the names of the nodes resolve: processes of one run meet at the name of the first."""
    before = HOSTS.read_text()
    new = [f"127.0.0.1 {node}\n" for node in NODES if node not in before.split()]
    HOSTS.write_text(before + "".join(new))  # in place: in a container the file can't be renamed over
    yield
    HOSTS.write_text("".join(line for line in HOSTS.read_text().splitlines(keepends=True) if line not in new))


def _daemons(home: Path) -> Iterator[list[str]]:
    files = [f"--{name}={home / f'munge.{end}'}" for name, end in (("key-file", "key"), ("socket", "socket"))]
    files += [f"--{name}={home / f'munge.{end}'}" for name, end in (("pid-file", "pid"), ("seed-file", "seed"))]
    yield ["munged", "--foreground", "--force", *files, f"--log-file={home / 'munge.log'}"]
    yield ["slurmctld", "-D", "-c"]
    for node in NODES:
        yield ["slurmd", "-D", "-N", node]


def _start(command: list[str], home: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own, so that Ctrl-C at the tests does not reach it first."""
    with (home / f"{command[0]}.txt").open("ab") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
    if command[0] == "munged":
        _until(lambda: (home / "munge.socket").exists(), home, "munged gives no socket")
    return process


def _wait_for_nodes(home: Path, environment: dict[str, str]) -> None:
    def ready() -> bool:
        asked = ["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"]
        done = subprocess.run(asked, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        return sorted(done.stdout.split()) == sorted(NODES)

    _until(ready, home, "the nodes do not come up")


def _until(condition, home: Path, complaint: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(home.glob("*.txt")))
            raise RuntimeError(f"{complaint}\n{logs}")
        time.sleep(0.1)


def _empty(environment: dict[str, str]) -> None:
    """End all jobs, so that no process outlives the cluster."""
    found = {**os.environ, **environment}
    subprocess.run(["scancel", "--signal=KILL", "--full", "-u", "root"], env=found, capture_output=True, check=False)
    subprocess.run(["scancel", "-u", "root"], env=found, capture_output=True, check=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = subprocess.run(["squeue", "-h"], env=found, capture_output=True, check=False)
        if left.returncode or not left.stdout.strip():
            return
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if reason := install():
        sys.exit(f"no private Slurm: {reason}")
    if sys.argv[1:] != ["install"]:
        with tempfile.TemporaryDirectory(prefix="slurm-") as folder, running(Path(folder)) as found:
            sys.exit(subprocess.run(sys.argv[1:] or ["bash"], env={**os.environ, **found}, check=False).returncode)
