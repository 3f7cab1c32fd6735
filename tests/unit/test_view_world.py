"""A viewer's world without the web: the wheel changes hands, dreams begin and end, and the game is undisturbed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from pipeline.agent import Agent
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.actions import Actions, BoxActions, actions_of
from pipeline.envs.environment import action_names_of
from pipeline.envs.registry import make_environment, traits_of
from pipeline.storage.local import LocalStore
from pipeline.view import controls, wire
from pipeline.view.look_ahead import SAMPLES, SHOWN, STEPS, look_ahead
from pipeline.view.runs import Runs
from pipeline.view.world import World
from tests.counting import counting_config, episode_length, reward_of, track_and_step
from tests.made_run import (
    make_config,
    put_agent,
    put_data,
    put_evaluation,
    put_metrics,
    random_agent,
    random_controllers,
)
from tests.viewer_messages import unpacked

TRACK = 3  # of 16 steps, which end at the limit
pytestmark = pytest.mark.usefixtures("one_thread")


def make_trained(changes: Mapping[str, Any] | None = None) -> TrainedAgent:
    """An agent with random weights for the environment that counts."""
    heads = {"mdnrnn.reward_weight": 1.0, "mdnrnn.done_weight": 1.0, "dream.end_probability": 0.999}
    config = counting_config({**heads, **(changes or {})})
    return random_agent(config, random_controllers(config, ["mean"], seed=0, scale=1.0))


def make_world(**changes: Any) -> World:
    world = World(make_trained({key.replace("__", "."): value for key, value in changes.items()}))
    world.reset(TRACK)
    return world


def steps(world: World, count: int) -> list[dict[str, Any]]:
    """Status after each of the next steps."""
    found = []
    for _ in range(count):
        world.step()
        found.append(world.look().status)
    return found


def test_pictures_show_the_frame_that_v_sees_and_count_its_rewards() -> None:
    world, earned = make_world(), 0.0
    for step in range(5):
        picture = world.look()
        assert track_and_step(picture.frame) == (TRACK, step)
        np.testing.assert_array_equal(picture.scene[::4, ::4], picture.frame)  # the scene is of the same moment
        earned += reward_of(TRACK, step, world.agent.action)
        assert picture.status["return"] == pytest.approx(earned)
        assert picture.status["steps"] == step + 1
        assert (picture.z.shape, picture.h.shape) == ((5,), (7,))
        world.step()


def test_controller_drives_like_the_agent_alone_and_m_follows_a_person() -> None:
    world, alone = make_world(), Agent(make_trained({"rollouts.micro_batch": 1, "rollouts.lanes": 1}))
    alone.reset(TRACK)
    person = np.array([0.25, 0.5], np.float32)
    for step in range(8):
        taken = None if step < 3 else person
        alone.act(world.agent.frame, taken)
        np.testing.assert_array_equal(world.agent.action, alone.action)
        np.testing.assert_array_equal(world.agent.h, alone.h)
        if step == 2:
            world.hand_to("person")
            world.steer([0.25, 0.5])
        world.step()
    assert world.look().status["holder"] == "person"


def test_a_person_who_takes_the_wheel_and_touches_nothing_is_at_rest() -> None:
    world = make_world()
    world.steer([1.0, 1.0])
    world.hand_to("person")
    assert steps(world, 1)[0]["action"] == [0.0, 0.0]


def test_dream_begins_at_the_present_moment_and_the_game_resumes() -> None:
    slept, awake = make_world(), make_world()
    steps(slept, 4), steps(awake, 4)
    before = slept.look()
    slept.fall_asleep()
    at_once = slept.look()
    np.testing.assert_array_equal(at_once.z, before.z)
    np.testing.assert_array_equal(at_once.h, before.h)
    np.testing.assert_array_equal(at_once.scene, before.reconstruction)  # V's picture of the moment
    dreamt = steps(slept, 6)[-1]
    assert dreamt["dream"]["steps"] == 6 and dreamt["steps"] == before.status["steps"]
    assert dreamt["dream"]["reward"] is not None and 0 < dreamt["dream"]["end_probability"] < 1
    np.testing.assert_array_equal(slept.look().frame, before.frame)
    slept.wake_up()
    assert steps(slept, 5) == steps(awake, 5)


def test_a_person_drives_in_the_dream_too() -> None:
    world = make_world()
    world.fall_asleep()
    world.hand_to("person")
    world.steer([-0.5, 0.75])
    assert steps(world, 2)[-1]["action"] == [-0.5, 0.75]


def test_the_temperature_can_change_during_a_dream() -> None:
    def spread(temperature: float) -> float:
        world = make_world()
        world.fall_asleep()
        world.step()
        world.temperature = temperature
        moves = []
        for _ in range(20):
            before = world.look().z
            world.step()
            moves.append(np.abs(world.look().z - before).mean())
        return float(np.mean(moves))

    assert spread(0.01) < spread(1.0) / 3


def test_a_dream_in_which_m_expects_the_end_begins_again_at_the_same_moment() -> None:
    world = make_world(dream__end_probability=1e-6)
    world.fall_asleep()
    before = world.look()
    assert steps(world, 1)[0]["over"]
    world.step()
    np.testing.assert_array_equal(world.look().z, before.z)
    assert not world.over and world.dreaming
    world.wake_up()
    assert not world.over


def test_after_an_end_the_next_track_begins_and_a_dream_keeps_it() -> None:
    world = make_world()
    assert steps(world, episode_length(TRACK, 16) - 1)[-1]["over"]
    world.fall_asleep()
    assert not world.look().status["over"]
    world.step()
    world.wake_up()
    assert world.look().status["over"]
    world.step()
    assert (world.track, world.over, world.look().status["steps"]) == (TRACK + 1, False, 1)


def test_held_latents_are_decoded_and_leave_the_agent_alone() -> None:
    world = make_world()
    assert world.look().held is None
    z = [0.5, -0.5, 1.0, -1.0, 0.0]
    world.hold(z)
    picture = world.look()
    np.testing.assert_array_equal(picture.held, world.agent.decode(np.array([z], np.float32))[0])
    np.testing.assert_array_equal(picture.z, world.agent.z)
    world.hold(None)
    assert world.look().held is None


def test_numbers_that_do_not_fit_are_refused() -> None:
    world = make_world()
    with pytest.raises(ValueError, match="action of 3 numbers: expected 2"):
        world.steer([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="latents of 1 numbers: expected 5"):
        world.hold([1.0])


def test_actions_that_are_held_for_several_steps_count_once() -> None:
    world = make_world(env__action_repeat=3, mdnrnn__window=4)
    assert world.steps_per_second == pytest.approx(50 / 3)
    world.step()
    picture = world.look()
    assert track_and_step(picture.frame) == (TRACK, 3) and picture.status["steps"] == 6


def test_looking_ahead_gives_samples_and_spread_and_changes_nothing() -> None:
    world, other = make_world(), make_world()
    ahead = look_ahead(world.dream_ahead(), world.agent.decode)
    assert ahead.frames.shape[1:] == (len(SHOWN), 64, 64, 3) and ahead.frames.dtype == np.uint8
    assert ahead.apart.shape == (len(SHOWN), 64, 64, 3) and ahead.apart.any()
    assert ahead.spread.shape == (STEPS,) and (ahead.spread > 0).all()
    assert ahead.reward is not None and ahead.reward.shape == (STEPS,)
    assert ahead.end_probability is not None and ahead.end_probability.shape == (STEPS,)
    assert steps(world, 3) == steps(other, 3)
    without = make_world(mdnrnn__reward_weight=0.0, mdnrnn__done_weight=0.0)
    ahead = look_ahead(without.dream_ahead(), without.agent.decode)
    assert ahead.reward is None and ahead.end_probability is None
    without.fall_asleep()
    assert steps(without, 1)[0]["dream"] == {"steps": 1, "return": 0.0, "reward": None, "end_probability": None}


def test_a_dream_in_steps_is_the_dream_in_one_go() -> None:
    agent = make_world().agent
    whole, stepped = agent.dream(6, 0.7, samples=SAMPLES, seed=5), agent.begin_dream(0.7, samples=SAMPLES, seed=5)
    for step in range(6):
        dreamt = stepped.step()
        np.testing.assert_array_equal(dreamt.z, whole.z[:, step])
        np.testing.assert_array_equal(dreamt.action, whole.actions[:, step])
    with pytest.raises(ValueError, match="temperature 0 must be above 0"):
        stepped.temperature = 0


ACTIONS: dict[str, Actions] = {
    "choice": actions_of(spaces.Discrete(4, start=1), "A-v0"),
    "choices": actions_of(spaces.MultiDiscrete([3, 2]), "A-v0"),
    "switches": actions_of(spaces.MultiBinary(3), "A-v0"),
    "axes": BoxActions([-1.0, 0.5], [1.0, 2.0]),
    "whole numbers": BoxActions([0, 0], [10, 5], np.int64),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_kind_of_action_has_controls_and_keeps_its_meaning(name: str) -> None:
    actions = ACTIONS[name]
    described = controls.describe(actions, "A-v0")
    assert json.loads(json.dumps(described)) == described
    parts: Sequence[Any] = (
        described.get("axes")
        or described.get("switches")
        or [name for block in described["blocks"] for name in block["names"]]
    )
    assert len(parts) == actions.size
    resting = controls.at_rest(actions)
    assert actions.space.contains(actions.native(resting)) and resting.dtype == np.float32
    np.testing.assert_array_equal(actions.vector(controls.value_of(actions, resting)), resting)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = actions.random(rng)
        vector = controls.checked(actions, [float(each) for each in action])
        np.testing.assert_array_equal(vector, action)
        np.testing.assert_array_equal(actions.vector(controls.value_of(actions, vector)), vector)
    wild = controls.checked(actions, [1e6] * actions.size)
    assert actions.space.contains(actions.native(wild))
    assert (actions.low <= wild).all() and (wild <= actions.high).all()


def test_a_choice_is_named_by_its_number_and_the_car_by_what_it_does() -> None:
    (block,) = controls.describe(ACTIONS["choice"], "A-v0")["blocks"]
    assert block == {"names": ["1", "2", "3", "4"], "rest": 0, "keys": {}}
    car = controls.describe(traits_of(RunConfig().env).actions, "CarRacing-v3")
    assert [axis["name"] for axis in car["axes"]] == ["steering", "gas", "brake"]
    assert [axis["plus"] for axis in car["axes"]] == ["ArrowRight", "ArrowUp", "ArrowDown"]


@pytest.mark.parametrize(
    ("names", "rest", "keys"),
    [
        ("NOOP UP DOWN", 0, {"ArrowUp": 1, "ArrowDown": 2}),  # Atari's Freeway
        ("NOOP FIRE RIGHT LEFT RIGHTFIRE LEFTFIRE", 0, {"ArrowRight": 2, "ArrowLeft": 3}),
        ("left right forward pickup drop toggle done", 6, {"ArrowLeft": 0, "ArrowRight": 1, "ArrowUp": 2}),
        ("ATTACK+MOVE_LEFT MOVE_RIGHT TURN_RIGHT NOOP", 3, {"ArrowRight": 1}),
        ("", 1, {"ArrowLeft": 0, "ArrowRight": 2}),
        ("too few", 1, {"ArrowLeft": 0, "ArrowRight": 2}),
    ],
)
def test_names_of_choices_give_their_rest_and_their_arrows(names: str, rest: int, keys: dict[str, int]) -> None:
    named = names.split()
    count = len(named) if len(named) > 2 else 3
    actions = actions_of(spaces.Discrete(count), "A-v0")
    (block,) = controls.describe(actions, "A-v0", named)["blocks"]
    assert block == {"names": named if count == len(named) else ["0", "1", "2"], "rest": rest, "keys": keys}
    np.testing.assert_array_equal(controls.at_rest(actions, named), np.eye(count)[rest])


@pytest.mark.parametrize(
    ("env_id", "names"),
    [
        ("ALE/Freeway-v5", ["NOOP", "UP", "DOWN"]),
        ("MiniGrid-Empty-8x8-v0", ["left", "right", "forward", "pickup", "drop", "toggle", "done"]),
        ("VizdoomTakeCover-v1", ["NOOP", "MOVE_RIGHT", "MOVE_LEFT"]),
        ("CartPole-v1", []),
        ("CarRacing-v3", []),
    ],
)
def test_environments_name_their_choices(env_id: str, names: list[str]) -> None:
    env = make_environment(EnvConfig(id=env_id))
    assert action_names_of(env) == names
    env.close()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"do":"quit"}', '{"do":"step","more":1}', '{"do":"steer","number":1,"action":[NaN]}',
        '{"do":"steer","number":1,"action":[1e999]}', '{"do":"steer","number":1,"action":["1"]}',
        '{"do":"steer","number":-1,"action":[]}', f'{{"do":"hold","z":{[0] * 2000}}}', '{"do":"temperature","value":0}',
        '{"do":"speed","value":1e9}', '{"do":"track","seed":-1}', '{"do":"track","seed":4294967296}',
        '{"do":"track","seed":"../../etc"}', '{"do":"wheel","holder":"nobody"}', '{"do":"pause","on":1}', "[" * 5000,
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=":"):
        wire.read_message(text)


def test_messages_arrive_as_they_were_sent() -> None:
    assert wire.read_message('{"do":"steer","number":7,"action":[0.5,1]}') == wire.Steer(
        do="steer", number=7, action=[0.5, 1.0]
    )
    frame = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    arrays = {"frame": frame, "z": np.array([1.5, -2]), "scene": np.zeros((1200, 1600, 3), np.uint8)}
    header, blobs = unpacked(wire.to_bytes("picture", {"steps": 4}, arrays))
    assert (header["is"], header["steps"]) == ("picture", 4)
    assert blobs["frame"] == frame.tobytes()
    np.testing.assert_array_equal(np.frombuffer(blobs["z"], "<f4"), [1.5, -2])
    assert blobs["scene"].startswith(b"\xff\xd8") and len(blobs["scene"]) < 50_000  # a JPEG


def test_numbers_that_are_not_finite_arrive_as_null() -> None:
    header, _ = unpacked(wire.to_bytes("picture", {"return": math.nan, "action": [1.0, -math.inf]}))
    assert (header["return"], header["action"]) == (None, [1.0, None])


def test_run_under_way_shows_its_stage_curves_and_pictures(local_store: LocalStore) -> None:
    config = make_config()
    put_agent(local_store, config)
    (run,) = Runs(local_store.locate()).describe()["runs"]
    assert [stage["state"] for stage in run["stages"]][:2] == ["stopped", "waiting"]  # it has no driver
    assert run["now"]["title"] == "collect" and run["now"]["total"] == 6 and run["now"]["left_s"] is None
    put_data(local_store, config)
    put_metrics(local_store)
    rows = [{"step": step, "time": 100.0 + 5 * step, "fitness_mean": 1.0, "fitness_max": 2.0} for step in (1, 2)]
    rows[1]["validation_mean"] = 7.0
    local_store.write("evolution/metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    runs = Runs(local_store.locate())
    (run,) = runs.describe()["runs"]
    now = run["now"]
    assert (now["title"], now["done"], now["total"], now["rate"], now["left_s"]) == ("evolve", 2, 6, 0.2, 20.0)
    series = {(curve["title"], each["name"]): each["points"] for curve in run["curves"] for each in curve["series"]}
    assert series["C: return", "validation"] == [(2, 7.0)]
    assert len(series["V: loss", "held out"]) == 1 and len(series["V: loss", "training"]) == 2
    assert run["film"] is None and run["picture"]
    picture = runs.media(0, "picture")
    assert picture is not None and picture.startswith(b"\x89PNG")
    assert runs.media(0, "film") is None and runs.media(1, "film") is None
    put_evaluation(local_store, 6, {"mean": [1.0, 2.0], "best": [3.0, 4.0]})
    (run,) = Runs(local_store.locate()).describe()["runs"]
    assert run["film"] and run["scores"]["best"]["mean"] == 3.5 and run["now"]["title"] == "report"
    assert runs.media(0, "film") is not None
