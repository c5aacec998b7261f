"""Cached accessors stay live: they show and change MuJoCo's memory."""

import mujoco
import numpy as np
import pytest

from htrmrl_torchrl.envs.fast.views import NamedData

XML = """
<mujoco><worldbody>
  <body name="ball"><joint name="slide" type="slide"/><geom name="round" size="0.1"/><site name="mark"/></body>
</worldbody></mujoco>
"""


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(XML)


def test_views_follow_the_simulation(model):
    data, plain = NamedData(model), mujoco.MjData(model)
    position = data.body("ball").xpos
    for simulation in (data, plain):
        simulation.qpos[:] = 0.7
        mujoco.mj_step(model, simulation, nstep=3)
    assert position[2] == plain.body("ball").xpos[2] != 0
    for kind, name, attribute in (("geom", "round", "xmat"), ("site", "mark", "xpos"), ("joint", "slide", "qpos")):
        ours, theirs = (getattr(getattr(simulation, kind)(name), attribute) for simulation in (data, plain))
        np.testing.assert_array_equal(ours, theirs)
    assert data.geom("round").id == plain.geom("round").id


def test_setting_writes_through(model):
    data = NamedData(model)
    data.joint("slide").qpos = 0.2
    data.site("mark").xpos = np.array([1.0, 2.0, 3.0])
    assert data.qpos.tolist() == [0.2] and data.site_xpos.tolist() == [[1.0, 2.0, 3.0]]


def test_an_unknown_name_is_refused_each_time(model):
    data = NamedData(model)
    for _ in range(2):
        with pytest.raises(KeyError, match="bawl"):
            data.body("bawl")
