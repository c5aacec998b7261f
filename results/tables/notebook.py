"""Tables of the lab notebook: pilots on ML10, from runs.csv."""

from collections.abc import Sequence
from pathlib import Path

from results.tables.cells import markdown, table
from results.tables.ml10 import read_runs, training

Pilot = tuple[str, str, float, float]  # what is different, the run's name, above and up to how many thousand frames


def _pilots(results: Path, pilots: Sequence[Pilot], columns: Sequence[str] = ()) -> str:
    """Success of training episodes over some frames of each pilot, in all and in a trial's first and last episode."""
    shown = ["train/success", "first_episode", "last_episode", *(f"train/success/{task}-v3" for task in columns)]
    runs, rows = read_runs(results), []
    for what, run, above, upto in pilots:
        values = training(runs, run, shown, above=int(above * 1000), upto=int(upto * 1000))
        rows.append([what, f"`{run}`", f"{above / 1000:g}M to {upto / 1000:g}M", *values])
    return markdown(["", "run", "frames", "all", "first episode", "last episode", *columns], rows)


@table
def notebook_rewards(results: Path) -> str:
    """ML10: rewards in units of their task's returns, and the learning rate."""
    pilots = [
        ("rewards as they are, seed 11", "Q_K5_clip.2", 600, 700),
        ("`loss.reward_norm=true`, seed 11", "S_base", 600, 700),
        ("rewards as they are, seed 1", "control_no_reward_norm_seed1", 900, 1000),
        ("`loss.reward_norm=true`, seed 1", "htrmrl_seed1_lr2e-4", 900, 1000),
        ("`optim.lr=5e-4`, constant", "S_base", 1400, 2000),
        ("the same, then falling to 0 within a million frames", "T_anneal", 2500, 3000),
        ("`optim.lr=2e-4`, constant", "htrmrl_seed1_lr2e-4", 2500, 2800),
    ]
    return _pilots(results, pilots)


@table
def notebook_reach(results: Path) -> str:
    """Reach alone with ML10's settings: how large rewards are in tokens, and the window strategy."""
    pilots = [
        ("`env.reward_scale=0.1`, `uniform`", "V_reach_alone", 200, 400),
        ("`env.reward_scale=0.3`, `uniform`", "W_reach_reward_scale_0.3", 200, 400),
        ("`env.reward_scale=1`, `uniform`", "W_reach_reward_scale_1", 200, 400),
        ("`env.reward_scale=3`, `uniform`", "W_reach_reward_scale_3", 200, 400),
        ("`env.reward_scale=1`, `best_return`", "W_reach_reward_scale_1_best_return", 200, 400),
    ]
    return _pilots(results, pilots)


@table
def notebook_batches(results: Path) -> str:
    """ML10, seed 2 continued from 9.52M frames: environments, minibatches and a floor under the std."""
    pilots = [
        ("as it was: 20 environments, no floor", "htrmrl_shallow_seed2", 9600, 10400),
        ("floor of 0.5", "AB_floor_from_9.5M", 9600, 10400),
        ("floor, 40 environments, minibatches of 4,000", "AB_floor_lanes40_from_9.5M", 9600, 10800),
        ("floor, 40 environments, minibatches of 2,000", "AB_floor_lanes40_mb2000_from_9.5M", 9600, 10200),
        ("floor, 100 environments, minibatches of 5,000", "AB_floor_lanes100_from_9.5M", 9600, 10800),
        ("floor, `collector.grow_to=5`", "AD_floor_grow5_from_9.5M", 9600, 10600),
        ("no floor, `collector.grow_to=5`, from 10.42M", "AD_grow5_from_10.4M", 10500, 11500),
    ]
    return _pilots(results, pilots, ["peg-insert-side", "pick-place", "push", "reach"])


@table
def notebook_baselines(results: Path) -> str:
    """ML10, seed 1: what was tried for RL2 and TrMRL."""
    pilots = [
        ("RL2, `env.reward_scale=1`", "AE_rl2", 300, 500),
        ("the same, segments of 100 steps", "AE_rl2_segment100", 300, 500),
        ("the same, minibatches of 5,000", "AE_rl2_mb5000", 300, 500),
        ("RL2, `env.reward_scale=0.1`", "rl2_20m_seed1", 300, 500),
        ("RL2, `env.reward_scale=1`", "AE_rl2", 1000, 1900),
        ("RL2, `env.reward_scale=0.1`", "rl2_20m_seed1", 1000, 1900),
        ("TrMRL, growing batches and the floor", "trmrl_grow_seed1", 3000, 4000),
        ("TrMRL without", "trmrl_seed1", 3000, 4000),
    ]
    return _pilots(results, pilots)
