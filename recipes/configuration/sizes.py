"""Lower bounds of the memory that a request needs, so that an impossible one ends before anything is built.
Activations, simulators and copies are left out: nothing that would work is refused. What is refused, typically after a
slip in a number, exceeds the memory by far.
"""

import os
import sys
from collections.abc import Mapping

from omegaconf import DictConfig

from htrmrl_torchrl.dotted import is_dotted_path
from recipes.configuration.relations import Relation, frames_of_context, frames_per_batch

_FLOAT, _ID = 4, 8  # bytes of a float32 and an int64
_TOKEN = 5 * _FLOAT  # the smallest: an observation, an action, the previous reward, two flags
_FRAME = 48  # at least, for a stored frame: action, log-prob, value, advantage, environment, episode, task, goal
_LEARNED = 4 * _FLOAT  # a parameter, its gradient and Adam's two averages
_WORKER = 30_000_000  # a process that has imported a simulator
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def fits_memory(needs: Mapping[str, int], *, device: str = "cpu") -> Relation:
    """Whether the machine has memory for all ``needs`` (bytes by purpose), and the error message if not."""
    available, needed = _memory(device), sum(needs.values())
    what = max(needs, key=lambda name: needs[name])
    return needed <= available, (
        f"this needs at least {_shown(needed)} of memory, of which {_shown(needs[what])} are for {what}, and there are "
        f"{_shown(available)}: choose smaller numbers"
    )


def training_needs(config: DictConfig) -> dict[str, int]:
    """Bytes of a training recipe: networks with gradients, stored batches, one step and one minibatch.

    Each of its processes (``workers``) has all of that.
    """
    env, encoder, batch = config.env, config.encoder, frames_per_batch(config)
    window, episodes = encoder.get("window", 1), encoder.get("episodes", 1)
    adaptation = config.eval.adaptation_episodes
    frames = config.collector.grow_to * batch + frames_of_context(config)
    frame = _FRAME + 2 * _ID * (episodes - 1) + (_FLOAT * encoder.d_model if encoder.kind == "rl2" else 0)
    layers = ", ".join(f"encoder.{key}={encoder[key]}" for key in encoder if key.endswith(("d_model", "layers")))
    copies = f", workers={config.workers}" if config.workers > 1 else ""
    memory = f", memory.max_episodes={config.memory.max_episodes}" if config.memory.scope == "lane" else ""
    return {
        f"the network ({layers}, encoder.window={window}, encoder.episodes={episodes}{copies})": (
            config.workers * _LEARNED * parameters(encoder)
        ),
        f"{frames} stored frames (collector.grow_to={config.collector.grow_to} batches of {batch} frames{memory}, "
        f"encoder.episodes={episodes}{copies})": config.workers * frame * frames,
        f"the windows of one step and one minibatch (env.num_envs={env.num_envs}, encoder.window={window}, "
        f"loss.minibatch_frames={config.loss.minibatch_frames})": (
            _TOKEN * window * max(env.num_envs, config.loss.minibatch_frames)
        ),
        f"env.num_workers={env.num_workers} worker processes": _WORKER * env.num_workers,
        **trial_needs(
            episodes=(env.episodes_per_trial if adaptation is None else adaptation) + 1,
            horizon=config.eval.horizon or env.horizon,
            trials=1,
        ),
    }


def parameters(encoder: DictConfig) -> int:
    """Lower bound of an encoder's parameters: its matrices and positions."""
    if is_dotted_path(encoder.kind):
        return 0  # unknown
    d = int(encoder.d_model)
    if encoder.kind == "mlp":
        return (encoder.mlp_layers - 1) * d * d
    if encoder.kind == "rl2":
        return (encoder.mlp_layers - 1 + 6) * d * d  # three gates of the GRU, each of input and state
    layers = encoder.intra_layers + encoder.get("inter_layers", 0)
    # Query, key, value, output, and a feed-forward block four times as wide.
    return 12 * layers * d * d + d * (encoder.window + encoder.get("episodes", 0))


def trial_needs(*, episodes: int, horizon: int, trials: int) -> dict[str, int]:
    """Bytes of an evaluation or an inspection: the memory of one environment's trial, and the outcome of each trial."""
    return {
        f"the memory of a trial ({episodes} episodes of {horizon} steps)": _TOKEN * episodes * (horizon + 1),
        f"the outcomes of {trials} trials of {episodes} episodes": _ID * trials * episodes,
    }


def benchmark_needs(config: DictConfig) -> dict[str, int]:
    """Bytes of the benchmark's batches: whole trials of ten short episodes."""
    lanes = max(config.num_envs, config.recipe_lanes, *config.lanes)
    return {
        f"the batches of {lanes} environments (num_envs, recipe_lanes, lanes)": _FRAME * lanes * 500,
        f"num_workers={config.num_workers} worker processes": _WORKER * config.num_workers,
    }


def _memory(device: str) -> int:
    """Bytes of the machine, or of its GPU if that has more."""
    host = sys.maxsize  # Windows does not say
    if hasattr(os, "sysconf"):
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not device.startswith("cuda"):
        return host
    import torch

    return max(host, torch.cuda.get_device_properties(torch.device(device)).total_memory)


def _shown(size: int) -> str:
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size // 1000, unit + 1
    return f"{size} {_UNITS[unit]}" if size < 1000 else f"over 1000 {_UNITS[unit]}"
