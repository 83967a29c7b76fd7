"""A Slurm of one node, on this machine, for as long as a test lasts: munged, slurmctld, slurmd.

    python tests/slurm/cluster.py <command>       (the command runs with SLURM_CONF set)

Everything it writes is in a temporary folder, on free ports; the daemons are children in the
foreground and end with it. Needs the programs of Debian's slurm-wlm and munge, and nothing of their
services or configuration. As root jobs run as root; otherwise as the user who starts it.
"""

import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
CONF = """
ClusterName=pocket
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
SlurmctldPort={control}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=pocket Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


def absent() -> list[str]:
    """List the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextmanager
def cluster(cpus: int = 2) -> Iterator[dict[str, str]]:
    """Start the daemons; yield the environment in which sbatch and the others reach them."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged insists that others cannot write, and can reach its socket
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser()}
    ports = {"control": free_port(), "node": free_port()}
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, cpus=cpus, **names, **ports))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    daemons: list[subprocess.Popen[bytes]] = []
    with (folder / "daemons.log").open("wb") as log:

        def start(*command: str) -> None:
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, cwd=folder,
                    preexec_fn=end_with_parent,
                )
            )  # fmt: skip

        try:
            start(*munged(folder / "munge"))
            wait(lambda: (folder / "munge" / "socket").exists(), folder)
            start("slurmctld", "-D")
            start("slurmd", "-D")
            wait(lambda: "idle" in ask(environment, "sinfo", "-h", "-o", "%t"), folder)
            yield environment
        finally:
            ask(environment, "scancel", "--user", names["user"])
            ask(environment, "scancel", "--full", "--signal=KILL", "--user", names["user"])
            time.sleep(1)
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            shutil.rmtree(folder, ignore_errors=True)


def end_with_parent() -> None:
    """Have the kernel end a daemon with the process that started it, however that ends (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def munged(folder: Path) -> list[str]:
    """Return the command of a munged with a key of its own."""
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    files["seed-file"] = "seed"
    words = [f"--{option}={folder / name}" for option, name in files.items()]
    return ["munged", "--foreground", "--force", *words]


def ask(environment: dict[str, str], *command: str) -> str:
    """Run a command of Slurm; return what it says, good or bad."""
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout


def wait(until, folder: Path, seconds: float = 60) -> None:  # pyright: ignore
    """Wait for a condition; raise with the daemons' logs if it does not come."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            logs = [path.read_text(errors="replace")[-3000:] for path in folder.rglob("*log")]
            raise RuntimeError("Slurm did not come up:\n" + "\n".join(logs))
        time.sleep(0.3)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    if absent():
        sys.exit(f"error: not installed: {', '.join(absent())} (slurm-wlm, munge)")
    with cluster() as environment_:
        sys.exit(subprocess.call(sys.argv[1:] or ["bash"], env=environment_))
