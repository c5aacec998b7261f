"""What Windows and macOS lack is not needed to import the package, to evaluate, and to keep a run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Other packages are imported first: how they get on elsewhere is their affair.
WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, sys
from pathlib import Path
import filelock, gymnasium, hydra, matplotlib.pyplot, metaworld, numpy, scipy.special, tensorboard, tensordict, torch
from multiprocessing import resource_tracker
import torch.utils.tensorboard, torchrl.checkpoint, torchrl.collectors, torchrl.envs, torchrl.objectives

resource_tracker.ensure_running()  # Python's own, which other systems do not have
for module, names in (
    (signal, "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGCHLD SIGCONT SIGSTOP SIGALRM SIG_BLOCK SIG_SETMASK pthread_sigmask"),
    (os, "fork forkpty killpg getpgid setsid getuid geteuid sysconf uname getloadavg pwrite pread mkfifo fchmod prctl"),
):
    for name in names.split():
        vars(module).pop(name, None)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
opened = os.open

def as_on_windows(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **options)

os.open = as_on_windows
import htrmrl_torchrl, recipes

for package in (htrmrl_torchrl, recipes):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

from htrmrl_torchrl import evaluate
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.runs.lock import holder, locked
from htrmrl_torchrl.runs.signals import Interrupts, end_with_parent, ending_at_once
from recipes.configuration.compose import load_config

folder = Path(sys.argv[1])
networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, d_model=8, episodes=2)
with ending_at_once(), locked(folder / "run"):
    load_config("toy_ppo")
    report = evaluate(networks, "toy", adaptation_episodes=1)
    report.save(folder / "run" / "report.json")
interrupts = Interrupts()
interrupts.hold()
interrupts.release()
assert sorted(path.name for path in (folder / "run").iterdir()) == ["report.json"]
assert holder(folder / "run") is None
"""


def test_without_what_only_posix_has(tmp_path):
    command = [sys.executable, "-c", WITHOUT_POSIX, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
