"""Parameters: composing a profile, and one readable line for everything that is wrong with it."""

import argparse
import copy
from pathlib import Path

import pytest
import yaml

from splam import params
from splam.params import ParamsError, compose, load_params, resolve

RECIPE = dict(
    channels=[8, 16],
    iterations=1,
    batch_size=2,
    optimizer="adamw",
    learning_rate=1e-3,
    warmup=1,
    weight_decay=0.0,
    gradient_norm=1.0,
    ema_decay=0.9,
    bf16=False,
    seed=0,
    checkpoint_seconds=60,
)
CARD = dict(
    features="efficientnet_lite0",
    images=4,
    samplers=["ddim"],
    guidance_scales=[3],
    steps=[1],
    curve_scales=[1, 3],
    main_scale=3,
    pictures=2,
    bf16=False,
)
MODELS = {"vae": RECIPE, "unet": RECIPE, "clip": RECIPE}
BASE = {"world": {"latent_channels": 4, "text_tokens": 8, **MODELS, "card": CARD}}
PROFILE = {
    "extends": "base",
    "description": "as small as can be",
    "seed": 0,
    "teacher": {"source": "tiny"},
    "data": {"kind": "emoji", "train_draws": 1, "test_draws": 1},
    "trajectories": dict(guidance_scales=[3, 7.5], draws=8, steps=5, batch_size=4, empty_captions=0.1),
    "training": dict(
        iterations=10,
        batch_size=2,
        learning_rate=1e-3,
        warmup=0,
        weight_decay=0.0,
        gradient_norm=1.0,
        ema_decay=0.9,
        loss="huber",
        bf16=False,
        checkpoint_seconds=60,
    ),
    "runs": {
        "lcm": dict(method="lcm", guidance_scale=3, skip=20, multiple_estimation=False, seeds=[0, 1]),
        "splam-k100": dict(
            method="splam", guidance_scale=3, skip=100, multiple_estimation=True, training={"iterations": 20}
        ),
    },
    "evaluation": dict(
        features="efficientnet_lite0",
        images=4,
        small_images=2,
        curve_images=2,
        curve_steps=4,
        steps=[1, 2],
        batch_size=4,
        teacher_steps=50,
        baselines={
            "ddim": dict(scheduler="ddim", steps=[1], guidance_scales=[3, 7.5]),
            "unipc": dict(scheduler="unipc", steps=[1], guidance_scales=[3]),
        },
    ),
    "delta": dict(runs=["lcm"], images=2, skip=20, first_time=119, batch_size=2),
    "latency": dict(run="lcm", lora="lcm", steps=[1], repeats=1, batch_size=1),
    "pictures": dict(
        prompts=["a"],
        guidance_runs=["lcm"],
        lcm="lcm",
        splam="splam-k100",
        gallery=["lcm"],
        gallery_baselines=["ddim"],
    ),
}


@pytest.fixture
def conf(tmp_path):
    """A folder of profiles: base, small (the whole of the above) and larger, which extends it."""
    folder = tmp_path / "conf/profile"
    folder.mkdir(parents=True)
    larger = {"extends": "small", "runs": {"lcm": {"seeds": [5]}}, "evaluation": {"baselines": {"unipc": None}}}
    for name, content in {"base": BASE, "small": copy.deepcopy(PROFILE), "larger": larger}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_derived_sections(conf):
    composed = compose("small", conf)
    runs = ["lcm-s0", "lcm-s1", "splam-k100-s0"]
    assert composed["profile"] == "small"
    assert composed["matrix"] == {
        "scales": ["3", "7.5"],
        "latents": [],
        "runs": runs,
        "others": ["baselines-w3", "baselines-w7.5"],
        "systems": [*runs, "baselines-w3", "baselines-w7.5"],
    }
    assert list(composed["systems"]) == runs
    assert composed["systems"]["splam-k100-s0"]["distill"]["training"]["iterations"] == 20


