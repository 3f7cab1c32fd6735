"""The size of the report's page."""

from __future__ import annotations

import numpy as np

from pipeline.config.presets import load_config
from pipeline.envs.registry import make_environment
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Resources
from pipeline.models import weights
from pipeline.models.controller import ControllerShape
from pipeline.rollouts.film import film
from pipeline.rollouts.jobs import RolloutJob
from pipeline.rollouts.policies import make_policy
from pipeline.rollouts.recording import record_episode
from pipeline.stages import report
from pipeline.storage.local import LocalStore
from tests.made_run import make_config, put_data, put_evaluation, put_metrics


def test_page_of_a_run_like_tiny_is_small(local_store: LocalStore, executor: InProcessExecutor) -> None:
    """With a real film of the preset's length, and real frames in the dream."""
    tiny = load_config("tiny", ["rollouts.precision=float32"])  # V is not calibrated for int8
    vae, mdnrnn = weights.new_vae(tiny.agent), weights.new_mdnrnn(tiny.agent, 3)
    rng = np.random.default_rng(0)
    steps = round(50 * tiny.evaluate.film_seconds)
    parameters = rng.normal(0, 0.1, ControllerShape.of_agent(tiny.agent, 3).num_parameters).astype(np.float32)
    job = RolloutJob("test", 0, 0, 0, track=1, noise_seed=1, parameters=parameters, max_steps=steps)
    made = executor.run(
        film, tiny.env, tiny.agent, weights.to_bytes(vae), weights.to_bytes(mdnrnn), job,
        resources=Resources(), on_update=print,
    )  # fmt: skip
    assert made.info["steps"] == steps
    env = make_environment(tiny.env)
    policy = make_policy(tiny.collect, tiny.agent, env, rng)
    seen = record_episode(env, policy, episode_id=0, track=1, max_actions=300).frames
    put_data(local_store, make_config(), [len(seen)] * 6, seen)
    put_metrics(local_store)
    put_evaluation(local_store, 6, {"mean": [100.5, 250.25, 300.0]}, video=made.video)
    report.run(make_config(), local_store, executor)
    assert len(seen) > 240, "the dream is of the usual length"
    assert len(local_store.read("report/index.html")) < 2e6
