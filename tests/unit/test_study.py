"""Studies: arms from files and from the command line, shared stages, and the runs of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError, LeaseError
from pipeline.cli.main import main
from pipeline.cli.run import run_config
from pipeline.cli.study import runs_at_once
from pipeline.config.study import config_of, dump_study, extended, load_study, study_names
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest
from pipeline.studies import trials as trials_module
from pipeline.studies.plan import STUDY, trials_of
from pipeline.studies.trials import is_evaluated, perform, progress
from tests.counting import counting_config
from tests.e2e.command import outcome

ONE_ARM = "base: {}\nseeds: [1]\narms: {{trained: {{}}}}\nname: two-arms\n"


def read_files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def study_file(folder: Path, text: str = "", **changes: Any) -> str:
    """A study of two arms and two seeds on the counting environment."""
    values = counting_config(changes).model_dump_json()
    path = folder / "two-arms.yaml"
    arms = "  trained: {}\n  random: {mdnrnn.init: random}\n  wide: {evolve.sigma: 0.3}\n"
    path.write_text(text or f"base: {values}\nseeds: [1, 2]\narms:\n{arms}")
    return str(path)


@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_are_valid(name: str) -> None:
    study = load_study(name)
    assert len(study.seeds) >= 3 and study.early_stopping is None
    trials = trials_of(study)
    assert len({trial.folder for trial in trials}) == len(study.arms) * len(study.seeds)
    budgets = {trial.config.evolve.generations * trial.config.evolve.population_size for trial in trials}
    assert len(budgets) == 1, "an equal budget"


def test_ablation_has_the_arms_of_the_paper_and_shares_v_per_seed() -> None:
    trials = trials_of(load_study("ablation"))
    full, untrained, z_only, hidden = (trial.config for trial in trials[:4])
    assert (full.mdnrnn.init, untrained.mdnrnn.init) == ("trained", "random")
    assert (z_only.controller.features, z_only.controller.hidden_size) == ("z", 0)
    assert hidden.controller.features == "z" and hidden.controller.hidden_size > 0
    shared = [[stage.command for stage in trial.shared] for trial in trials[:4]]
    assert all(names[:3] == ["collect", "train-vae", "encode"] for names in shared)
    by_seed = {trial.seed: {stage.folder for stage in trial.shared[:3]} for trial in trials}
    assert len(set().union(*by_seed.values())) == 9, "nothing is shared across seeds"


def test_preset_is_varied_in_every_combination() -> None:
    study = load_study("smoke", ["vae.epochs=1"], ["mdnrnn.init=trained,random", "evolve.sigma=0.1,0.2"], [3, 4])
    assert [*study.arms] == [
        "mdnrnn.init=trained+evolve.sigma=0.1", "mdnrnn.init=trained+evolve.sigma=0.2",
        "mdnrnn.init=random+evolve.sigma=0.1", "mdnrnn.init=random+evolve.sigma=0.2",
    ]  # fmt: skip
    config = config_of(study, "mdnrnn.init=random+evolve.sigma=0.2", 4)
    assert (config.mdnrnn.init, config.evolve.sigma, config.vae.epochs, config.seed) == ("random", 0.2, 1, 4)
    assert [*load_study("smoke", seeds=[1, 2]).arms] == ["smoke"], "one arm, several seeds"
    assert study.name == "smoke-study", "its folder is not that of the preset"


def test_study_goes_on_with_its_earlier_arms_and_seeds() -> None:
    saved = load_study("tiny", varied=["vae.epochs=1,2"], seeds=[1, 2])
    assert extended(saved, saved) == saved
    third = extended(saved, load_study("tiny", varied=["vae.epochs=2,3"], seeds=[3, 1]))
    assert third.seeds == [1, 2, 3]
    assert [*third.arms] == ["vae.epochs=2", "vae.epochs=3", "vae.epochs=1"]
    renamed = saved.model_copy(update={"arms": {"short": {"vae.epochs": 1}, "long": {"vae.epochs": 2}}})
    assert [*extended(saved, renamed).arms] == ["short", "long"]


def test_as_many_runs_as_fit_are_made_at_once() -> None:
    # A generation of laptop has 128 episodes, in micro-batches of 8.
    trials = trials_of(load_study("laptop", seeds=[1, 2]))
    assert [runs_at_once(trials, cpus) for cpus in (1, 2, 31, 32, 64)] == [1, 1, 1, 2, 4]
    few = trials_of(load_study("laptop", ["execution.workers=32"], seeds=[1, 2]))
    assert [runs_at_once(few, cpus) for cpus in (16, 64)] == [1, 2]
    alone = trials_of(load_study("smoke", ["execution.executor=in-process"], seeds=[1, 2]))
    assert runs_at_once(alone, 8) == 4, "by the two threads of a training"
    dreams = trials_of(load_study("takecover-laptop", ["dream.micro_batch=128"], seeds=[1, 2]))
    assert runs_at_once(dreams, 16) == 2, "1,024 dreams in micro-batches of 128"


def test_saved_study_needs_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 9\nvae: {epochs: 3}\n")
    file = tmp_path / "study.yaml"
    file.write_text("base: base.yaml\nseeds: [1]\noverrides: {evolve.sigma: 0.3}\narms:\n  a: {vae.epochs: 4}\n")
    study = load_study(str(file), ["evolve.sigma=0.4"])
    (tmp_path / "saved.yaml").write_text(dump_study(study))
    expected = config_of(study, "a", 1)
    (tmp_path / "base.yaml").unlink()
    again = load_study(str(tmp_path / "saved.yaml"))
    assert config_of(again, "a", 1) == expected
    assert expected.evolve.sigma == 0.4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: smoke\nseeds: []\narms: {a: {}}", "seeds"),
        ("base: smoke\nseeds: [1, 1]\narms: {a: {}}", "names a seed twice"),
        ("base: smoke\nseeds: [1]\narms: {}", "arms"),
        ("base: smoke\nseeds: [1]\narms: {a/b: {}}", "arms.a/b: expected a name"),
        ("base: smoke\nseeds: [1]\narms: {a: {vae.epoch: 1}}", "arm a: .*unknown key vae.epoch. Did you mean epochs"),
        ("base: smokey\nseeds: [1]\narms: {a: {}}", "smokey"),
        ("base: smoke\nseeds: [1]\narm: {a: {}}\narms: {a: {}}", "arm: "),
        ("base: smoke\nseeds: [1]\narms: {a: {}}\nearly_stopping: {}", "grace_generations"),
        ("base: smoke\nseeds: [1]\narms: {a: {seed: 2}}", "arm a: seed is set by the study"),
        ("base: smoke\nseeds: [1]\narms: {a: {vae.epochs: 3}, b: {vae.epochs: 3}}", "arms a and b are the same"),
        ("base: smoke\nseeds: [1]\narms: {a: {}, b: {tracks.test.start: 7}}", "different tests: tracks.test differs"),
    ],
)
def test_errors_of_a_study_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(study_file(tmp_path, text))


def test_errors_of_the_command_line_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--vary mdnrnn.init=: expected KEY=VALUE,VALUE"):
        load_study("smoke", varied=["mdnrnn.init="])
    with pytest.raises(ConfigError, match="has arms of its own"):
        load_study(study_file(tmp_path), varied=["seed=1,2"])
    with pytest.raises(ConfigError, match=r"neither a preset nor a YAML file.*Studies: ablation"):
        load_study("ablatoin")
    with pytest.raises(ConfigError, match="smoke with one seed is one run, not a study"):
        load_study("smoke")


def test_folder_with_a_run_is_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("name: other")
    assert main(["study", study_file(tmp_path), "--run-dir", str(tmp_path)]) == 2
    assert f"{tmp_path} holds a run, not a study: choose another --run-dir" in capsys.readouterr().err
    assert not (tmp_path / "study.yaml").exists()


def test_runs_share_stages_up_to_their_first_difference(tmp_path: Path) -> None:
    trials = {trial.name: trial for trial in trials_of(load_study(study_file(tmp_path)))}
    shared = {name: [stage.prefix for stage in trial.shared] for name, trial in trials.items()}
    assert shared["trained/seed-1"] == shared["wide/seed-1"] == ["rollouts", "vae", "latents", "mdnrnn"]
    assert shared["random/seed-1"] == ["rollouts", "vae", "latents"], "its M is another"
    first = trials["trained/seed-1"].shared
    assert [stage.folder for stage in first[:3]] == [stage.folder for stage in trials["random/seed-1"].shared]
    assert first[0].folder != trials["trained/seed-2"].shared[0].folder
    assert first[3].inputs == tuple(stage.folder for stage in first[:3])
    # Every run that makes or resumes it uses one config.
    assert trials["random/seed-1"].shared[0].config == trials["trained/seed-1"].config


def test_shared_stages_are_computed_once_and_referenced(tmp_path: Path) -> None:
    study_dir = str(tmp_path / "study")
    study = load_study(study_file(tmp_path), seeds=[1])
    trials = trials_of(study)
    ran: list[tuple[str, str]] = []

    def run(config: Any, location: str, command: str, reuse: list[str]) -> int:
        ran.append((location.removeprefix(f"{study_dir}/").rpartition("-")[0] or location, command))
        return run_config(config, location, command, reuse)

    for trial in trials:
        perform(trial, study_dir, run)
        assert is_evaluated(trial, study_dir)
    made = [command for place, command in ran if place.startswith("shared")]
    assert made == ["collect", "train-vae", "encode", "train-mdnrnn"], "each once"
    for trial in trials:
        folder = tmp_path / "study" / trial.folder
        assert not [*(folder / "rollouts").glob("data/*")]
        rows = [*progress(trial, study_dir)]
        assert [row["generation"] for row in rows] == [2.0]
    straight = tmp_path / "straight"
    run_config(trials[1].config, str(straight), "run")
    assert outcome(straight) == outcome(tmp_path / "study" / trials[1].folder)

    LocalStore(study_dir).write(STUDY, dump_study(study).encode())
    assert main(["storage", "copy", study_dir, str(tmp_path / "results"), "--results"]) == 0
    for name in ("study", "results"):
        assert main(["compare", str(tmp_path / name), "--out", str(tmp_path / f"of-{name}")]) == 0
    first, second = (tmp_path / f"of-{name}" / "episodes.csv" for name in ("study", "results"))
    assert first.read_text() == second.read_text().replace(str(tmp_path / "results"), study_dir)


def test_added_arms_reuse_stages_of_earlier_runs(tmp_path: Path) -> None:
    study_dir, file = str(tmp_path / "study"), study_file(tmp_path)
    (alone,) = trials_of(load_study(study_file(tmp_path, ONE_ARM.format(counting_config().model_dump_json()))))
    assert alone.shared == ()
    perform(alone, study_dir, run_config)
    before, data = read_files(tmp_path / "study" / alone.folder), "rollouts/data"
    for trial in trials_of(load_study(file, seeds=[1])):
        perform(trial, study_dir, run_config)
    shared = list((tmp_path / "study" / "shared").glob(f"*/{data}/*"))
    assert shared == [], "the episodes of the first run serve all"
    after = read_files(tmp_path / "study" / alone.folder)
    assert all(after[path] == content for path, content in before.items() if "/data/" in path)


def test_shared_stage_resumes_after_a_change_of_the_study(tmp_path: Path) -> None:
    study_dir = tmp_path / "study"
    (first, *_) = trials_of(load_study(study_file(tmp_path), seeds=[1]))
    collect = first.shared[0]
    run_config(collect.config, str(study_dir / collect.folder), "collect")
    (study_dir / collect.folder / "rollouts" / "MANIFEST.json").unlink()
    # The first arm, whose config began the stage, has changed.
    (changed, *_) = trials_of(load_study(study_file(tmp_path), ["evolve.population_size=6"], seeds=[1]))
    assert changed.shared[0].folder == collect.folder and changed.shared[0].config != collect.config
    perform(changed, str(study_dir), run_config)
    assert is_evaluated(changed, str(study_dir))


def test_run_waits_while_another_computes_a_shared_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trial, *_) = trials_of(load_study(study_file(tmp_path), seeds=[1]))
    tried: list[str] = []
    monkeypatch.setattr(trials_module, "_WAIT_S", 0.0)

    def run(config: Any, location: str, command: str, reuse: list[str]) -> int:
        tried.append(command)
        if len(tried) < 3:
            raise LeaseError("another driver has it")
        return run_config(config, location, command, reuse)

    perform(trial, str(tmp_path / "study"), run)
    assert tried[:4] == ["collect", "collect", "collect", "train-vae"]
    assert read_manifest(LocalStore(tmp_path / "study" / trial.folder), "report") is not None


def test_comparison_needs_an_evaluated_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", study_file(tmp_path), "--run-dir", str(tmp_path / "study"), "--only-compare"]) == 1
    assert "no run of the study" in capsys.readouterr().err
