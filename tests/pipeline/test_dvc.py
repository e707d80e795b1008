"""The pipeline as DVC's users know it: experiments, metrics, plots, and profiles that come and go."""

import json
import re

import yaml

LCM = "lcm-w3-k20"


def restored(project):
    """The committed state again."""
    project.run("git", "checkout", "-q", "--", ".")
    project.dvc("checkout", "-q")


def iterations(project) -> dict[str, int]:
    files = (project.folder / "reports/smoke/metrics/distill").glob("*.json")
    return {file.stem: json.loads(file.read_text())["iterations"] for file in files}


def test_everything_is_up_to_date_after_a_repro(project):
    assert "up to date" in project.dvc("status")
    assert not project.stages(project.dvc("repro"))
    assert iterations(project) == {LCM: 5, "splam-w3-k100-me": 5}


def test_an_experiment_trains_what_it_says(project):
    own = f"runs.{LCM}.training.iterations"
    ran = project.stages(project.dvc("exp", "run", "-S", "training.iterations=20", "-S", f"+{own}=9"))  # +: a new key
    assert iterations(project) == {LCM: 9, "splam-w3-k100-me": 20}
    assert {f"distill@{LCM}", f"evaluate@{LCM}", "sample", "delta", "report"} <= ran
    assert not ran & {"data-build", "teacher", "trajectories@3", "references", "baselines@ddim"}
    assert "unseen.fid_1" in (diff := project.dvc("metrics", "diff")) and "991.5" in diff
    changed = json.loads(project.dvc("params", "diff", "--json"))["params.yaml"]
    assert changed == {"training.iterations": {"old": 5, "new": 20, "diff": 15}, own: {"old": None, "new": 9}}
    restored(project)


def test_a_parameter_of_one_run_leaves_the_others(project):
    path = project.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["runs"][LCM]["skip"] = 40
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    changed = re.findall(r"^(\S+@\S+):$", project.dvc("status"), re.MULTILINE)
    assert f"distill@{LCM}" in changed and "distill@splam-w3-k100-me" not in changed
    restored(project)


def test_metrics_show_prints_fids_by_run_dataset_and_steps(project):
    shown = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]
    assert shown[f"reports/smoke/metrics/evaluate/{LCM}.json"]["data"]["unseen"]["fid_1"] == 995.5


def test_plots_show_has_losses_and_figures(project):
    shown = json.loads(project.dvc("plots", "show", "--json"))["data"]
    figures = {f"reports/smoke/figures/figure{name}.csv" for name in ("2a", "2b", "2c", "3b")}
    assert figures <= set(shown) and any("losses" in name for name in shown), list(shown)


def test_another_profile_and_back_leaves_no_trace(project):
    for profile, *targets in (("rehearsal", f"evaluate@{LCM}"), ("smoke",)):
        project.run("make", "-s", "switch", f"PROFILE={profile}")
        project.compose(profile)
        ran = project.stages(project.dvc("repro", *targets))
    assert ran == {"report", "html"}  # their outputs lie in git alone; all else comes from the run cache
    assert project.run("git", "status", "--porcelain", "--untracked-files=no") == ""
