"""The page lives in a notebook: in a frame, beside a running event loop, with its interrupts."""

import functools
import http.server
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import IPython.display
import nbclient
import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from brax_viser import Viewer
from tests.conftest import eventually
from tests.support import Probe

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def test_the_example_runs_and_shows_the_page_and_what_was_learned(tmp_path):
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown, trained = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    displays = [output.data["text/html"] for output in shown if "data" in output]
    frames = [html for html in displays if "<iframe" in html]
    assert len(frames) == 1 and "http://127.0.0.1:" in frames[0]
    assert not any("viser" in html for html in displays if html not in frames), "its own banner"
    results = [output for output in trained if output.output_type == "execute_result"]
    assert len(results) == 1 and "." in results[0].data["text/plain"]


@pytest.fixture
def kernel() -> Iterator[tuple[Any, BlockingKernelClient]]:
    manager, client = start_new_kernel(kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_kernels_interrupt_ends_a_held_training_and_a_cell_run_again_leaves_one_viewer(kernel):
    manager, client = kernel

    def run(code: str, heard: "queue.SimpleQueue[str] | None" = None) -> dict[str, Any]:
        def output(message: Any) -> None:
            if heard is not None and message["msg_type"] == "stream":
                heard.put(message["content"]["text"])

        return client.execute_interactive(code, timeout=300, output_hook=output)["content"]

    def told(code: str) -> str:
        heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert run(code, heard)["status"] == "ok"
        return heard.get(timeout=60)

    cell = """
import jax, jax.numpy as jnp
from brax import envs
from brax_viser import VisualizedEnv
env = VisualizedEnv(envs.get_environment("inverted_pendulum", backend="spring"), grid=(2, 1))
"""
    assert run(cell)["status"] == "ok"
    url = told("print(env.viewer.url)")
    for _ in range(3):
        assert run(cell)["status"] == "ok"
    assert told("print(env.viewer.url)") == url, "the page stays where it is"

    def interrupt() -> None:
        assert "held" in heard.get(timeout=240)
        time.sleep(1.0)
        manager.interrupt_kernel()

    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=interrupt, daemon=True).start()
    held = """
step = jax.jit(jax.vmap(env.step))
state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 2))
state = jax.block_until_ready(step(state, jnp.zeros((2, 1))))
env.viewer.pause()
print("held", flush=True)
for _ in range(1_000_000):
    state = jax.block_until_ready(step(state, jnp.zeros((2, 1))))
"""
    ended = run(held, heard)
    assert ended["status"] == "error"
    assert told("print(env.viewer.stats().held)") == "False\n"


def test_the_page_opens_in_a_frame_of_another_site_which_gets_no_cookies(
    chromium, tmp_path, monkeypatch
):
    shown: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    with Viewer(port=0) as viewer:
        viewer.show_in_notebook(height=700)
        frame = f'<iframe src="{shown[0].src}" width="900" height="{shown[0].height}"></iframe>'
        (tmp_path / "index.html").write_text(frame)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
            threading.Thread(target=site.serve_forever, daemon=True).start()
            page = chromium.new_page()
            page.goto(f"http://localhost:{site.server_port}/")  # another site than 127.0.0.1
            eventually(
                lambda: page.wait_for_timeout(100) or Probe(viewer).shared.control.watched, "open"
            )
            box = page.frame_locator("iframe").get_by_label("Streaming")
            box.wait_for(timeout=120_000)
            box.click()
            eventually(lambda: page.wait_for_timeout(100) or not viewer.streaming, "it steers")
            page.close()
            site.shutdown()
