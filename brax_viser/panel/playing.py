"""Describes what the live robots do: learn in a training, or follow a policy that is played. Pure
functions."""

from brax_viser.host.progress import count, waited
from brax_viser.panel.view import PanelView


def on_screen(view: PanelView) -> str:
    """Says which step is on screen, and how old it is; empty before the first."""
    stream = view.stream
    if stream.step is None:
        return ""
    shown = f"on screen: step {count(stream.step)}"
    if view.control.mode == "realtime" and not (view.paused or stream.following):
        shown += f", {stream.age:.0f} s ago"
    return shown


def played(view: PanelView) -> tuple[str, str]:
    """Returns the state, and more about it, while a policy is played and nothing is trained."""
    if not view.control.streaming:
        return "Streaming is off", "the policy plays on unseen"
    if view.progress.phase in ("waiting", "compiling"):
        return "Compiling a step of the robots", waited(view.progress)
    return "The policy plays", on_screen(view)