def test_a_run_on_latents_asks_for_the_stage_that_encodes_them(conf):
    assert compose("small", conf)["inputs"] == {"latents": params.NO_LATENTS} and Path(params.NO_LATENTS).is_file()
    wanted = ["latents={images: 100, batch_size: 8}", "runs.lcm.training.source=latents"]
    composed = compose("small", conf, wanted)
    assert composed["matrix"]["latents"] == ["emoji"] and composed["inputs"] == {"latents": params.LATENTS}
    assert params.Params.model_validate(composed).latents.batches == 13
    assert compose("small", conf, wanted[:1])["matrix"]["latents"] == []  # nothing reads them


def test_a_run_depends_on_its_own_parameters_alone(conf):
    before = compose("small", conf)["systems"]
    after = compose("small", conf, ["runs.lcm.training.iterations=7", "training.checkpoint_seconds=5"])["systems"]
    assert [name for name in before if before[name] != after[name]] == ["lcm-s0", "lcm-s1"]


def test_extending_merges_dicts_replaces_lists_and_takes_nulls_out(conf):
    composed = compose("larger", conf, ["training.loss=l2"])
    assert composed["matrix"]["runs"] == ["lcm-s5", "splam-k100-s0"]
    assert list(composed["evaluation"]["baselines"]) == ["ddim"]
    assert composed["training"]["loss"] == "l2" and composed["training"]["iterations"] == 10


def test_resolve_applies_overrides(conf, tmp_path):
    params.write_params("small", conf, out=tmp_path / "params.yaml")
    loaded = load_params(tmp_path / "params.yaml")
    resolved = resolve(loaded, "splam-k100-s0")
    assert (resolved.run_name, resolved.seed, resolved.run.skip) == ("splam-k100", 0, 100)
    assert (resolved.training.iterations, resolved.training.batch_size) == (20, 2)
    with pytest.raises(ParamsError, match="no run 'lcm-s2'; there are: lcm-s0, lcm-s1, splam-k100-s0"):
        resolve(loaded, "lcm-s2")


