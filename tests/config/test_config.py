"""The declared fields, their checks and messages; parsing; the recipe's derived numbers."""

import json

import pytest
from helpers import GOLDEN

from g16net import config as config_lib
from g16net.config import FIELDS, experiments, recipe
from g16net.errors import ConfigError
from g16net.models import architecture

pytestmark = pytest.mark.once


def test_every_default_passes_its_own_check():
    config_lib.check_fields(config_lib.default())


def test_every_field_has_a_comment():
    assert all(len(field.comment) > 5 for field in FIELDS.values())


@pytest.mark.parametrize(
    "assignment, parts",
    [
        (("run.epoch", "3"), ["'run.epoch'", "Did you mean 'run.epochs'?"]),
        (("nonsense.key", "3"), ["'nonsense.key'", "Valid: "]),
        (("run.epochs", "three"), ["'run.epochs'", "whole number", "'three'", "--config.run.epochs=350"]),
        (("run.epochs", "2.5"), ["'run.epochs'", "'2.5'"]),
        (("data.flip", "maybe"), ["'data.flip'", "true or false", "'maybe'"]),
        (("eval.sizes", "a,b"), ["'eval.sizes'", "list of numbers"]),
    ],
)
def test_override_refuses(assignment, parts):
    with pytest.raises(ConfigError) as error:
        config_lib.override(config_lib.default(), [assignment])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("run.epochs", "7", 7),
        ("data.flip", "false", False),
        ("eval.sizes", "128,160", (128, 160)),
        ("eval.sizes", "(128, 160)", (128, 160)),
        ("optim.learning_rate", "1e-3", 1e-3),
        ("optim.learning_rate", "none", None),
        ("model.mean", "1,2,3", (1.0, 2.0, 3.0)),
        ("model.norm", "bn", "bn"),
    ],
)
def test_override_sets(key, text, value):
    config = config_lib.default()
    config_lib.override(config, [(key, text)])
    section, name = key.split(".")
    assert config[section][name] == value and type(config[section][name]) is type(value)
    config_lib.check_fields(config)


@pytest.mark.parametrize(
    "key, value, parts",
    [
        ("model.norm", "ln_np", ["'model.norm'", "'ln_np'", "Did you mean 'ln_pn'?"]),
        ("model.variant", "b0", ["'model.variant'", "Did you mean 'B0'?"]),
        ("run.epochs", 0, ["'run.epochs'", "at least 1", "got 0"]),
        ("run.epochs", True, ["'run.epochs'", "got True"]),
        ("run.epochs", "3", ["'run.epochs'", "got '3'"]),
        ("optim.decay", 1.0, ["'optim.decay'", "below 1"]),
        ("data.cutmix", 0.1, ["'data.cutmix'", "0.6"]),
        ("model.std", (1.0, 0.0, 1.0), ["'model.std'", "above 0"]),
        ("optim.learning_rate", float("inf"), ["'optim.learning_rate'", "got inf", "finite"]),
        ("model.mean", (0.0, float("nan"), 0.0), ["'model.mean'", "nan", "finite"]),
        ("eval.sizes", (4,), ["'eval.sizes'", "at least 8"]),
    ],
)
def test_wrong_values_name_key_value_and_remedy(key, value, parts):
    config = config_lib.default()
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(ConfigError) as error:
        config_lib.check_fields(config)
    for part in parts:
        assert part in str(error.value)


def test_config_is_locked():
    config = config_lib.default()
    with pytest.raises((KeyError, AttributeError)):
        config.run.epoch = 3


def test_parse_arg():
    args = config_lib.parse_arg("variant=B2,demo", variant="B0", demo=False, width=1.0)
    assert (args.variant, args.demo, args.width) == ("B2", True, 1.0)
    with pytest.raises(ConfigError, match="Did you mean 'variant'"):
        config_lib.parse_arg("varian=B2", variant="B0")
    with pytest.raises(ConfigError, match="float"):
        config_lib.parse_arg("width=wide", width=1.0)


def test_save_and_load(tmp_path):
    config = recipe.resolve(recipe.get_config("variant=B3,resolution=half"))
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.differences(config_lib.load(tmp_path / "config.json"), config) == ()


def test_recipe_derives_the_published_numbers():
    config = recipe.resolve(recipe.get_config("variant=B4,resolution=half"))
    assert (config.data.train_size, config.data.eval_size) == (252, 380)
    assert config.optim.learning_rate == 768 * 2**-14
    assert config.optim.decay == 0.953125
    assert config.regularise.dropout == 0.4
    assert (config.data.mixup, config.data.cutmix) == (0.2, 0.85)


