"""Offscreen pictures of MuJoCo's simulators."""

import atexit
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.lanes import Picture
from htrmrl_torchrl.envs.opengl import OFFSCREEN, cannot_draw, choose_backend

# Over the robot's shoulder: hand, objects and target of all tasks are in view. (Meta-World's own cameras are upside
# down with this version of MuJoCo.)
_CAMERA = {"lookat": (0.03, 0.66, 0.13), "distance": 1.25, "azimuth": 150.0, "elevation": -35.0}


class SceneRenderer:
    """Draws one MuJoCo model without changing the simulation's state; holds an OpenGL context until closed.

    Args:
        model: ``mujoco.MjModel``. The size of its offscreen buffer (``model.vis``, not part of the physics) is set.
        size: width and height in pixels.
        camera: values of a free ``mujoco.MjvCamera``; default: a view of Meta-World's table.

    Raises RenderingError if no OpenGL backend works.
    """

    def __init__(self, model: Any, *, size: int, camera: Mapping[str, Any] = _CAMERA) -> None:
        backend = choose_backend()
        import mujoco

        if backend in OFFSCREEN:  # mujoco may have been imported earlier with another backend
            mujoco.gl_context.GLContext = importlib.import_module(f"mujoco.{backend}").GLContext
        self.size = size
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            self._renderer = mujoco.Renderer(model, size, size, max_geom=1000)
        except Exception as error:
            raise cannot_draw(f"{backend} ({type(error).__name__}: {error})") from error
        # Without a GPU a picture takes 0.15 s with shadows and 0.04 s without.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._camera = mujoco.MjvCamera()
        for name, value in camera.items():
            setattr(self._camera, name, value)
        self._site = int(mujoco.mjtObj.mjOBJ_SITE)
        atexit.register(self.close)  # contexts must be freed before OpenGL itself shuts down

    def draw(
        self,
        data: Any,
        *,
        sites: Mapping[int, npt.NDArray[np.float64]] = MappingProxyType({}),
        lookat: npt.NDArray[np.float64] | None = None,
    ) -> Picture:
        """A picture ``[size, size, 3]`` of the current state.

        Args:
            data: ``mujoco.MjData`` of the model.
            sites: positions [3] at which sites (by id) are drawn, in the picture only.
            lookat: position [3] that the camera looks at instead of its own.
        """
        if lookat is not None:
            self._camera.lookat[:] = lookat
        self._renderer.update_scene(data, self._camera)
        scene = self._renderer.scene
        for geom in scene.geoms[: scene.ngeom]:
            if geom.objtype == self._site and geom.objid in sites:
                geom.pos[:] = sites[geom.objid]
        return np.ascontiguousarray(self._renderer.render())

    def close(self) -> None:
        """Free the context; calling it twice is harmless."""
        atexit.unregister(self.close)
        self._renderer.close()


class SimulatorRenderers:
    """One :class:`SceneRenderer` per Meta-World simulator that is drawn, built when first needed."""

    def __init__(self) -> None:
        self._renderers: dict[int, tuple[Any, SceneRenderer]] = {}  # by id(model), which stays unique while held

    def draw(self, simulator: Any, *, size: int) -> Picture:
        """A picture [size, size, 3] of a ``SawyerXYZEnv`` that has been reset, with its target."""
        model = simulator.model
        _, renderer = self._renderers.get(id(model), (None, None))
        if renderer is None or renderer.size != size:
            if renderer is not None:
                renderer.close()
            renderer = SceneRenderer(model, size=size)
            self._renderers[id(model)] = (model, renderer)
        # Meta-World moves the target's site only after a step; here it is moved in the picture only.
        targets = {model.site(name).id: position[:3] for name, position in simulator._target_site_config}
        return renderer.draw(simulator.data, sites=targets)

    def close(self) -> None:
        """Free all contexts; calling it twice is harmless."""
        for _, renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
