"""Design in kernel space: a kernel in, an activation and a wide shallow network out: `design("relu:4")`."""

from models.design.certificate import Certificate, Norms
from models.design.erf_units import ErfUnits
from models.design.hermite import Hermite, hermite_activation
from models.design.make import Design, design
from models.design.piecewise import PiecewiseLinear

__all__ = ["Certificate", "Design", "ErfUnits", "Hermite", "Norms", "PiecewiseLinear", "design", "hermite_activation"]
