"""What a request needs at least in memory, so that one that cannot work ends before anything is built.

These are lower bounds: what is left out (activations, simulators, copies) only adds to them. So nothing is refused that
would work, and what is refused is refused by much: sizes of terabytes come from a slip in a number.
"""

import os
import sys
from collections.abc import Mapping

from omegaconf import DictConfig

from htrmrl_torchrl.dotted import is_dotted_path
from recipes.configuration.relations import Relation, frames_of_context, frames_per_batch

_FLOAT, _ID = 4, 8  # bytes of a float32 and an int64
_TOKEN = 5 * _FLOAT  # the smallest: an observation, an action, the previous reward, two flags
_FRAME = 48  # of a stored frame, whatever its sizes: action, log-prob, value, advantage, lane, episode, task, goal
_LEARNED = 4 * _FLOAT  # a parameter, its gradient and Adam's two averages
_WORKER = 30_000_000  # a process that has imported a simulator
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def fits_memory(needs: Mapping[str, int], *, device: str = "cpu") -> Relation:
    """Whether the machine has the memory for all ``needs``, bytes by what they are for, and what is wrong if not."""
    available, needed = _memory(device), sum(needs.values())
    what = max(needs, key=lambda name: needs[name])
    return needed <= available, (
        f"this needs at least {_shown(needed)} of memory, of which {_shown(needs[what])} are for {what}, and there are "
        f"{_shown(available)}: choose smaller numbers"
    )


def training_needs(config: DictConfig) -> dict[str, int]:
    """Of a training recipe: the networks while they learn, the stored batches, one step and one minibatch."""
    env, encoder, batch = config.env, config.encoder, frames_per_batch(config)
    window, episodes = encoder.get("window", 1), encoder.get("episodes", 1)
    adaptation = config.eval.adaptation_episodes
    frames = config.collector.grow_to * batch + frames_of_context(config)
    frame = _FRAME + 2 * _ID * (episodes - 1) + (_FLOAT * encoder.d_model if encoder.kind == "rl2" else 0)
    layers = ", ".join(f"encoder.{key}={encoder[key]}" for key in encoder if key.endswith(("d_model", "layers")))
    memory = f", memory.max_episodes={config.memory.max_episodes}" if config.memory.scope == "lane" else ""
    return {
        f"the network ({layers}, encoder.window={window}, encoder.episodes={episodes})": _LEARNED * parameters(encoder),
        f"{frames} stored frames (collector.grow_to={config.collector.grow_to} batches of {batch} frames{memory}, "
        f"encoder.episodes={episodes})": frame * frames,
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
    """Of an encoder, at least: its matrices and positions."""
    if is_dotted_path(encoder.kind):
        return 0  # who knows
    d = int(encoder.d_model)
    if encoder.kind == "mlp":
        return (encoder.mlp_layers - 1) * d * d
    if encoder.kind == "rl2":
        return (encoder.mlp_layers - 1 + 6) * d * d  # three gates of the GRU, each of input and state
    layers = encoder.intra_layers + encoder.get("inter_layers", 0)
    # Query, key, value, output, and a feed-forward block four times as wide.
    return 12 * layers * d * d + d * (encoder.window + encoder.get("episodes", 0))


def trial_needs(*, episodes: int, horizon: int, trials: int) -> dict[str, int]:
    """Of an evaluation or an inspection: what one lane remembers of its trial, and what is noted of each trial."""
    return {
        f"the memory of a trial ({episodes} episodes of {horizon} steps)": _TOKEN * episodes * (horizon + 1),
        f"the outcomes of {trials} trials of {episodes} episodes": _ID * trials * episodes,
    }


def benchmark_needs(config: DictConfig) -> dict[str, int]:
    """Of the benchmark: the batches that are collected, whole trials of ten short episodes."""
    lanes = max(config.num_envs, config.recipe_lanes, *config.lanes)
    return {
        f"the batches of {lanes} lanes (num_envs, recipe_lanes, lanes)": _FRAME * lanes * 500,
        f"num_workers={config.num_workers} worker processes": _WORKER * config.num_workers,
    }


def _memory(device: str) -> int:
    """Bytes of the machine, or of its GPU where that has more."""
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
