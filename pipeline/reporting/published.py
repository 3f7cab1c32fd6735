"""Published results to compare a run with, each with its source and its differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A publication."""

    text: str
    url: str


_WORLD_MODELS = Source("Ha & Schmidhuber 2018, arXiv 1803.10122", "https://arxiv.org/abs/1803.10122")
_REPRODUCTION = Source("Tallec, Blier & Kalainathan 2018", "https://ctallec.github.io/world-models/")
_AUTHORS_LOG = Source(
    "github.com/hardmaru/WorldModelsExperiments, doomrnn", "https://github.com/hardmaru/WorldModelsExperiments"
)
_JAX_REPRODUCTION = Source("github.com/Sha01in/world-models-jax", "https://github.com/Sha01in/world-models-jax")
_ATTENTION_AGENT = Source("Tang, Nguyen & Ha 2020, arXiv 2003.08165", "https://arxiv.org/abs/2003.08165")
_ATTENTION_NEURON = Source("Tang & Ha 2021, arXiv 2109.02869", "https://arxiv.org/abs/2109.02869")
_PPO = Source("github.com/xtma/pytorch_car_caring", "https://github.com/xtma/pytorch_car_caring")
_MEASURED = (
    "its published weights, measured by this project on tracks 0 to 99 of CarRacing-v3, with Gymnasium's rendering"
)


@dataclass(frozen=True)
class PublishedScore:
    """A published score over test episodes.

    Attributes:
        name: Name of the agent.
        source: Publication of the score.
        mean, sd: Mean and standard deviation of the returns.
        episodes: Number of episodes; None if the source does not state it.
        differs: Differences from a run of this pipeline, in words.
    """

    name: str
    source: Source
    mean: float
    sd: float
    episodes: int | None
    differs: str


@dataclass(frozen=True)
class PublishedScale:
    """Scale of the paper's run.

    Attributes:
        episodes: Number of episodes collected with a random policy.
        population_size, candidate_episodes, generations: Parameters of its CMA-ES.
        env_steps: Environment steps of its evolution.
        hours, cores: Time of its evolution in hours, and its number of cores.
        test_episodes: Number of test episodes of its score.
    """

    episodes: int
    population_size: int
    candidate_episodes: int
    generations: int
    env_steps: int
    hours: int
    cores: int
    test_episodes: int


@dataclass(frozen=True)
class Published:
    """Published results on one environment.

    Attributes:
        ours: Environment of a run of this pipeline, in words, to compare with the published ones.
        scores: Published scores, the paper's own first.
        curve: Pairs (generation, mean return of the CMA mean) of the paper's run; empty if it is not published.
        curve_episodes: Number of episodes behind each point of the curve.
        scale: Scale of the paper's run; None if it has no environment steps to compare with.
    """

    ours: str
    scores: tuple[PublishedScore, ...]
    curve: tuple[tuple[int, float], ...] = ()
    curve_episodes: int = 0
    scale: PublishedScale | None = None

    def curve_env_steps(self, generation: int) -> float:
        """Environment steps of the paper's run up to a generation, assuming generations of equal length."""
        assert self.scale is not None, "a curve has a scale"
        return self.scale.env_steps * generation / self.scale.generations


# Published results by environment ID.
PUBLISHED: Mapping[str, Published] = {
    "CarRacing-v3": Published(
        ours="CarRacing-v3 of Gymnasium, in its own rendering",
        scores=(
            PublishedScore(
                "World Models: V, M and a linear controller",
                _WORLD_MODELS,
                mean=906,
                sd=21,
                episodes=100,
                differs="CarRacing-v0 of OpenAI Gym; controller chosen from 1,800 generations of 64 x 16 episodes",
            ),
            PublishedScore(
                "World Models: V only, linear controller on z",
                _WORLD_MODELS,
                mean=632,
                sd=251,
                episodes=100,
                differs="CarRacing-v0; no MDN-RNN",
            ),
            PublishedScore(
                "World Models: V only, controller with a hidden layer",
                _WORLD_MODELS,
                mean=788,
                sd=141,
                episodes=100,
                differs="CarRacing-v0; no MDN-RNN",
            ),
            PublishedScore(
                "PyTorch reproduction: trained MDN-RNN",
                _REPRODUCTION,
                mean=860,
                sd=120,
                episodes=None,
                differs="CarRacing-v0; whole frame with the status bar, z is mu, a smaller CMA-ES than the paper's",
            ),
            PublishedScore(
                "PyTorch reproduction: untrained MDN-RNN",
                _REPRODUCTION,
                mean=870,
                sd=120,
                episodes=None,
                differs="as above, the MDN-RNN with its initial weights",
            ),
            PublishedScore(
                "AttentionAgent",
                _ATTENTION_AGENT,
                mean=914,
                sd=15,
                episodes=100,
                differs="CarRacing-v0; no V and no M: self-attention over patches of the frame, evolved by CMA-ES",
            ),
            PublishedScore(
                "AttentionAgent, measured on v3", _ATTENTION_AGENT, mean=881.1, sd=90.1, episodes=100, differs=_MEASURED
            ),
            PublishedScore(
                "AttentionNeuron, measured on v3",
                _ATTENTION_NEURON,
                mean=891.0,
                sd=62.6,
                episodes=100,
                differs=_MEASURED,
            ),
            PublishedScore("PPO, measured on v3", _PPO, mean=829.4, sd=134.9, episodes=100, differs=_MEASURED),
        ),
        curve=((25, 823.0), (50, 867.0), (200, 880.0), (500, 891.0), (1800, 900.5)),
        curve_episodes=1024,
        scale=PublishedScale(
            episodes=10_000,
            population_size=64,
            candidate_episodes=16,
            generations=1800,
            env_steps=1_720_000_000,
            hours=1119,
            cores=64,
            test_episodes=100,
        ),
    ),
    # Its evolution ran in dreams, whose returns are no scores: there is no curve.
    "TakeCover": Published(
        ours="TakeCover of ViZDoom at skill 4, one tic a step",
        scores=(
            PublishedScore(
                "World Models: evolved in dreams at temperature 1.15",
                _WORLD_MODELS,
                mean=1092,
                sd=556,
                episodes=100,
                differs="DoomTakeCover-v0 of OpenAI Gym, 640x480; 1,800 generations of 64 x 16 dreams",
            ),
            PublishedScore(
                "World Models: the authors' weights, their log",
                _AUTHORS_LOG,
                mean=973,
                sd=540,
                episodes=100,
                differs="the same game; the weights that the authors published",
            ),
            PublishedScore(
                "World Models: the authors' weights in a port",
                _JAX_REPRODUCTION,
                mean=991,
                sd=507,
                episodes=100,
                differs="TakeCover of ViZDoom; other 100 games gave 923, 955 and 1,031",
            ),
            PublishedScore(
                "JAX reproduction: own V and M, the best policy of 7",
                _JAX_REPRODUCTION,
                mean=840,
                sd=524,
                episodes=100,
                differs="TakeCover of ViZDoom; M trained on 1,000 games of its agent too; 801.5 over 400 games",
            ),
            PublishedScore(
                "Random actions",
                _WORLD_MODELS,
                mean=210,
                sd=108,
                episodes=100,
                differs="DoomTakeCover-v0; a new action each tic",
            ),
        ),
    ),
}
