"""Draws a label above each robot, and the title of a block."""

from collections.abc import Sequence

import numpy as np
import viser

from brax_viser.model.robot import Model
from brax_viser.records.frame import Frame
from brax_viser.scene.look import Look, label_of

MAX_LABELS = 256
"""Each label is a message, several times a second: more labels would crowd out the robots, on the
wire as on the screen."""


def label_texts(frame: Frame, model: Model, look: Look) -> list[str]:
    """The text above each of the first robots of a frame, at most `MAX_LABELS`; for robots that
    travel, it says how far they have come, which a moving floor hides."""
    texts = []
    for row, env in enumerate(frame.env_index[:MAX_LABELS].tolist()):
        text = label_of(frame, row, model.dt, look) + distance_of(frame, row, model)
        own = model.variants.in_words(env)
        texts.append(f"{text} · {own}" if own else text)
    return texts


def distance_of(frame: Frame, row: int, model: Model) -> str:
    """How far a robot that travels is from where its model starts, in words; else empty."""
    if model.roaming_link is None:
        return ""
    start = model.init_pos[model.roaming_link, :2]
    return f" · {np.hypot(*(frame.link_pos[row, model.roaming_link, :2] - start)):.1f} m from start"


class Labels:
    """The labels of a block's robots. Used on the page's loop only."""

    def __init__(self, server: viser.ViserServer, path: str, scale: float):
        """Adds none yet.

        Args:
            server: the server of the scene.
            path: the scene node to put them under.
            scale: scene units per metre.
        """
        self._server, self._path, self._scale = server, path, scale
        self.handles: list[viser.LabelHandle] = []

    def draw(self, texts: Sequence[str], hidden: np.ndarray, places: np.ndarray) -> None:
        """Writes one label for each of the first texts, and removes the labels beyond them.

        Args:
            texts: of at most `MAX_LABELS` robots.
            hidden: bool [K]: robots whose label is not shown.
            places: float [K, 3], m, in the scene.
        """
        while len(self.handles) > len(texts):
            self.handles.pop().remove()
        while len(self.handles) < len(texts):
            self.handles.append(
                self._server.scene.add_label(
                    f"{self._path}/{len(self.handles)}",
                    "",
                    font_screen_scale=0.8,
                    anchor="bottom-center",
                )
            )
        for cell, (label, text) in enumerate(zip(self.handles, texts, strict=True)):
            if label.text != text:
                label.text = text
            label.visible = not hidden[cell]
            label.position = tuple(self._scale * places[cell])

    def remove(self) -> None:
        """Removes all labels."""
        self.draw([], np.zeros(0, bool), np.zeros((0, 3)))


class Title:
    """The text in front of a block. Used on the page's loop only."""

    def __init__(self, server: viser.ViserServer, path: str, place: np.ndarray):
        """Writes nothing yet. `place`: float [3], in scene units."""
        self._label = server.scene.add_label(
            path, "", position=tuple(place), visible=False, anchor="center-center"
        )

    def write(self, text: str) -> None:
        """Shows a text; an empty one removes it."""
        if self._label.text != text:
            self._label.text = text
        if self._label.visible != bool(text):
            self._label.visible = bool(text)

    def remove(self) -> None:
        """Removes the handle."""
        self._label.remove()
