"""Watch Brax environments learn, live, in a browser."""

from brax_viser.env import VisualizedEnv
from brax_viser.frame import Frame
from brax_viser.viewer import Stats, Viewer

__all__ = ["Frame", "Stats", "Viewer", "VisualizedEnv"]
__version__ = "0.1.0"