def test_half_resolution_is_refused_where_it_is_not_published():
    with pytest.raises(ConfigError, match="not published for B7.*train_size=4"):
        recipe.resolve(recipe.get_config("variant=B7,resolution=half"))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"run.epochs": 4}, "schedule.warmup_epochs"),
        ({"run.epochs": 4, "schedule.name": "cosine"}, "schedule.warmup_epochs=5 is more than run.epochs=4"),
        ({"regularise.average": 0.0}, "eval.weights=raw"),
        ({"data.cutmix": 0.9, "run.global_batch": 1}, "partner"),
        ({"run.global_batch": 2**15}, "optim.decay"),
        ({"data.cache": "decoded"}, "cache_dir"),
        ({"optim.name": "keras:Adam"}, "no rule for its rate.*optim.learning_rate"),
        ({"optim.name": "adam"}, "Did you mean 'adamw'"),
        ({"optim.layer_decay": 0.7}, "nothing to start from|no init.checkpoint"),
        ({"finetune.optimizer": "keras:Adam", "finetune.layer_decay": 0.7}, "finetune.layer_decay is for rmsprop"),
        (
            {"regularise.ema": 0.99, "runtime.steps_per_execution": 4, "runtime.strategy": "tpu"},
            "after each weight update",
        ),
        ({"optim.clip_norm": 1.0, "runtime.strategy": "ipu"}, "not been tried on IPUs"),
    ],
)
def test_impossible_combinations(changes, match):
    refuses(changes, match)


@pytest.mark.parametrize(
    "changes, numbers",
    [
        ({}, (0.046875, 0.953125, 1e-3, 1e-5, 512 / 2**11)),
        ({"optim.name": "sgd"}, (0.3, 0.0, 1e-3, 1e-5, 8 * 512 * 0.1 / 256)),
        ({"optim.name": "adamw"}, (7.5e-4, 0.999, 1e-7, 0.05, 8 * 512 * 1e-3 / 1024)),
        ({"optim.name": "lion", "optim.weight_decay": 0.1}, (1.5e-4, 0.99, 1e-7, 0.1, 8 * 512 * 2e-4 / 1024)),
        ({"optim.name": "keras:Adam", "optim.learning_rate": 0.01}, (0.01, 0.0, 1e-3, 0.0, 0.01)),
        ({"finetune.optimizer": "sgd"}, (0.046875, 0.953125, 1e-3, 1e-5, 8 * 512 * 0.1 / 256)),
        ({"finetune.optimizer": "keras:Adam"}, (0.046875, 0.953125, 1e-3, 1e-5, None)),  # finetune.check asks for it
    ],
)
def test_each_optimizer_has_its_own_numbers(changes, numbers):
    config = recipe.get_config()
    config.update_from_flattened_dict(changes)
    config = recipe.resolve(config)
    optim = config.optim
    found = optim.learning_rate, optim.decay, optim.epsilon, optim.weight_decay, config.finetune.learning_rate
    assert found[:4] == pytest.approx(numbers[:4]) and found[4] == (numbers[4] and pytest.approx(numbers[4]))


@pytest.mark.parametrize(
    "assignments, numbers",
    [
        ([], (0.05, 0, 1e-3, 5e-4, 2**-6, 0.9)),
        ([("optim.name", "adamw")], (32e-3 / 1024, 0.999, 1e-7, 0.05, 2**-6, 0.9)),
        ([("optim.decay", "0.5"), ("optim.name", "lion")], (64e-4 / 1024, 0.5, 1e-7, 0.25, 2**-6, 0.9)),
        ([("finetune.optimizer", "adamw")], (0.05, 0, 1e-3, 5e-4, 8 * 32e-3 / 1024, 0.999)),
        ([("optim.name", "rmsprop")], (2**-9, 1 - 2**-9, 1e-3, 1e-5, 2**-6, 0.9)),
        ([("optim.name", "sgd")], (0.05, 0, 1e-3, 5e-4, 2**-6, 0.9)),
    ],
)
def test_another_optimizer_does_not_take_the_numbers_of_the_one_before(assignments, numbers):
    config = recipe.get_config("small")
    config_lib.override(config, assignments)
    assert own_numbers(recipe.resolve(config)) == pytest.approx(numbers)


def test_fine_tuning_a_stored_run_with_another_optimizer_does_not_take_its_numbers():
    config = recipe.resolve(recipe.get_config("small")).copy_and_resolve_references().unlock()
    config_lib.override(config, [("finetune.optimizer", "adamw")])
    found = own_numbers(recipe.resolve(config))
    assert found == pytest.approx((0.05, 0, 1e-3, 5e-4, 8 * 32e-3 / 1024, 0.999))


