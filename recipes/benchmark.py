"""Measure the speed of every stage: ``python recipes/benchmark.py [parts=[environment,update]] [rounds=3]``.

Contenders take turns within one run, because machines are noisy. Medians are reported; ratios are medians of the ratios
within a round. Needs an otherwise idle machine, and reports its load.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import best_effort, command_line
from htrmrl_torchrl.runs.signals import ending_at_once
from recipes.configuration.compose import run_recipe
from recipes.configuration.paths import check_folder, writing
from recipes.configuration.rules import Rule, at_least, check_device, check_relations, check_values
from recipes.configuration.sizes import benchmark_needs, fits_memory

PARTS = ("environment", "collection", "update", "recipe")
RULES = {
    "parts": Rule(f"some of {', '.join(PARTS)}", lambda value: bool(value) and all(part in PARTS for part in value)),
    "num_workers": at_least(1),
    "lanes": Rule("numbers of at least 1", lambda value: bool(value) and all(type(n) is int and n > 0 for n in value)),
}


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first error."""
    check_values(config, defaults, RULES)
    check_device(config.device)
    for key in ("num_envs", "recipe_lanes"):
        if config[key] % 10:
            raise UserError(f"{key} is {config[key]} but must be a multiple of ML10's ten training tasks")
    fewest = min(config.num_envs, config.recipe_lanes, 20, *config.lanes)  # 20: ml10_ppo's own
    if config.num_workers > fewest:
        raise UserError(
            f"num_workers is {config.num_workers} but must be at most {fewest}, the fewest environments of all parts"
        )
    check_relations([fits_memory(benchmark_needs(config))])
    check_folder("out", Path(config.out))


def run(config: DictConfig) -> None:
    """Measure the chosen parts, print their tables and write all numbers as JSON."""
    from htrmrl_torchrl.checkpoints.versions import versions
    from recipes.configuration.run_folder import commit_of_code
    from recipes.speed import environment as _benchmark_environment
    from recipes.speed import learning as _benchmark_learning

    measure = {
        "environment": _benchmark_environment.environment,
        "collection": _benchmark_learning.collection,
        "update": _benchmark_learning.update,
        "recipe": _benchmark_learning.recipe,
    }
    report: dict[str, Any] = {
        "command": command_line(),
        "commit": commit_of_code(),
        "machine": {"processor": _processor(), "cores": os.cpu_count()},
        "versions": versions(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # Windows has none
    }
    path = Path(config.out) / "benchmark.json"
    for part in config.parts:
        report[part] = measure[part](config)
        print(f"\n{part}\n{table(report[part])}", flush=True)
        with best_effort(str(path)):  # after each part, as far as it goes
            _write(path, report)
    with writing(str(path)):
        _write(path, report)
    print(f"\nall numbers: {path}")


def _write(path: Path, report: dict[str, Any]) -> None:
    from htrmrl_torchrl.checkpoints.files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=2))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with equal keys as aligned columns; long lists of single measurements stay in the JSON."""
    names = [name for name in rows[0] if not isinstance(rows[0][name], list)]
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "-" if value is None else str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []  # Linux
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    with ending_at_once():
        run_recipe(run, config_name="benchmark", check=check)
