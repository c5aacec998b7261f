"""Where OpenGL is missing, in real processes: one sentence, whatever MuJoCo raised."""

import os
import subprocess
import sys

import pytest

from htrmrl_torchrl.envs import opengl
from htrmrl_torchrl.envs.opengl import RenderingError, choose_backend
from tests.helpers import skip_without_opengl

# By which a display is found; a Wayland one also without its name, in the folder of its socket.
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "XDG_SESSION_TYPE")


@pytest.fixture
def environment(monkeypatch):
    """No display and no choice; every backend is tried again."""
    for name in (*DISPLAYS, "MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    opengl._try.cache_clear()
    yield monkeypatch
    opengl._try.cache_clear()


def test_without_a_display_an_offscreen_backend_is_found(environment):
    skip_without_opengl()
    assert choose_backend() in ("egl", "osmesa")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MUJOCO_GL": "glfw"}, r"MUJOCO_GL=glfw \(FatalError: .*OpenGL"),  # there is no display
        ({"MUJOCO_GL": "EGL", "PYOPENGL_PLATFORM": "osmesa"}, r"MUJOCO_GL=egl \(ImportError: Cannot use EGL"),
        ({"MUJOCO_GL": "vulkan"}, r"MUJOCO_GL=vulkan \(RuntimeError: invalid value .* MUJOCO_GL: vulkan"),
        ({"PYOPENGL_PLATFORM": "glx"}, r"egl \(ImportError: .*\) nor osmesa \(ImportError: .*\)"),  # nothing is chosen
    ],
)
def test_an_unusable_backend_is_one_sentence_with_the_mend(environment, settings, said):
    for name, value in settings.items():
        environment.setenv(name, value)
    with pytest.raises(RenderingError, match=f"^MuJoCo cannot draw pictures with {said}") as caught:
        choose_backend()
    message = str(caught.value)
    assert "\n" not in message
    assert "install libegl1" in message and "MUJOCO_GL=egl" in message and "install libosmesa6" in message


SCRIPT = """
import torch
from htrmrl_torchrl.evaluation import PROTOCOLS, record_trial
record_trial(torch.nn.Identity(), "ML1:reach", PROTOCOLS["strict"], split="train", task=0, goal=0)
"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL=glfw (FatalError: "),  # nothing draws
        ({"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"}, "MUJOCO_GL=osmesa (ImportError: "),  # no import works
    ],
)
def test_a_whole_process_ends_with_that_sentence(settings, said):
    blind = {name: value for name, value in os.environ.items() if name not in DISPLAYS}
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**blind, **settings}, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 1 and "Exception ignored" not in child.stderr
    last = child.stderr.strip().splitlines()[-1]
    assert last.startswith(f"htrmrl_torchrl.envs.opengl.RenderingError: MuJoCo cannot draw pictures with {said}")
    assert "install libegl1" in last
