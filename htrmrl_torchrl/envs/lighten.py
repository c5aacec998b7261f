"""Less Python per Meta-World step, with bit-identical results.

Two of Meta-World's methods take longer than its physics: counting contacts as Python objects (0.2 ms in the 14 tasks
that report a grasp) and scipy's check that MuJoCo's rotation matrices are rotations (0.1 ms in half of the tasks). Both
are replaced on the simulator object only, never in Meta-World's classes or modules.
"""

import inspect
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation


def lighten(simulator: Any) -> None:
    """Speed up one ``SawyerXYZEnv`` in place; it computes exactly what it did before."""
    simulator.touching_object = MethodType(_touching_object, simulator)
    original = type(simulator)._get_quat_objects
    if "Rotation" in original.__globals__ and "assume_valid" in inspect.signature(Rotation.from_matrix).parameters:
        # The same code, looking up another "Rotation".
        trusting = FunctionType(original.__code__, {**original.__globals__, "Rotation": _TrustingRotation})
        simulator._get_quat_objects = MethodType(trusting, simulator)


class _TrustingRotation:
    """``scipy``'s Rotation for matrices that are rotations to within its own tolerance of 1e-12, as MuJoCo's are."""

    @staticmethod
    def from_matrix(matrix: Any) -> Rotation:
        return Rotation.from_matrix(matrix, assume_valid=True)


def _touching_object(self: Any, object_geom_id: int) -> bool:
    """``SawyerXYZEnv.touching_object``, reading all contacts as arrays instead of one object per contact."""
    data = self.data
    geoms, addresses = data.contact.geom, data.contact.efc_address  # [contacts, 2], [contacts]
    touches_object = (geoms == object_geom_id).any(axis=1)
    if not touches_object.any():
        return False
    for pad in ("leftpad_geom", "rightpad_geom"):
        both = np.flatnonzero(touches_object & (geoms == data.geom(pad).id).any(axis=1))
        if not sum(data.efc_force[addresses[contact]] for contact in both) > 0:
            return False
    return True
