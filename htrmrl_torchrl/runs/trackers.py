"""Experiment trackers beside the run folder: Weights & Biases, MLflow and trackio, each through TorchRL's logger.

A tracker does not forget what it was sent, so nothing is sent twice. ``trackers.json`` in the run folder keeps, for
each tracker, the identity of the run there and the frames of its newest metrics. It is written before these are sent:
after a kill in between, a tracker lacks one point instead of showing it twice.

What a tracker needs beyond its name it reads from its own environment variables, for example ``WANDB_PROJECT``,
``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and ``TRACKIO_PROJECT``.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from htrmrl_torchrl.checkpoints.files import read_json, read_regular, write_whole
from htrmrl_torchrl.runs.console import note

if TYPE_CHECKING:
    from torchrl.record.loggers.common import Logger

RECORDS = "trackers.json"
_PROJECT = "htrmrl_torchrl"
_LARGEST = 1 << 16  # bytes of `RECORDS`


class Tracker:
    """One tracker of a run. It never raises: the first failure is printed, and then the tracker is off.

    Args:
        name: one of `TRACKERS`.
        run_dir: folder of the run, which must exist; its last part names the run.
        resume_from_frames: frames of the checkpoint that a run continues from; ``None`` starts a new run. A continued
            run keeps its identity, and metrics that the tracker has already are not sent again.
        config: settings to show, flat; sent once, at the beginning.
    """

    def __init__(self, name: str, run_dir: Path, *, resume_from_frames: int | None, config: Mapping[str, Any]) -> None:
        self.name, self._run_dir = name, run_dir
        self._logger: Logger | None = None
        self._frames = -1
        with self._off_after_a_failure():
            own = None if resume_from_frames is None else _records(run_dir).get(name)
            if own is not None:
                self._frames = own["frames"]
            elif resume_from_frames is not None:  # it was not in use before
                self._frames = resume_from_frames
            self._logger, self._identity = TRACKERS[name](run_dir, None if own is None else own["identity"])
            if own is None:
                self._logger.log_hparams(dict(config))
            self._write()

    def log(self, metrics: Mapping[str, float], *, frames: int) -> None:
        """Send scalars at ``frames``, unless the tracker has metrics of these frames or later ones."""
        if self._logger is None or frames <= self._frames:
            return
        with self._off_after_a_failure():
            self._frames = frames
            self._write()
            self._logger.log_metrics(dict(metrics), step=frames)

    def close(self) -> None:
        """End the run there; idempotent."""
        with self._off_after_a_failure():
            logger, self._logger = self._logger, None
            if logger is not None:
                _end(self.name, logger)

    @contextmanager
    def _off_after_a_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._logger = None
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            note(f"warning: the logger {self.name} failed ({said}) and is off; the run continues")

    def _write(self) -> None:
        mine = {self.name: {"identity": self._identity, "frames": self._frames}}
        write_whole(self._run_dir / RECORDS, json.dumps(_records(self._run_dir) | mine, indent=2))


def _records(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The entries of `RECORDS` that can be read; of a damaged file none."""
    try:
        found = read_json(read_regular(run_dir / RECORDS, largest=_LARGEST))
        return {name: entry for name, entry in found.items() if _is_entry(entry)}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("frames")) is int and type(entry.get("identity")) is str


# ---------------------------------------------------------- each: (folder, identity to continue) -> (logger, identity)


def _wandb(run_dir: Path, identity: str | None) -> tuple["Logger", str]:
    from torchrl.record.loggers.wandb import WandbLogger

    identity = identity or uuid.uuid4().hex
    return WandbLogger(
        exp_name=run_dir.absolute().name,
        save_dir=run_dir,
        id=identity,
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        log_env_packages=False,  # summary.json has them, without this machine's paths
        settings={"console": "off"},  # it would put its own stream around stderr
    ), identity


def _mlflow(run_dir: Path, identity: str | None) -> tuple["Logger", str]:
    import mlflow
    from torchrl.record.loggers.mlflow import MLFlowLogger

    shared = f"sqlite:///{run_dir.absolute().parent / 'mlflow.db'}"
    with _variable("MLFLOW_RUN_ID", identity):  # TorchRL's logger has no argument for it
        logger = MLFlowLogger(
            exp_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", shared),
        )
    mlflow.set_tag("mlflow.runName", run_dir.absolute().name)
    return logger, logger.experiment.info.run_id


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Within the block, an environment variable has this value; with ``None`` it is as before."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name, None)  # MLflow takes it away itself
            os.environ.update({} if before is None else {name: before})


def _trackio(run_dir: Path, identity: str | None) -> tuple["Logger", str]:
    from torchrl.record.loggers.trackio import TrackioLogger

    identity = identity or f"{run_dir.absolute().name}-{uuid.uuid4().hex[:8]}"  # it continues runs by their name
    return TrackioLogger(exp_name=identity, project=os.environ.get("TRACKIO_PROJECT", _PROJECT)), identity


def _end(name: str, logger: "Logger") -> None:
    if name == "mlflow":  # which TorchRL's logger leaves open
        import mlflow

        mlflow.end_run()
    else:
        logger.close()


TRACKERS: dict[str, Callable[[Path, str | None], tuple["Logger", str]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