@pytest.mark.parametrize(
    "assignments, numbers",
    [
        ([("finetune.global_batch", "64")], (64 * 2**-11, 1 - 64 * 2**-14)),
        ([("finetune.global_batch", "64"), ("finetune.learning_rate", "0.25")], (0.25, 1 - 64 * 2**-14)),
        ([("finetune.layers", "top")], (512 * 2**-11, 1 - 512 * 2**-14)),
    ],
)
def test_fine_tuning_a_stored_run_with_another_batch_takes_the_numbers_of_that(assignments, numbers):
    config = recipe.resolve(recipe.get_config()).copy_and_resolve_references().unlock()
    config_lib.override(config, assignments)
    assert own_numbers(recipe.resolve(config))[4:] == pytest.approx(numbers)


def test_a_rate_of_fine_tuning_that_was_chosen_stays_with_another_batch():
    config = recipe.get_config()
    config.finetune.learning_rate = 0.125
    config = recipe.resolve(config).copy_and_resolve_references().unlock()
    config_lib.override(config, [("finetune.global_batch", "64")])
    assert recipe.resolve(config).finetune.learning_rate == 0.125


def test_a_config_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = str(tmp_path / "config.json")
    config_lib.save(recipe.get_config(), path)
    with open(path) as file:
        before = file.read()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dump", full)
    with pytest.raises(OSError, match="No space"):
        config_lib.save(recipe.get_config(), path)
    with open(path) as file:
        assert file.read() == before


def own_numbers(config):
    optim, fine = config.optim, config.finetune
    return optim.learning_rate, optim.decay, optim.epsilon, optim.weight_decay, fine.learning_rate, fine.decay


def refuses(changes, match):
    config = recipe.get_config()
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(ConfigError, match=match):
        recipe.resolve(config)


@pytest.mark.parametrize(
    "arg, sizes",
    [
        ("variant=B0", (128, 160, 192, 224)),
        ("variant=B2,resolution=half", (96, 128, 160, 192)),
        ("variant=B3,parts=3", (172, 236, 300)),
        ("variant=B3,parts=1", (300,)),
        ("variant=TINY", (16, 32)),
        ("demo", (16, 24, 32)),
    ],
)
def test_progressive_sizes_grow_and_keep_the_remainder(arg, sizes):
    config = recipe.resolve(experiments.load(f"g16_ln_pn_progressive:{arg}"))
    assert config.data.progressive == sizes and config.data.train_size == sizes[-1]
    assert len({size % architecture.VARIANTS[config.model.variant].stride for size in sizes}) == 1


@pytest.mark.parametrize(
    "arg, match", [("parts=0", "'parts'.*at least 1; got 0"), ("variant=b3", "'model.variant'.*Did you mean 'B3'")]
)
def test_arguments_of_growing_sizes_that_cannot_be(arg, match):
    with pytest.raises(ConfigError, match=match):
        experiments.load(f"g16_ln_pn_progressive:{arg}")


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"data.progressive": (100, 224)}, "data.progressive: 100 pixels.*96 or 128"),
        ({"data.progressive": (128, 192)}, "must end with data.train_size=224"),
        ({"data.progressive": tuple(range(32, 225, 32)), "run.epochs": 6}, "at most run.epochs=6"),
        ({"data.progressive": (128, 224), "runtime.strategy": "ipu"}, "runtime.strategy=ipu"),
    ],
)
def test_progressive_sizes_that_cannot_be(changes, match):
    refuses(changes, match)


def test_nearest_sizes_keep_the_remainder():
    assert recipe.nearest_sizes(200, 160) == (192, 224)
    assert recipe.nearest_sizes(224, 160) == (224,)


def test_training_differences_ignore_what_does_not_change_the_training():
    old = recipe.resolve(recipe.get_config())
    new = old.copy_and_resolve_references()
    new.eval.sizes, new.checkpoint.keep = (128,), 9
    assert recipe.training_differences(old, new) == []
    new.model.norm = "bn"
    assert recipe.training_differences(old, new) == ["model.norm: ln_pn -> bn"]
    old.unlock().data.name, new.data.name, new.model.norm = "tfds:pets", "tfds:pets/large", "ln_pn"
    assert recipe.training_differences(old, new) == []  # one of its configurations: the images are compared
    new.data.name = "tfds:petsy"
    assert recipe.training_differences(old, new) == ["data.name: tfds:pets -> tfds:petsy"]


