"""Parameters: composing a profile, and one readable line for everything that is wrong with it."""

import re
import shutil

import pytest

from splam import profile as composing
from splam.config import ROOT, Params, ParamsError, load_params, parse
from splam.profile import CONF, compose

SD = ("sd15-w3", "sd15-w8", "sd21-w8")


def profile(name: str, *overrides: str) -> Params:
    return parse(compose(name, overrides), name)


@pytest.fixture
def conf(tmp_path):
    """The repository's profiles, to which a test may add its own."""
    return shutil.copytree(CONF, tmp_path / "profile")


@pytest.mark.parametrize("name", ["tiny", "smoke", "rehearsal", "rehearsal-night", "sd15-night", *SD])
def test_every_profile_composes(name):
    params = profile(name)
    assert params.profile == name and params.runs and params.baselines


def test_every_run_has_its_name_seed_and_whole_training():
    params = profile("smoke", "seed=3", "runs.lcm-w3-k20.training.ema_decay=0.5")
    run, other = params.runs["lcm-w3-k20"], params.runs["splam-w3-k20"]
    assert (run.name, run.seed, run.training.iterations, run.training.ema_decay) == ("lcm-w3-k20", 3, 5, 0.5)
    assert other.training.ema_decay == params.training.ema_decay == 0.95


def test_mappings_merge_lists_replace_and_null_takes_out(conf):
    (conf / "mine.yaml").write_text(
        "extends: smoke\nevaluation: {steps: [2]}\nbaselines: {unipc: null}\npictures: {gallery_baselines: []}\n"
    )
    content = compose("mine", ["training.iterations=7", "trajectories.guidance_scales=[3, 8.0]"], conf)
    assert content["evaluation"]["steps"] == [2] and "unipc" not in content["baselines"]
    assert content["training"]["iterations"] == 7 and content["training"]["batch_size"] == 16
    assert str(content["trajectories"]["guidance_scales"]) == "[3, 8]"  # as the names of files have them


def test_a_profile_is_written_and_read_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(composing, "PARAMS", tmp_path / "params.yaml")
    composing.main(["smoke"])
    assert "5 distillations" in capsys.readouterr().out
    assert "\nprofile: smoke\n" in (tmp_path / "params.yaml").read_text()  # a line that the Makefile looks for
    assert load_params(tmp_path / "params.yaml") == profile("smoke")
    assert load_params(tmp_path / "params.yaml", seed=5).runs["lcm-w3-k20"].seed == 5
    with pytest.raises(SystemExit, match="training.loss = 'l3': .*'huber'"):
        composing.main(["smoke", "--set", "training.loss=l3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.iteratoins=3", r"training: unknown key 'iteratoins'; did you mean 'iterations'\?"),
        ("training.ema_decay=1", "training.ema_decay = 1: .*less than 1"),
        ("training.condition_width=7", "training.condition_width = 7: .*multiple of 2"),
        ("data.kind=coco", "data.*'coco'.*'shapes', 'laion', 'folder'"),
        ("runs.splam-w3-k100-me.skip=50", "splam-w3-k100-me.skip = 50: .*multiple of trajectories.solver_skip"),
        ("runs.splam-w3-k100-me.skip=120", "skip = 120 takes 6 solver steps: trajectories.steps = 5 is too few"),
        ("runs.splam-w3-k100-me.guidance_scale=5", "guidance_scale = 5 is not one of trajectories.guidance_scales"),
        ("runs.lcm-w3-k20.training.gamma_law=[2, 1]", "lcm-w3-k20.*gamma_law .*are splam's; lcm's gamma is 1"),
        ("runs.lcm-w3-k20.training.source=data", "lcm-w3-k20.training.source is set for the whole profile"),
        ("training.source=latents", "training.source = latents, but there is no latents.train"),
        ("latency.run=x", "latency: no 'x'; there are: lcm-star-w8-k20, "),
        ("pictures.gallery_baselines=[dim]", r"pictures: no 'dim'; did you mean 'ddim'\?"),
        ("evaluation.datasets.lcm-w3-k20=[new]", "evaluation.datasets.lcm-w3-k20.* = 'new': .*'unseen'"),
        ("baselines.ddim.datasets=[unseen-small]", "unseen-small is measured with unseen"),
        ("evaluation.small_images=61", "small_images are the first of evaluation.images: there are fewer"),
        ("pipelines.a/b={method: a, source: b, steps: [1], guidance_scale: 1}", "pipelines.a/b.*pattern"),
        ("seed", "seed.*: Field required"),
        ("training={", "overrides training={: while parsing a flow node"),
        ("description=${", "overrides description=.*: no viable alternative at input"),
        ("training=3", "training = 3: Input should be a valid dictionary"),
        ("baselines.ddim.guidance_scales=[0.5]", "ddim.guidance_scales.0 = 0.5: .*greater than or equal to 1"),
        ("training.learning_rate=.inf", "training.learning_rate = inf: .*finite"),
        ("seed=18446744073709551616", "seed = 18446744073709551616: .*less than 4294967296"),
        ("inputs=~/data", "inputs: neither ~ nor file: is read.*: write the path out"),
        ("teacher.source=file:///models/sd", "teacher: source: neither ~ nor file: is read"),
    ],
)
def test_every_mistake_is_named(override, message):
    with pytest.raises(ParamsError, match=message):
        compose("smoke", [override])