def test_command_writes_only_what_changed(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert params.main(["small"]) == 0
    written = (tmp_path / "params.yaml").stat()
    assert params.main(["small"]) == 0
    assert (tmp_path / "params.yaml").stat().st_mtime_ns == written.st_mtime_ns
    assert (tmp_path / "params.yaml").read_text().startswith("# Composed from conf/profile/small.yaml")
    assert "as small as can be" in capsys.readouterr().out
    assert params.main(["small", "--set", "seed=3", "trajectories.draws=16"]) == 0
    assert (load_params().seed, load_params().trajectories.draws) == (3, 16)
    assert params.main(["small", "--set", "seed=x"]) == 1
    assert "seed = 'x'" in capsys.readouterr().err


def test_command_names_metrics_of_runs_that_are_no_more(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("distill/lcm-s0", "evaluate/lcm-s0", "evaluate/lcm-s7"):
        file = tmp_path / f"reports/small/metrics/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert params.main(["small"]) == 1
    assert "rm reports/small/metrics/evaluate/lcm-s7.json\n" in capsys.readouterr().err
    (tmp_path / "reports/small/metrics/evaluate/lcm-s7.json").unlink()
    assert params.main(["small"]) == 0


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.iteratoins=3", r"training.iteratoins = 3: unknown key; did you mean 'iterations'\?"),
        ("runs.lcm.skp=3", r"runs.lcm.skp = 3: unknown key; did you mean 'skip'\?"),
        ("evaluation.baselines.ddim.step=[1]", r"baselines.ddim.step = \[1\]: unknown key; did you mean 'steps'\?"),
        ("training.iterations=many", "training.iterations = 'many': .*integer"),
        ("training.loss=l3", "training.loss = 'l3': .*'l2', 'huber' or 'pseudo_huber'"),
        ("training.ema_decay=1", "training.ema_decay = 1: .*less than 1"),
        ("training.loss=null", "training.loss: missing"),
        ("runs.lcm.training.lr=1", "runs.lcm.training.lr = 1: unknown key; there are: iterations"),
        ("runs.lcm.training.warmup=-1", "runs.lcm.training.warmup = -1: .*greater than or equal to 0"),
        ("runs.splam-k100.skip=50", "runs.splam-k100.skip = 50: .*a multiple of trajectories.solver_skip = 20"),
        ("runs.splam-k100.skip=120", "runs.splam-k100.skip = 120 takes 6 .*trajectories.steps = 5 is too few"),
        ("runs.splam-k100.guidance_scale=5", r"runs.splam-k100.guidance_scale = 5: .*guidance_scales = \['3', '7.5'\]"),
        ("runs.lcm.training.snapshots=[5, 11]", "runs.lcm: snapshot 11 is after the last iteration, 10"),
        ("delta.runs=[lmc]", r"delta.runs: there is no run 'lmc'; did you mean 'lcm'\?"),
        ("latency.run=x", "latency.run: there is no run 'x'; there are: lcm, splam-k100"),
        ("latency.lora=x", "latency.lora: there is no run 'x'"),
        ("pictures.guidance_runs=[x]", "pictures.guidance_runs: there is no run 'x'"),
        ("pictures.lcm=x", "pictures.lcm: there is no run 'x'"),
        ("pictures.splam=x", "pictures.splam: there is no run 'x'"),
        ("pictures.gallery=[x]", "pictures.gallery: there is no run 'x'"),
        ("pictures.gallery_baselines=[dim]", r"there is no baseline 'dim'; did you mean 'ddim'\?"),
        ("evaluation.small_images=5", "evaluation.small_images = 5 are drawn from the first evaluation.images = 4"),
        ("data.train_drows=1", r"data.train_drows = 1: unknown key; did you mean 'train_draws'\?"),
        ("data.resolution=1", "data.resolution = 1: unknown key; there are: kind, train_draws, test_draws, every$"),
        ("data.kind=coco", "data = .*'coco' .*does not match any of the expected tags: 'emoji', 'laion'"),
        ("data.train_draws=0", "data.train_draws = 0: .*greater than 0"),
        ("runs.lcm.datasets=[unseen-small]", "runs.lcm.datasets: 'unseen-small' is measured wherever 'unseen' is"),
        ("evaluation.baselines.ddim.datasets=[unseen-small]", "baselines.ddim.datasets: 'unseen-small' is measured"),
        ("runs.lcm.training.gammas_per_path=2", "runs.lcm: training.gammas_per_path = 2 is for method splam, lcm's"),
        ("runs.lcm.training.target_gap=0.5", "runs.lcm: training.target_gap = 0.5 is for method splam"),
        ("runs.lcm.training.gamma_law=[2, 1]", r"runs.lcm: training.gamma_law = \(2.0, 1.0\) is for method splam"),
        ("runs.splam-k100.training.gamma_law=[0, 1]", "splam-k100.training.gamma_law.0 = 0: .*greater than 0"),
        ("runs.splam-k100.training.target_gap=0", "splam-k100.training.target_gap = 0: .*greater than 0"),
        ("runs.splam-k100.training.loss_weight=snr", "loss_weight = 'snr': .*'none' or 'min_snr'"),
        ("runs.lcm.training.skip_law=random", "skip_law = random needs a skip of 2 or more .* = 20, it is 20"),
        ("runs.lcm.training.solver_order=2", "runs.lcm: training.solver_order = 2 needs multiple_estimation over 2"),
        ("runs.splam-k100.training.solver_order=2", "needs its guidance_scale 3 in trajectories.second_order"),
        ("trajectories.second_order=[5]", "trajectories.second_order: 5 is not one of trajectories.guidance_scales"),
        (
            "training.source=latents",
            "runs.lcm: training.source = latents, but there is no section latents: set ",
        ),
        ("latents={images: 0, batch_size: 1}", "latents.images = 0: .*greater than 0"),
        ("inputs.latents=a", "inputs: derived, not to be set"),
        ("matrix.runs=[a]", "matrix: derived, not to be set"),
        ("inventory.data=a", "inventory: derived, not to be set"),
        ("evaluation.pipelines.a/b={}", "evaluation.pipelines.a/b.*: .*match pattern"),
        ("seed", "override 'seed' is not key=value"),
    ],
)
def test_every_mistake_is_named(conf, override, message):
    with pytest.raises(ParamsError, match=message):
        compose("small", conf, [override])