SETTINGS = {  # group_size, expand_ratio, norm
    "g16_ln_pn": (16, 4, "ln_pn"),
    "g16_ln": (16, 4, "ln"),
    "g16_gn": (16, 4, "gn"),
    "g16_gn_pn": (16, 4, "gn_pn"),
    "g16_bn": (16, 4, "bn"),
    "g1_gn": (1, 6, "gn"),
    "g1_bn": (1, 6, "bn"),
    "g1_ln_pn": (1, 6, "ln_pn"),
    "g1_bn_aa": (1, 6, "bn"),
    "g16_ln_pn_progressive": (16, 4, "ln_pn"),
}


def test_all_experiments_are_listed():
    assert set(SETTINGS) == set(experiments.names())
    assert all(line.endswith(".") for _, line in experiments.listing())


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("arg", ["", "variant=B2,resolution=half", "demo"])
def test_experiments_resolve(name, arg):
    config = recipe.resolve(experiments.load(f"{name}:{arg}"))
    assert (config.model.group_size, config.model.expand_ratio, config.model.norm) == SETTINGS[name]
    assert config.data.name == ("digits" if arg == "demo" else "auto")


def test_unknown_experiment_and_argument():
    with pytest.raises(ConfigError, match="Did you mean 'g16_ln_pn'"):
        experiments.load("g16_lnpn")
    with pytest.raises(ConfigError, match="no such file"):
        experiments.load("nowhere/mine.py")
    with pytest.raises(ConfigError, match="unknown experiment argument 'size'"):
        experiments.load("g16_ln_pn:size=3")


@pytest.mark.parametrize(
    "key, value, decides",
    [
        ("run.seed", 5, True),
        ("data.train_size", 96, True),
        ("data.mixup", 0.3, True),
        ("data.flip", False, True),
        ("data.area_min", 0.5, True),
        ("model.norm", "bn", True),
        ("optim.learning_rate", 0.5, True),
        ("schedule.drops", 7, True),
        ("regularise.average", 0.5, True),
        ("data.eval_size", 96, False),
        ("data.cache", "encoded", False),
        ("eval.batch", 3, False),
        ("runtime.max_skipped", 3, False),
    ],
)
def test_what_decides_a_training_may_not_change_in_its_workdir(key, value, decides):
    run, other = recipe.get_config(), recipe.get_config()
    section, field = key.split(".")
    other[section][field] = value
    if key == "data.train_size":
        other.finetune.sizes = (224,)
    run, other = recipe.resolve(run), recipe.resolve(other)
    different = {line.split(":")[0] for line in recipe.training_differences(run, other)}
    assert (key in different) == decides
    assert not decides or recipe.training_key(run) != recipe.training_key(other)


@pytest.mark.parametrize(
    "changes, same",
    [
        ({"eval.batch": 3, "data.eval_size": 96, "data.cache": "encoded", "checkpoint.keep": 9}, True),
        ({"runtime.precision": "mixed_bfloat16"}, False),
        ({"runtime.micro_batch": 4}, False),  # batch norm sees the images of a pass
        ({"data.cache": "decoded", "data.cache_dir": "cache"}, False),  # which scales them
        ({"data.max_pixels": 10**6}, False),
    ],
)
def test_runs_of_a_sweep_share_a_training_where_its_weights_are_equal(changes, same):
    run, other = recipe.get_config(), recipe.get_config()
    for key, value in changes.items():
        section, field = key.split(".")
        other[section][field] = value
    assert (recipe.training_key(recipe.resolve(run)) == recipe.training_key(recipe.resolve(other))) == same


@pytest.mark.parametrize("name, same", [("folder", True), ("wds", True), ("tfrecord", False), ("tfds:mnist", False)])
def test_images_that_are_kept_are_shuffled_otherwise_where_they_come_in_windows(name, same):
    run, other = recipe.get_config(), recipe.get_config()
    run.data.name = other.data.name = name
    other.data.cache = "encoded"
    assert (recipe.training_key(recipe.resolve(run)) == recipe.training_key(recipe.resolve(other))) == same


RECORDED = json.loads((GOLDEN / "configs.json").read_text())


@pytest.mark.parametrize("text", RECORDED)
def test_experiments_resolve_to_the_recorded_configs(text):
    """Of the flagship every field is recorded, of the others those that differ from it."""
    sections = recipe.resolve(experiments.load(text)).to_dict()
    fields = {f"{section}.{name}": value for section, names in sections.items() for name, value in names.items()}
    fields = json.loads(json.dumps(fields))
    expected = {**RECORDED["g16_ln_pn"], **RECORDED[text]}
    assert fields == expected


def test_every_experiment_is_recorded():
    assert set(experiments.names()) <= set(RECORDED)
