"""Write an agent to hand on: ``python recipes/export.py checkpoint=RUN_OR_CHECKPOINT out=agent.torchrl``, or, with
weights, settings and a model card as model hubs show them, ``out=agent/``.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.signals import ending_at_once
from recipes.configuration.compose import run_recipe
from recipes.configuration.find import check_checkpoints, one_checkpoint, run_folder_of
from recipes.configuration.paths import check_file, check_folder, kind_of, writing
from recipes.configuration.rules import check_relations, check_values

if TYPE_CHECKING:
    from htrmrl_torchrl.evaluation import EvaluationReport


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first error that shows before a checkpoint is read."""
    check_values(config, defaults)
    folder = str(config.out).endswith("/")
    check_relations([(config.report is None or folder, _FOR_FOLDERS)])


_FOR_FOLDERS = "report is for the model card of a folder: end out with a slash, out=agent/"


def run(config: DictConfig) -> None:
    """Write the agent of a checkpoint to a file of its own, or to a folder to share; everything that plays or evaluates
    reads both.
    """
    from htrmrl_torchrl.checkpoints.checkpoint import read_component  # late: torch takes a while

    path = one_checkpoint(config.checkpoint)
    if config.out is None:
        raise UserError("out is missing: give the file to write, out=agent.torchrl, or a folder, out=agent/")
    out = Path(config.out)
    if config.out.endswith("/"):
        check_folder("out", out)
    else:
        check_file("out", out)
    check_checkpoints([path])
    try:
        with writing(str(out)):
            written = _write_folder(config, path, out) if config.out.endswith("/") else _write_file(path, out)
    except ValueError as error:  # what is in the checkpoint
        raise UserError(str(error)) from error
    frames, size = read_component(out, "progress")["frames"], sum(file.stat().st_size for file in written)
    print(f"{config.out}: {size / 1e6:.1f} MB, the agent of {path} after {frames:,} frames")


def _write_file(checkpoint: Path, out: Path) -> list[Path]:
    from htrmrl_torchrl.checkpoints.checkpoint import export_agent

    _check_replaceable(out, checkpoint)
    return [export_agent(checkpoint, out)]


def _write_folder(config: DictConfig, checkpoint: Path, out: Path) -> list[Path]:
    from htrmrl_torchrl import HTrMRLAgent
    from htrmrl_torchrl.checkpoints.folder import CARD, CONFIG, MODEL
    from recipes.configuration.run_folder import read_summary

    report = None if config.report is None else _report_of(checkpoint, Path(config.report))
    summary = read_summary(run_folder_of(checkpoint)) if checkpoint.parent.name == "checkpoints" else None
    agent = HTrMRLAgent.from_checkpoint(checkpoint, trust=config.trust)
    agent.save_pretrained(out, report=report, training_command=(summary or {}).get("command", ""))
    return [out / name for name in (MODEL, CONFIG, CARD)]


def _report_of(checkpoint: Path, path: Path) -> "EvaluationReport":
    """The report; UserError if it cannot be read, or is of another checkpoint."""
    from htrmrl_torchrl.evaluation import EvaluationReport

    try:
        report = EvaluationReport.load(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"report is '{path}', which cannot be read: {error}") from error
    own = hashlib.sha256(checkpoint.read_bytes()).hexdigest() if checkpoint.is_file() else ""
    if any(run.get("sha256") != own for run in report.runs):
        raise UserError(f"report is '{path}', which is not of {checkpoint} alone: evaluate this checkpoint first")
    return report


def _check_replaceable(out: Path, checkpoint: Path) -> None:
    """Raise UserError if ``out`` is a checkpoint that a run continues from."""
    from htrmrl_torchrl.checkpoints.archive import check_archive

    if kind_of("out", out) is None:
        return
    if out.samefile(checkpoint):  # links of both kinds too
        raise UserError(f"out is '{out}', which is the checkpoint itself: give another file")
    try:
        held = check_archive(out)
    except (ValueError, OSError):  # some other file
        return
    if "optimizer" in held:
        raise UserError(f"out is '{out}', a checkpoint that a run continues from: give another file")


if __name__ == "__main__":
    with ending_at_once():
        run_recipe(run, config_name="export", check=check)
