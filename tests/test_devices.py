"""Several devices in one process: the trainer shards its batch, and the page shows one batch."""

import os
import subprocess
import sys
import textwrap

SCRIPT = """
    import functools, threading, time
    import jax, numpy as np
    from brax import envs
    from brax.training.agents.ppo import networks, train as ppo
    from brax_viser import Viewer, VisualizedEnv
    from tests.conftest import Page, eventually
    from tests.support import Probe, source_of

    assert jax.local_device_count() == 4
    settings = dict(
        num_timesteps=8_000, num_envs=16, episode_length=60, unroll_length=5, batch_size=16,
        num_minibatches=4, num_updates_per_batch=2, seed=3, run_evals=False,
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=(8,), value_hidden_layer_sizes=(8,),
        ),
    )

    def train(env):
        _, params, _ = ppo.train(environment=env, **settings)
        return jax.tree.leaves(jax.device_get(params))

    bare = functools.partial(envs.get_environment, "inverted_pendulum", backend="spring")
    with Viewer(port=0, mode="every_step") as viewer:
        page = Page(viewer)
        env = VisualizedEnv(bare(), grid=(4, 3), viewer=viewer)
        viewer.select([15, 2, 9, 4, 0, 13, 7, 6, 10, 1, 12])
        hold, learned = Probe(viewer).shared.hold, []
        frames = []
        Probe(viewer).watch_packets(lambda packets: frames.extend(p.open() for p in packets))
        viewer.pause()  # at its very first step
        training = threading.Thread(target=lambda: learned.extend(train(env)))
        training.start()

        def steps():
            of = source_of(env).rollouts["train"].steps.of
            return [of[shard].env_steps for shard in range(4)]

        def held_at(step):
            parts = [hold._parts.get(("train", shard)) for shard in range(4)]
            return all(p and p.blocked for p in parts) and steps() == [step] * 4

        eventually(lambda: held_at(1), "all four devices are held at their first step", 300)
        viewer.step(3)
        eventually(lambda: held_at(4), "they go on by three steps, and are held again")
        time.sleep(0.3)
        assert held_at(4), steps()
        viewer.resume()
        training.join()
        assert Probe(viewer).shared.fault is None, Probe(viewer).shared.fault
        stats = viewer.stats()
        assert stats.streams["train"].num_envs == 16, stats
        assert stats.drawn_envs == (15, 2, 9, 4, 0, 13, 7, 6, 10, 1, 12), stats
        assert stats.env_steps == 500, stats
        drawn = [i for frame in frames if frame.env_steps == 4 for i in frame.env_index.tolist()]
        assert sorted(drawn) == sorted(stats.drawn_envs), "an env is drawn twice, or by no device"
        assert all(len(set((f.env_index // 4).tolist())) <= 1 for f in frames), "of two devices"
        page.close()
    for ours, stock in zip(learned, train(bare()), strict=True):
        np.testing.assert_array_equal(ours, stock)
    print("identical")
"""


def test_four_devices_form_one_batch_and_are_held_together_under_stock_ppo():
    environ = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "identical" in done.stdout, done.stdout + done.stderr
