"""Images that the policy observes: sent of the selected robot, and shown among its numbers."""

import base64
import io
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from brax_viser.device import host_call
from brax_viser.device.states import MAX_PIXELS
from brax_viser.panel import details
from tests.sample import SwiftCartPole
from tests.support import Probe
from tests.test_detail import CHOSEN, Rollout


class Seeing(SwiftCartPole):
    """A cart-pole whose policy is given two pictures of the pole, and one that is too large."""

    def reset(self, rng: jax.Array) -> Any:
        return self._seen(super().reset(rng))

    def step(self, state: Any, action: jax.Array) -> Any:
        return self._seen(super().step(state.replace(obs=state.obs["state"]), action))

    def _seen(self, state: Any) -> Any:
        across = jnp.linspace(-1, 1, 24)[None, :, None]
        light = jnp.exp(-50 * (across - state.pipeline_state.q[1]) ** 2)
        colours = jnp.array([1.0, 0.5, 0.25])
        picture = jnp.broadcast_to(light * colours, (16, 24, 3))
        obs = {
            "pixels/view_0": picture,
            "pixels/front": (255 * picture).astype(jnp.uint8),
            "pixels/large": jnp.zeros((300, 300, 3)),
            "state": state.obs,
        }
        return state.replace(obs=obs)


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("mechanism", [*host_call.MECHANISMS, host_call.LAUNCH])
def test_the_selected_robots_images_are_as_the_policy_is_given_them(viewer, monkeypatch, mechanism):
    monkeypatch.setenv(host_call.VARIABLE, mechanism)
    rollout = Rollout(viewer, Seeing("spring"))
    assert rollout.step().detail is None
    viewer.selected_env = CHOSEN
    detail = rollout.step().detail
    assert detail is not None
    obs = rollout.state.obs
    assert set(detail.images) == {"pixels/view_0", "pixels/front"}
    np.testing.assert_array_equal(detail.images["pixels/view_0"], obs["pixels/view_0"][CHOSEN])
    np.testing.assert_allclose(
        detail.images["pixels/front"], obs["pixels/front"][CHOSEN] / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(detail.observation["state"], obs["state"][CHOSEN])
    without, one = rollout.frame_bytes
    assert one - without > 4 * 2 * 16 * 24 * 3 > without
    assert one < 4 * MAX_PIXELS
    # They are not kept with the steps from which a sandbox can start.
    kept = Probe(viewer).channels["train"].recent.until(rollout.step())
    assert len(kept) == 2 and not any(step.images for step in kept)


def shown_by(html: str) -> np.ndarray:
    content = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content[1]))))


def test_a_picture_has_the_images_own_pixels():
    image = np.random.default_rng(0).random((12, 20, 3)).astype(np.float32)
    html = details.picture(image)
    np.testing.assert_array_equal(shown_by(html), (255 * image).astype(np.uint8))
    assert "20 by 12 pixels, 3 channels" in html


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 9)), (4, (8, 9)), (9, (8, 9, 3))])
def test_of_stacked_frames_the_last_one_is_shown(channels, shape):
    image = np.zeros((8, 9, channels), np.float32)
    image[..., -1] = 1.0
    shown = shown_by(details.picture(image))
    assert shown.shape == shape
    assert (shown[..., -1] == 255).all() if len(shape) == 3 else (shown == 255).all()


def test_depths_beyond_one_are_shares_of_the_largest_and_nan_is_black():
    image = np.array([[[5.0], [10.0], [np.nan]]] * 8, np.float32)
    assert shown_by(details.picture(image))[0].tolist() == [127, 255, 0]
