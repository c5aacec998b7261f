"""Choose the OpenGL backend that MuJoCo draws with.

MuJoCo fixes its backend (``MUJOCO_GL``) at import. One that cannot draw raises AttributeError, ImportError, GLError or
FatalError, or crashes. So a backend is first tried in a child process. TorchRL imports MuJoCo, so this module must not
import TorchRL.
"""

import os
import subprocess
import sys
from functools import cache

from htrmrl_torchrl.envs.interrupts import interrupts_blocked

OFFSCREEN = ("egl", "osmesa")
_MEND = (
    "install libegl1 and libgl1-mesa-dri and set MUJOCO_GL=egl, or install libosmesa6 and set MUJOCO_GL=osmesa "
    "(package names of Debian and Ubuntu), or unset MUJOCO_GL where no pictures are wanted"
)
_PROBE_SECONDS = 60.0
_PROBE = """
try:
    import mujoco
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 9'/><geom size='1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 16, 16) as renderer:
        renderer.update_scene(data)
        assert renderer.render().any(), "the picture is black"
except BaseException as error:
    print(f"{type(error).__name__}: {error}")
    raise SystemExit(1)
"""


class RenderingError(RuntimeError):
    """No OpenGL backend can draw; the message says which were tried, how each failed, and the fix."""


def cannot_draw(what: str) -> RenderingError:
    """The error for ``"<backend> (<how it failed>)"``, in one sentence with the fix."""
    return RenderingError(f"MuJoCo cannot draw pictures with {' '.join(what.split())}; {_MEND}.")


def check_import() -> None:
    """Imports MuJoCo, as TorchRL does; RenderingError if ``MUJOCO_GL`` prevents it.

    The import looks for OpenGL in a child process, which would answer Ctrl-C with a traceback.
    """
    with interrupts_blocked():
        try:
            import mujoco  # noqa: F401
        except Exception as error:
            given = os.environ.get("MUJOCO_GL", "").strip()
            if not given:
                raise
            raise cannot_draw(f"MUJOCO_GL={given} ({type(error).__name__}: {error})") from error


def choose_backend() -> str:
    """The backend that MuJoCo can draw with: ``MUJOCO_GL`` if set, else the first of glfw, egl, osmesa that works.

    ``glfw`` is tried only with a display. Each try takes a child process of about a second, once per process. Raises
    RenderingError if none works.
    """
    given = os.environ.get("MUJOCO_GL", "").strip().lower()
    display = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    failures = []
    for backend in (given,) if given else (("glfw",) if display else ()) + OFFSCREEN:
        failure = _try(backend)
        if failure is None:
            return backend
        failures.append(f"{backend} ({failure})")
    raise cannot_draw(f"{'MUJOCO_GL=' if given else ''}{' nor '.join(failures)}")


@cache
def _try(backend: str) -> str | None:
    """Why a new process cannot draw with this backend; None if it can."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {_PROBE_SECONDS:.0f} s"
    if child.returncode == 0:
        return None
    return child.stdout.strip() or f"the process ended with code {child.returncode}"