def test_what_is_encoded_once_is_the_same_for_all_runs(conf):
    wanted = ["latents={images: 8, batch_size: 8}", "runs.lcm.training={source: latents, latents: mean}"]
    with pytest.raises(ParamsError, match="runs.lcm: training.latents = mean: the latents stage encodes once, with t"):
        compose("small", conf, wanted)
    compose("small", conf, [*wanted, "training.latents=mean"])


LAION = dict(kind="laion", shards=["a.tar"], resolution=512, test_images=10, coco={"folder": "coco"})


def test_data_of_another_kind_replaces_the_first(conf):
    (conf / "sd.yaml").write_text(yaml.safe_dump({"extends": "small", "data": LAION}))
    data = compose("sd", conf, ["data.workers=2", "data.coco.seed=5"])["data"]
    assert "train_draws" not in data and (data["kind"], data["workers"], data["crop"]) == ("laion", 2, "center")
    assert data["coco"] == {"folder": "coco", "seed": 5, "image_size": 256}


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.shrads=[b]", r"data.shrads = \['b'\]: unknown key; did you mean 'shards'\?"),
        ("data.coco.floder=x", r"data.coco.floder = 'x': unknown key; did you mean 'folder'\?"),
        ("data.shards=[]", r"data.shards = \[\]: .*at least 1 item"),
        ("data.held_out_share=0", "data.held_out_share = 0: .*greater than 0"),
        ("data.crop=left", "data.crop = 'left': .*'center' or 'random'"),
        ("data.resolution=null", "data.resolution: missing"),
    ],
)
def test_mistakes_in_laion_data_are_named(conf, override, message):
    (conf / "sd.yaml").write_text(yaml.safe_dump({"extends": "small", "data": LAION}))
    with pytest.raises(ParamsError, match=message):
        compose("sd", conf, [override])


def test_all_mistakes_are_told_at_once(conf):
    with pytest.raises(ParamsError) as caught:
        compose("small", conf, ["training.loss=l3", "seed=x"])
    assert len(str(caught.value).splitlines()) == 3


def test_several_solver_steps_are_asked_of_multiple_estimation_alone(conf):
    alone = ["runs.splam-k100.multiple_estimation=false", "runs.splam-k100.skip=50", "runs.splam-k100.guidance_scale=5"]
    one_step = ["runs.splam-k100.skip=20", "runs.splam-k100.guidance_scale=5"]
    assert compose("small", conf, alone) and compose("small", conf, one_step)


def test_profiles_that_cannot_be_composed(conf):
    with pytest.raises(ParamsError, match="no profile 'huge' in .*; there are: base, larger, small"):
        compose("huge", conf)
    (conf / "base.yaml").write_text("extends: larger")
    with pytest.raises(ParamsError, match="extend each other: small -> base -> larger -> small"):
        compose("small", conf)
    (conf / "base.yaml").write_text("- a")
    with pytest.raises(ParamsError, match="base.yaml: not a mapping"):
        compose("small", conf)


def test_params_that_are_not_there(tmp_path):
    with pytest.raises(ParamsError, match="there is no .*params.yaml; compose it by `python -m splam.params PROFILE`"):
        load_params(tmp_path / "params.yaml")


