"""Disguises: the same world underneath, constant in a trial, new in the next, off without them."""

import numpy as np
import pytest
import torch

from htrmrl_torchrl.envs import make_env
from htrmrl_torchrl.envs.disguise import BLANK, KINDS, NOISE, REWARD, SHIFT, TrialDisguise
from htrmrl_torchrl.envs.metaworld import LAYOUT

N, K, H = 6, 2, 5
LOW, HIGH = np.full(4, -1.0, np.float32), np.full(4, 1.0, np.float32)
EVERYONE = np.arange(N)


def disguise(*kinds, seed=0, number=0):
    made = TrialDisguise(kinds, num_lanes=N, obs_dim=39, action_low=LOW, action_high=HIGH, layout=LAYOUT, seed=seed)
    made.draw(EVERYONE, number)
    return made


def play(disguises, *, steps=2 * K * H, seed=3, name="ML1:push"):
    """Observations ``[N, steps + 1, 39]``, rewards and actions of fixed actions, trial after trial."""
    env = make_env(name, num_envs=N, episodes_per_trial=K, horizon=H, seed=seed, disguises=disguises)
    actions = torch.linspace(-1, 1, N * steps * 4).view(steps, N, 4)
    row, rows = env.reset(), []
    for action in actions:
        row, after = env.step_and_maybe_reset(row.set("action", action))
        rows.append(row["next"].clone().set("shown", row["observation"]).set("remembered", after["prev_action"]))
        row = after
    env.close()
    return torch.stack(rows, 1)


@pytest.fixture(scope="module")
def plain():
    return play([])


def test_no_disguise_is_the_environment_without_them(plain):
    env = make_env("ML1:push", num_envs=N, episodes_per_trial=K, horizon=H, seed=3)
    assert (env.reset()["observation"] == plain["shown"][:, 0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_changes_trials_and_nothing_within_one(kind, plain):
    """The first observation of both episodes of a trial is the same one (but for noise), and of the next another."""
    worn = play([kind])
    starts = worn["shown"][:, ::H]  # [N, 2 * K, 39]
    if kind == "noise":
        assert torch.equal(plain["shown"][:, 0], plain["shown"][:, H]) and (starts[:, 0] != starts[:, 1]).any()
    elif kind == "blank":
        assert (worn["shown"] == 0).all(-1).any() and not (plain["shown"] == 0).all(-1).any()
    elif kind in ("mirror", "shift", "objects"):
        raw = plain["shown"][:, ::H]
        changed = (starts - raw).abs().amax(-1) > 0
        assert (changed[:, 0] == changed[:, 1]).all() and changed.any()
    assert any(not torch.equal(worn[key], plain[key]) for key in ("observation", "reward"))


def test_a_reward_is_multiplied_by_one_factor_for_each_trial(plain):
    factor = (play(["reward"])["reward"] / plain["reward"])[..., 0].view(N, 2, K * H)
    assert torch.allclose(factor, factor[..., :1].expand_as(factor), rtol=1e-5)
    assert REWARD[0] <= factor.min() and factor.max() <= REWARD[1] and len(factor[..., 0].unique()) == 2 * N


def test_a_shift_moves_positions_alike_and_leaves_absent_objects(plain):
    moved = play(["shift"], steps=1)["shown"][:, 0] - plain["shown"][:, 0]
    hand, thing = moved[:, 0:3], moved[:, 4:7]
    assert torch.allclose(hand, thing, atol=1e-6) and 0 < hand.abs().max() <= SHIFT
    assert (moved[:, 11:18] == 0).all() and (moved[:, 36:] == 0).all(), "there is no second object, and no goal"


def test_a_mirrored_world_is_pushed_the_other_way():
    worn = disguise("mirror")
    mirrored = worn.act(np.ones((N, 4), np.float32))[:, 0] < 0
    assert mirrored.any() and not mirrored.all()
    shown = worn.show(np.ones((N, 39), np.float32))
    of_x = [place[0] for place in LAYOUT.positions]
    assert (shown[mirrored][:, of_x] == -1).all() and (np.delete(shown, of_x, 1) == 1).all()
    assert (shown[~mirrored] == 1).all()


def test_objects_change_places_and_lose_orientations():
    before = np.tile(np.arange(1, 40, dtype=np.float32), (N, 1))
    after = disguise("objects", seed=1).show(before)
    exchanged = after[:, 4] == before[:, 11]
    assert exchanged.any() and not exchanged.all()
    assert (after[exchanged][:, 11:14] == before[exchanged][:, 4:7]).all()
    hidden = (after[:, LAYOUT.orientations] == 0).all(1)
    assert hidden.any() and not hidden.all() and (after[:, :4] == before[:, :4]).all()


def test_actions_are_changed_for_the_simulator_and_remembered_as_the_agents_own(plain):
    worn = play(["gain", "flip"])
    within = [step for step in range(2 * K * H) if (step + 1) % H]
    assert torch.equal(worn["remembered"][:, within], plain["remembered"][:, within])
    assert not torch.equal(worn["observation"], plain["observation"])
    executed = disguise("gain", "flip").act(np.full((N, 4), 0.9, np.float32))
    assert (np.abs(executed) <= 1).all() and (executed < 0).any() and len(np.unique(executed)) > N


def test_noise_is_new_at_every_step_and_bounded():
    worn = disguise("noise")
    once, twice = (worn.show(np.full((N, 39), 0.5, np.float32)) for _ in range(2))
    assert (once != twice).any() and np.abs(once - 0.5).max() < 6 * NOISE


def test_blank_steps_show_nothing_at_all_and_are_few():
    worn = disguise("blank")
    shown = np.stack([worn.show(np.ones((N, 39), np.float32)) for _ in range(400)])
    hidden = (shown == 0).all(-1)
    assert (hidden == (shown == 0).any(-1)).all()
    share = hidden.mean(0)
    assert share.max() < BLANK + 0.1 and share.max() > share.min() > 0


def test_a_draw_follows_from_its_number_and_seed_alone():
    ones = np.ones((N, 39), np.float32)
    first, other = disguise("shift"), disguise("shift", number=9)
    assert (first.show(ones) != other.show(ones)).any()
    other.draw(EVERYONE[:2], 0)
    assert (first.show(ones)[:2] == other.show(ones)[:2]).all() and (first.show(ones)[2:] != other.show(ones)[2:]).any()


def test_a_continued_environment_wears_the_same():
    def one():
        return make_env("ML1:push", num_envs=N, episodes_per_trial=1, horizon=H, seed=3, disguises=list(KINDS))

    def trial(env, row):
        rows = []
        for _ in range(H):
            row, after = env.step_and_maybe_reset(row.set("action", torch.full((N, 4), 0.3)))
            rows.append(row["next"].select("observation", "reward"))
            row = after
        return torch.stack(rows, 1), row

    env = one()
    _, row = trial(env, env.reset())
    state = env.checkpoint_state()
    expected, _ = trial(env, row)
    again = one()
    again.load_checkpoint_state(state)
    continued, _ = trial(again, again.reset())
    assert (continued == expected).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="disguise='hat' is unknown; choose one of mirror"):
        make_env("ML10", disguises=["hat"])
    with pytest.raises(ValueError, match="mirror needs to know which observations are positions"):
        make_env("toy", disguises=["reward", "mirror"])
    assert make_env("toy", num_envs=2, disguises=["reward"]).reset()["observation"].shape == (2, 3)