def test_pictures_come_from_what_their_kind_says():
    for kind, needed in (("folder", "folder"), ("laion", "shards")):
        with pytest.raises(ParamsError, match=f"data: kind {kind} needs {needed}, and not the other"):
            compose("rehearsal", [f"data.kind={kind}", "data.folder=mine"])


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ParamsError, match="(?s)seed = 'x'.*teacher.dtype.*training.loss"):
        compose("smoke", ["training.loss=l3", "seed=x", "teacher.dtype=float16"])


def test_paths_from_images_need_no_cache_of_their_guidance_scale_or_length():
    run = "runs.splam-w3-k100-me"
    params = profile("smoke", "training.source=data", f"{run}.skip=200", f"{run}.guidance_scale=5")
    assert params.runs["splam-w3-k100-me"].skip == 200


def test_profiles_that_cannot_be_composed(conf):
    with pytest.raises(ParamsError, match="there is no .*tyni.yaml: the profiles are rehearsal, rehearsal-night, sd, "):
        compose("tyni", conf=conf)
    for content, message in {
        "extends: smoke": "extend each other: smoke -> tiny -> smoke",
        "- a": "tiny.yaml: not a mapping",
        "a: 1\na: 2": "tiny.yaml cannot be read: (.|\n)*duplicate key a\n.*line 2",
        "a:\n\tb: 1": "tiny.yaml cannot be read: (.|\n)*cannot start any token\n.*line 2",
        "seed: 1\ndescription: caf\xe9": "tiny.yaml cannot be read: 'utf-8' codec",
    }.items():
        (conf / "tiny.yaml").write_bytes(content.encode("latin-1"))
        with pytest.raises(ParamsError, match=message):
            compose("smoke", conf=conf)
    with pytest.raises(ParamsError, match="there is no .*params.yaml: compose it by `python -m splam.profile PROFILE`"):
        load_params(conf / "params.yaml")


@pytest.mark.parametrize("name", ("sd", "sd15-night", *SD))
def test_every_hyperparameter_of_training_says_where_it_is_from(name):
    section = re.search(r"^training:\n((?:  .*\n)+)", (CONF / f"{name}.yaml").read_text(), re.MULTILINE)
    settled = {"source", "checkpoint_seconds"}  # of no consequence for a result
    lines = re.findall(r"^  (\w+): (.*)$", section[1], re.MULTILINE) if section else []
    assert [key for key, rest in lines if key not in settled and not re.search("paper, |assumed", rest)] == []


def test_the_profiles_of_the_documentation_compose(conf):
    pages = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("stable-diffusion", "own-model"))
    blocks = re.findall(r"```yaml\n(.*?)```", pages, re.DOTALL)
    for block in blocks:
        (conf / "mine.yaml").write_text(block if "extends" in block else f"extends: sd15-w3\n{block}")
        parse(compose("mine", conf=conf), "mine")
    assert blocks