FSDP = "training.sharding=fsdp"
LORA = "runs.lcm.method=lcm_lora"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([FSDP], "runs.lcm: training.sharding = fsdp needs training.processes of 2 or more, there is 1"),
        ([FSDP, "training.processes=2", LORA], "runs.lcm: training.sharding = fsdp is not for method lcm_lora"),
        ([FSDP, "training.processes=2", "training.optimizer=adamw_8bit"], "adamw_8bit keeps no sharded state"),
        (["training.condition_width=7"], "runs.splam-k100: training.condition_width = 7 must be even"),
        (["training.accumulation=0"], "training.accumulation = 0: .*greater than 0"),
        (["training.source=disk"], "training.source = 'disk': .*'cached', 'online' or 'latents'"),
        (["training.optimizer=sgd"], "training.optimizer = 'sgd': .*'adamw' or 'adamw_8bit'"),
        (["teacher.dtype=float16"], "teacher.dtype = 'float16': .*'float32' or 'bfloat16'"),
        (["training.source=online", "runs.splam-k100.skip=50"], "must be a multiple of trajectories.solver_skip = 20"),
    ],
)
def test_choices_of_scale_that_do_not_go_together_are_named(conf, overrides, message):
    with pytest.raises(ParamsError, match=message):
        compose("small", conf, overrides)


def test_online_paths_need_no_cache_of_their_guidance_scale_or_length(conf):
    compose("small", conf, ["training.source=online", "runs.splam-k100.skip=200", "runs.splam-k100.guidance_scale=5"])


def test_a_global_batch_counts_processes_and_micro_batches(conf):
    overrides = ["training.accumulation=3", "training.processes=4", FSDP]
    assert params.Params.model_validate(compose("small", conf, overrides)).training.global_batch == 2 * 3 * 4


ROW = {"name": "x", "source": "a/b", "steps": [1, 2], "guidance_scale": 1}


def test_other_pipelines_are_systems_and_have_rows_of_their_own(conf):
    overrides = [f"evaluation.pipelines.{key}={ROW | {'steps': steps}}" for key, steps in (("a", [1]), ("b", [2]))]
    matrix = compose("small", conf, overrides)["matrix"]
    assert matrix["others"] == ["baselines-w3", "baselines-w7.5", "pipeline-a", "pipeline-b"]
    assert matrix["systems"] == matrix["runs"] + matrix["others"]
    with pytest.raises(ParamsError, match="evaluation.pipelines: 'x' in 2 steps names two rows"):
        compose("small", conf, [*overrides, "evaluation.pipelines.a.steps=[1, 2]"])


def test_the_inventory_follows_the_files(conf, tmp_path):
    shard, teacher = tmp_path / "a.tar", tmp_path / "teacher"
    (conf / "sd.yaml").write_text(
        yaml.safe_dump(
            {"extends": "small", "teacher": {"source": str(teacher)}, "data": LAION | {"shards": [str(shard)]}}
        )
    )
    none = compose("sd", conf)["inventory"]
    shard.write_bytes(b"1")
    teacher.mkdir()
    some = compose("sd", conf)["inventory"]
    shard.write_bytes(b"12")
    more = compose("sd", conf)["inventory"]
    assert none == {"data": "nothing", "teacher": "nothing"} == compose("small", conf)["inventory"]
    assert some["data"] != none["data"] and some["teacher"] != none["teacher"]
    assert more["data"] != some["data"] and more["teacher"] == some["teacher"]


def test_command_lines_compose_a_profile_or_read_a_file(conf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    params.add_source_arguments(parser)

    def read(*arguments):
        return params.params_of(parser.parse_args(arguments))

    assert read("--profile", "small", "--set", "seed=3").seed == 3 and not (tmp_path / "params.yaml").exists()
    params.write_params("small", conf, ["seed=4"], tmp_path / "other.yaml")
    assert read("--params", "other.yaml").seed == 4
    with pytest.raises(ParamsError, match="--set overrides keys of a profile: name one by --profile"):
        read("--set", "seed=3")
    with pytest.raises(ParamsError, match="there is no params.yaml"):
        read()
