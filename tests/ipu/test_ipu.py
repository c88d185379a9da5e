"""IPU runs on a double of the SDK that refuses what the SDK refuses and trains really, on the CPU."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import changed
from tensorflow import keras

from g16net import compat, export
from g16net.config import experiments, recipe
from g16net.errors import ConfigError, RunError, UserError
from g16net.run import assemble, checkpoint, records
from g16net.training import callbacks, evaluate, runtime, train

if compat.KERAS3:
    pytest.skip("the IPU SDK has Keras 2.6; its models and optimizers do not exist in Keras 3", allow_module_level=True)

from helpers import check_held_back, untrained_run
from ipu_double import Double

from g16net.config import ipu as settings
from g16net.ipu import session
from g16net.optim.losses import SmoothedCrossEntropy, in_top
from g16net.optim.rmsprop import RMSProp
from g16net.run.workdir import Workdir

CLASSES = 5


def tiny(**changes):
    """A resolved config of the tiny network on digits; `changes` as section__field=value."""
    config = experiments.load("g16_ln_pn:demo,variant=TINY")
    config.run.epochs, config.run.global_batch = 1, 128
    config.schedule.warmup_epochs = 0.0
    config.runtime.strategy = "ipu"
    return changed(config, **changes)


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine with IPUs, under poprun where that is asked for."""
    return lambda **options: Double(**options).install(monkeypatch)


def poprun(instances=1, index=0, replicas=2, ipus_per_replica=2):
    return dict(instances=instances, index=index, replicas=replicas, ipus_per_replica=ipus_per_replica)


# Without the SDK


@pytest.mark.parametrize("strategy", ["ipu", "popdist"])
def test_without_the_sdk_one_error_names_what_to_install(strategy, tmp_path):
    with pytest.raises(UserError, match=r"tensorflow-2.6.3\+gc3.4 and keras-2.6.0\+gc3.4.*docs/ipu.md"):
        train.train(tiny(runtime__strategy=strategy), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_poprun(machine, monkeypatch):
    machine()
    with pytest.raises(UserError, match="needs the package popdist"):
        session.Session(tiny(runtime__strategy="popdist"))
    machine(poprun={})
    with pytest.raises(UserError, match="works under poprun only: poprun --num-instances"):
        session.Session(tiny(runtime__strategy="popdist"))


# What the double refuses


def ipu_module():
    from tensorflow.python import ipu

    return ipu


def scoped_model(session_, **shape):
    with session_.strategy.scope():
        return small_model(**shape)


def small_model(classes=CLASSES, size=8):
    """A network of dense layers in blocks that bear the names of the tiny one's."""
    image = keras.Input((size,), name="image")
    x = keras.layers.Dense(6, activation="tanh", name="stem_conv", kernel_initializer=seeded(1))(image)
    for index, block in enumerate(("1a", "2a", "3a")):
        y = keras.layers.Dense(6, activation="tanh", name=f"block{block}_conv", kernel_initializer=seeded(index + 2))(x)
        x = keras.layers.Add(name=f"block{block}_add")([x, y])
    x = keras.layers.Dense(classes, name="predictions", dtype="float32", kernel_initializer=seeded(9))(x)
    return keras.Model(image, x)


def seeded(seed):
    return keras.initializers.GlorotUniform(seed=seed)


def bad_attribute(cfg):
    cfg.allow_recomputation = True


def bad_type(cfg):
    cfg.auto_select_ipus = True


def bad_enum(cfg):
    cfg.floating_point_behaviour.esr = "ON"


def bad_category(cfg):
    cfg.convolutions = {}


def bad_option_value(cfg):
    cfg.auto_select_ipus = 1
    cfg.convolutions.poplar_options = {"availableMemoryProportion": 0.2}
    cfg.configure_ipu_system()


def bad_option_name(cfg):
    cfg.auto_select_ipus = 1
    cfg.matmuls.poplar_options = {"partialType": "half"}
    cfg.configure_ipu_system()


def no_version(cfg):
    cfg.auto_select_ipus = 1
    cfg.device_connection.type = ipu_module().config.DeviceConnectionType.PRE_COMPILE
    cfg.configure_ipu_system()


def two_selections(cfg):
    cfg.auto_select_ipus = 1
    cfg.select_ipus = 1
    cfg.configure_ipu_system()


@pytest.mark.parametrize(
    "wrong, error",
    [
        (bad_attribute, ValueError),
        (bad_type, TypeError),
        (bad_enum, TypeError),
        (bad_category, Exception),
        (bad_option_value, TypeError),
        (bad_option_name, ValueError),
        (no_version, ValueError),
        (two_selections, Exception),
    ],
)
def test_the_double_refuses_wrong_configurations(wrong, error, machine):
    machine()
    with pytest.raises(error):
        wrong(ipu_module().config.IPUConfig())


def test_the_double_refuses_names_that_the_sdk_lacks(machine):
    machine()
    ipu = ipu_module()
    for module, name in (
        (ipu, "keras"),
        (ipu, "horovod"),
        (ipu.config, "IPUOptions"),
        (ipu.utils, "create_ipu_config"),
    ):
        with pytest.raises(AttributeError, match="has no"):
            getattr(module, name)
    with pytest.raises(AttributeError):  # not loaded by the package itself
        ipu.distributed  # noqa: B018
    with pytest.raises(TypeError):
        ipu.ipu_strategy.IPUStrategy(ipus=2)
    with pytest.raises(TypeError):
        ipu.utils.reset_ipu_seed()


def test_the_double_refuses_wrong_calls_of_models(machine):
    machine()
    run = session.Session(tiny(ipu__splits="3a", runtime__micro_batch=16))
    assert not hasattr(small_model(), "set_pipelining_options")  # made outside of the scope
    model = scoped_model(run)
    with pytest.raises(TypeError, match="'schedule'"):
        model.set_pipelining_options(4, schedule="Grouped")
    with pytest.raises(ValueError, match="device_mapping|outfeed_mask"):
        model.set_pipelining_options(4, outfeed_mask=[True])
    with pytest.raises(ValueError, match="positive integer"):
        model.set_pipelining_options(0)
    with pytest.raises(ValueError, match="Cannot parse average"):
        model.set_pipelining_options(4, gradient_accumulation_reduction_method="average")
    with pytest.raises(RuntimeError, match="eager"):
        model.compile("sgd", "mse", run_eagerly=True)


def test_the_double_refuses_to_iterate_or_to_count_in_a_scope(machine):
    machine(poprun=poprun())
    run = session.Session(tiny(runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16))
    data = tf.data.Dataset.range(3)
    with run.strategy.scope():
        variable = tf.Variable(2.0)
        for draw in (iter, lambda data: next(data.as_numpy_iterator()), list):
            with pytest.raises(RuntimeError, match="eager mode when inside"):
                draw(data)
    assert len(list(data)) == 3 and float(tf.Variable(2.0)) == variable.numpy() == 2
    for convert in (float, int):
        with pytest.raises(TypeError):
            convert(variable)


def test_the_double_updates_variables_in_place(machine):
    machine()
    run = session.Session(tiny())
    with run.strategy.scope():
        model = small_model()
        model.compile(optimizer(), "mse", steps_per_execution=1)
    read = []

    class Read(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            read.append(tf.convert_to_tensor(model.weights[0]))

    model.fit(regression(), steps_per_epoch=3, callbacks=[Read()], verbose=0)
    assert np.array_equal(read[0].numpy(), read[2].numpy())  # the first one shows the last one's values


def fit(run, model, data, steps, calls=None):
    model.compile(optimizer(), "mse", steps_per_execution=calls or steps)
    return model.fit(data, steps_per_epoch=steps, verbose=0)


def regression(rows=4, dtype=tf.float32, drop_remainder=True):
    images, targets = tf.ones([64, 8], dtype), tf.zeros([64, CLASSES])
    return tf.data.Dataset.from_tensor_slices((images, targets)).repeat().batch(rows, drop_remainder=drop_remainder)


def test_the_double_enforces_the_rules_of_fit(machine):
    machine()
    run = session.Session(tiny(ipu__splits="3a", runtime__micro_batch=16, ipu__replicas=2))
    model = scoped_model(run)
    run.prepare(model)
    assert run.plan.accumulation == 4
    with pytest.raises(ValueError, match="not fully defined"):
        fit(run, model, regression(drop_remainder=False), 8)
    with pytest.raises(TypeError, match="string"):
        fit(run, model, regression().map(lambda x, y: (tf.as_string(x), y)), 8)
    with pytest.raises(ValueError, match="not supported"):
        fit(run, model, (batch for batch in ()), 8)
    with pytest.raises(RuntimeError, match="not divisible"):
        fit(run, model, regression(), 12, 6)
    with pytest.raises(ValueError, match="must be a divisor"):
        fit(run, model, regression(), 24, 8)  # twelve steps a replica
    model.set_pipelining_options(6, pipeline_schedule=ipu_module().pipelining_ops.PipelineSchedule.Grouped)
    with pytest.raises(RuntimeError, match="must be a multiple of 4, but it is 6"):
        fit(run, model, regression(), 12, 6)

    with run.strategy.scope():

        class Own(keras.Model):
            def train_step(self, data):
                return {}

        own = Own(model.input, model.output)
    with pytest.raises(RuntimeError, match="`train_step` for the model"):
        fit(run, own, regression(), 8)


def test_the_double_enforces_the_rules_of_stages(machine):
    machine()
    run = session.Session(tiny(ipu__splits="3a", runtime__micro_batch=16))
    model = scoped_model(run)
    for stages, message in ((lambda i: None, "not been assigned"), (lambda i: 7 - i, "later pipeline stage")):
        assignment = model.get_pipeline_stage_assignment()
        for index, part in enumerate(assignment):
            part.pipeline_stage = stages(index)
        with pytest.raises(ValueError, match=message):
            model.set_pipeline_stage_assignment(assignment)
    with pytest.raises(ValueError, match="assignments for"):
        model.set_pipeline_stage_assignment(assignment[1:])
    with pytest.raises(ValueError, match="does not match the post-order"):
        model.set_pipeline_stage_assignment(assignment[::-1])
    for index, part in enumerate(assignment):
        part.pipeline_stage = 0 if index < 3 else 2
    model.set_pipeline_stage_assignment(assignment)
    model.set_pipelining_options(8)
    with pytest.raises(RuntimeError, match="All stages"):
        fit(run, model, regression(), 8)


# Configuration and stages


@pytest.mark.parametrize("key", settings.PUBLISHED, ids=lambda key: "-".join(map(str, key)))
def test_every_published_configuration_configures_the_machine(key, machine):
    for variant in settings.PUBLISHED[key]:
        double = machine()
        config = experiments.load(f"g16_ln_pn:variant={variant},resolution={key[2]}")
        config.model.group_size, config.model.norm = key[0], key[1]
        config.runtime.strategy, config.runtime.precision = "ipu", "mixed_float16"
        config.ipu.use_published = True
        config = recipe.resolve(config)
        run = session.Session(config)
        value = double.config.value
        row = settings.published(variant, *key)
        options = {"partialsType": "half"}
        if row.available_memory_proportion:
            options["availableMemoryProportion"] = "0.2"
        assert value("convolutions.poplar_options") == value("matmuls.poplar_options") == options
        assert value("auto_select_ipus") == double.local_ipus == 16
        assert value("allow_recompute") is True
        assert value("floating_point_behaviour.esr").name == "OFF"
        run.check(1668)
        assert run.updates.steps(1668) == 1668 * row.accumulation * row.replicas
        assert double.seed == config.run.seed


def test_all_fields_reach_the_configuration(machine):
    double = machine()
    session.Session(
        tiny(
            ipu__recompute=False,
            ipu__stochastic_rounding=True,
            ipu__replicas=2,
            ipu__partials="float",
            ipu__io_tiles=32,
            ipu__connection="PRE_COMPILE",
            ipu__version="ipu21",
            ipu__offload=True,
            runtime__grad_accumulation=2,
            runtime__deterministic=True,
        )
    )
    value = double.config.value
    assert value("allow_recompute") is False
    assert value("floating_point_behaviour.esr").name == "ON"
    assert value("experimental.enable_prng_stability") is True
    assert value("convolutions.poplar_options") == {"partialsType": "float"}
    assert value("io_tiles.num_io_tiles") == 32 and value("io_tiles.place_ops_on_io_tiles") is True
    assert value("device_connection.type").name == "PRE_COMPILE"
    assert value("device_connection.version") == "ipu21"
    assert value("device_connection.enable_remote_buffers") is True
    assert value("compilation_poplar_options") == {"target.deterministicWorkers": "portable"}


@pytest.mark.parametrize("connection", ["ALWAYS", "ON_DEMAND", "PRE_COMPILE"])
def test_state_off_the_chip_has_remote_buffers_where_no_device_can_be_asked(connection, machine):
    for offload in (False, True):
        double = machine()
        session.Session(tiny(ipu__connection=connection, ipu__offload=offload, runtime__grad_accumulation=2))
        assert double.config.value("device_connection.type").name == connection
        enabled = double.config.value("device_connection.enable_remote_buffers")
        assert enabled == (offload and connection != "ALWAYS")


@pytest.mark.slow
def test_every_layer_of_b0_gets_a_stage(machine):
    machine()
    config = experiments.load("g16_ln_pn:variant=B0")
    config.runtime.strategy, config.ipu.use_published, config.data.train_size = "ipu", True, 32
    config = recipe.resolve(config)
    run = session.Session(config)
    with run.strategy.scope():
        model = assemble.model(config, 10, 32)
        run.prepare(model)
    stages = {part.layer.name: part.pipeline_stage for part in model.get_pipeline_stage_assignment()}
    assert set(stages) == {layer.name for layer in model.layers} - {"image"}
    first = [name for name, stage in stages.items() if stage == 0]
    assert stages["block3a_project_norm"] == 0 and stages["block3b_expand_conv"] == 1
    assert all(settings.block_of(name) in ("stem", "1a", "2a", "2b", "3a") for name in first)


# What the device's compiler gets


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_whole_update_compiles_with_xla(precision, monkeypatch):
    """The IPU compiles through XLA: every operation of the form that layers take there must have an XLA kernel."""
    config = tiny(model__variant="NANO", schedule__name="exponential", schedule__drops=4)
    monkeypatch.setattr(compat, "compiled_device", lambda: True)
    monkeypatch.setattr(compat, "on_cpu", lambda: False)
    with compat.policy(precision):
        model = assemble.model(config, 10, 32)
    kinds = {type(layer).__name__ for layer in model.layers}
    assert {"GroupConv2D", "ProxyNormActivation", "LayerNorm", "SqueezeExcite", "StochasticDepth"} <= kinds
    optimizer = assemble.optimizer(config, 11)
    loss, variables = assemble.loss(config, 10), model.trainable_variables
    if precision == "mixed_float16":
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, dynamic=False, initial_scale=128)
    optimizer._create_all_weights(variables)

    def step(images, targets):
        logits = model(images, training=True)
        value = tf.reduce_mean(loss.call(targets, logits))
        optimizer.apply_gradients(list(zip(optimizer.get_gradients(value, variables), variables)))
        return value, session.Score()([logits, tf.cast(targets[:, :1, 0], tf.int32), tf.ones([8, 1])])

    images = tf.cast(tf.random.stateless_uniform([8, 32, 32, 3], [0, 1], 0, 256, tf.int32), tf.uint8)
    targets = tf.constant([[[1.0, 0.75], [2.0, 0.25]]] * 8)
    before = [weight.numpy() for weight in variables]
    value, score = tf.function(step, jit_compile=True)(images, targets)
    assert np.isfinite(float(value)) and score.shape == [8, 4]
    assert int(optimizer.iterations) == 1
    assert all(np.any(weight.numpy() != old) for weight, old in zip(variables, before))


# Training on the double equals training without it


def small_data(batches, global_batch=128):
    random = np.random.RandomState(0)
    images = random.normal(size=[batches, global_batch, 8]).astype("float32")
    labels = random.randint(0, CLASSES, [batches, global_batch]).astype("int32")
    return images, labels


def optimizer():
    return RMSProp(0.01, rho=0.9, weight_decay=1e-3)


def plain_weights(images, labels):
    """Weights after one plain update for each batch."""
    model = small_model()
    model.compile(optimizer(), SmoothedCrossEntropy(CLASSES))
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    model.fit(data, epochs=1, verbose=0)
    return model.get_weights()


MODES = {
    "pipeline": dict(ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16),
    "three stages": dict(ipu__splits="2a,3a", run__global_batch=96, runtime__micro_batch=8),
    "interleaved": dict(ipu__splits="3a", ipu__schedule="Interleaved", runtime__grad_accumulation=2),
    "accumulation": dict(ipu__replicas=2, runtime__grad_accumulation=4),
    "replicas": dict(ipu__replicas=4),
    "one": dict(),
    "popdist": dict(runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16),
    "float16": dict(ipu__splits="3a", ipu__replicas=2, runtime__precision="mixed_float16"),
    "popdist float16": dict(
        runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__precision="mixed_float16"
    ),
}


SLOW_MODES = {"three stages", "interleaved", "replicas", "one", "popdist", "popdist float16"}


@pytest.mark.run
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.slow if mode in SLOW_MODES else ()) for mode in MODES]
)
def test_updates_equal_those_of_the_whole_batch(mode, machine):
    config = tiny(runtime__steps_per_execution=3, **MODES[mode])
    images, labels = small_data(6, config.run.global_batch)
    expected = plain_weights(images, labels)
    machine(poprun=poprun() if config.runtime.strategy == "popdist" else None)
    run = session.Session(config)
    loss = SmoothedCrossEntropy(CLASSES)
    with run.strategy.scope(), compat.policy(config.runtime.precision):
        model = small_model()
        run.prepare(model)
        made = run.optimizer(optimizer())
        model.compile(made, loss, metrics=run.metrics(loss), steps_per_execution=run.updates.steps_per_execution)
    counted = Counted()
    data = run.feed(tf.data.Dataset.from_tensor_slices((images, labels)).repeat())
    history = model.fit(
        data, epochs=2, steps_per_epoch=run.updates.steps(3), callbacks=run.updates.callbacks([counted]), verbose=0
    ).history
    assert counted.batches == [2, 2] and made.iterations.numpy() == 6
    assert set(history) == {"loss", "top1"}
    if "float16" in mode:
        assert made.loss_scale == 128 and not made.dynamic
        assert all(weight.dtype == tf.float32 for weight in model.weights)
    tolerance = 3e-3 if "float16" in mode else 2e-6
    for weight, value in zip(model.get_weights(), expected):
        np.testing.assert_allclose(weight, value, atol=tolerance)


class Counted(keras.callbacks.Callback):
    """Notes the numbers of the batches at whose end it is called, and their logs."""

    def __init__(self):
        super().__init__()
        self.batches, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        self.logs.append(dict(logs))


@pytest.mark.run
def test_metrics_are_means_over_replicas(machine):
    machine()
    images, labels = small_data(1)
    run = session.Session(tiny(ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16))
    loss = SmoothedCrossEntropy(CLASSES)
    with run.strategy.scope():
        model = small_model()
        run.prepare(model)
        model.compile(
            keras_sgd(0.0), loss, metrics=run.metrics(loss), steps_per_execution=run.updates.steps_per_execution
        )
    logits = model(images[0])
    expected = float(tf.reduce_mean(loss.call(labels[0], logits)))
    counted = Counted()
    model.fit(
        run.feed(tf.data.Dataset.from_tensor_slices((images, labels))),
        steps_per_epoch=run.updates.steps(1),
        callbacks=run.updates.callbacks([counted]),
        verbose=0,
    )
    (logs,) = counted.logs
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["top1"] == pytest.approx(float(tf.reduce_mean(in_top(labels[0], logits, 1))), rel=1e-5)
    # and Keras' own value would have been another one, that of the second replica
    own = float(tf.reduce_mean(loss.call(labels[0], logits).numpy().reshape(4, 2, 16)[:, 1]))
    assert abs(own - expected) > 1e-3


def keras_sgd(rate):
    return getattr(keras.optimizers, "legacy", keras.optimizers).SGD(rate)


# poprun


@pytest.mark.parametrize("all_workers", [True, False])
def test_the_first_process_of_poprun_writes(all_workers, machine):
    config = tiny(runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16)
    for index in (0, 1):
        machine(poprun=poprun(instances=2, index=index))
        assert runtime.chief(config, all_workers) == (index == 0)
    machine(poprun={})
    if not all_workers:  # an export on the host alone
        assert runtime.chief(config, all_workers)
        machine()
        assert runtime.chief(config, all_workers)


def test_poprun_that_does_not_fit_the_run(machine):
    machine(poprun=poprun(replicas=4))
    config = tiny(runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16)
    with pytest.raises(ConfigError, match="wants 2 replicas of 2 IPUs, poprun has 4 of 2.*--num-replicas 2"):
        session.Session(config)


def test_processes_share_data_and_sum_figures(machine):
    config = tiny(runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16)
    source = assemble.open_source_of(config, "train")
    drawn, seeds = [], set()
    for index in range(2):
        double = machine(poprun=poprun(instances=2, index=index))
        run = session.Session(config)
        assert run.shard == (index, 2) and run.chief == (index == 0) and run.local_replicas == 1
        assert run.updates.steps(11) == 11 * 4 and double.local_ipus == 2
        value = double.config.value
        assert value("experimental.multi_replica_distribution.process_index") == index
        seeds.add(double.seed)  # of dropout and stochastic depth; the data are drawn from the run's
        data = run.feed(assemble.train_batches(config, source, shard=run.shard))
        assert [spec.shape[0] for spec in data.element_spec] == [16, 16]
        drawn.append(np.concatenate([images for images, _ in data.take(4).as_numpy_iterator()]))
        double.allreduce = lambda value: 2 * value
        np.testing.assert_array_equal(run.sum_over_workers(np.array([1.0, 2.0])), [2.0, 4.0])
    assert len(seeds) == 2 and config.run.seed in seeds
    ((whole, _),) = assemble.train_batches(config, source).take(1).as_numpy_iterator()
    np.testing.assert_array_equal(np.concatenate(drawn), whole)


# Whole runs


def pipelined():
    """The config of a pipelined run of one epoch over 200 images."""
    return tiny(
        model__variant="NANO",
        ipu__splits="2a",
        ipu__replicas=2,
        runtime__precision="mixed_float16",
        run__global_batch=64,
        data__name="synthetic",
        data__num_examples=200,
        data__num_classes=10,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(config, workdir, figures)` of such a run."""
    workdir = str(tmp_path_factory.mktemp("ipu"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        Double().install(monkeypatch)
        config = pipelined()
        figures = train.train(config, workdir)
    return config, workdir, figures


# What a run keeps


@pytest.mark.parametrize("strategy", ["ipu", "popdist"])
def test_a_checkpoint_in_the_background_is_of_one_step(strategy, machine, tmp_path, monkeypatch):
    machine(poprun=poprun(ipus_per_replica=1))
    run = session.Session(tiny(runtime__strategy=strategy, ipu__replicas=2))
    with run.strategy.scope():
        model = small_model()
        made = optimizer()
        model.compile(made, "mse", steps_per_execution=1)
        saved = checkpoint.Checkpoints(str(tmp_path), checkpoint.state(model, made))
    check_held_back(saved, model, regression(), 8, monkeypatch)


def test_a_constant_learning_rate_is_recorded(machine):
    config = tiny(runtime__strategy="popdist", ipu__replicas=2, schedule__name="constant")
    machine(poprun=poprun(ipus_per_replica=1))
    run = session.Session(config)
    with run.strategy.scope():
        model = small_model()
        made = run.optimizer(assemble.optimizer(config, 11))
        model.compile(made, "mse", steps_per_execution=2)
    model.fit(regression(), steps_per_epoch=4, verbose=0)
    assert callbacks.learning_rate(made, 0) == pytest.approx(config.optim.learning_rate)


def test_a_run_goes_on_in_mid_epoch_by_whole_calls_or_not_at_all(machine, tmp_path):
    machine()
    config = tiny(runtime__steps_per_execution=2, run__global_batch=100)  # ten updates an epoch
    folder = tmp_path / "checkpoints" / "00000004"
    folder.mkdir(parents=True)
    manifest = {"step": 4, "epoch": 0, "in_epoch": 4, "steps": 14, "files": {}}
    for steps, calls, message in ((14, 7, "4 of an epoch of 14, and the 10 "), (11, 2, "now an epoch has 14")):
        with config.unlocked():
            config.runtime.steps_per_execution = calls
        (folder / "manifest.json").write_text(json.dumps(dict(manifest, steps=steps)))
        with pytest.raises(ConfigError, match=message):
            train.train(config, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]  # before anything was written


# Errors


def test_a_data_error_is_found_before_it_is_fed(machine):
    machine()
    run = session.Session(tiny())
    bad = tf.data.Dataset.range(4).map(
        lambda i: tf.debugging.check_numerics(0.0 / tf.cast(i, tf.float32), "of the data")
    )
    with pytest.raises(RunError, match="first batch of the training images cannot be made: .*of the data"):
        run.feed(bad.batch(128))


def test_evaluation_draws_its_first_batch_on_the_host(machine):
    machine()
    config = tiny(ipu__replicas=2)
    run = session.Session(config)
    source = assemble.open_source_of(config, "eval")
    with pytest.raises(RunError, match="first batch of the test images cannot be made: .*label outside 0..1"):
        run.scorer(None, source._replace(num_classes=2))


def test_errors_of_poplar_are_no_lost_workers(machine):
    machine(poprun=poprun(instances=2, ipus_per_replica=1))
    run = session.Session(tiny(runtime__strategy="popdist", ipu__replicas=2))
    text = "[Poplar][Execute engine] application_runtime_error: [Recovery action: IPU_RESET] Tiles in excepted state"
    error = tf.errors.InternalError(None, None, text)
    assert run.failed(error) is None
    told = train.run_error(error, run, "runs/x", callbacks.Position(11))
    assert "ended at step 1: [Poplar][Execute engine]" in str(told) and "lost" not in str(told)


@pytest.mark.slow
def test_a_whole_run_resumes(trained, machine, tmp_path):
    config, workdir, _ = trained
    workdir = shutil.copytree(workdir, str(tmp_path / "run"))
    machine()
    longer = config.copy_and_resolve_references()
    with longer.unlocked():
        longer.run.epochs = 2
    figures = train.train(longer, workdir)
    history = records.by_epoch(records.read_lines(Workdir(workdir).records))
    assert figures["resumed_from_epoch"] == 1 and figures["steps"] == 6
    assert [record["step"] for record in history] == [3, 6]
    assert history[1]["loss"] != history[0]["loss"]
    assert all(record["images_per_second"] > 0 for record in history)


@pytest.mark.slow
def test_evaluation_of_a_trained_run_gives_its_figures(trained, machine):
    config, workdir, figures = trained
    machine()
    found = evaluate.evaluate(config, workdir)
    for name in ("images", "top1", "top5", "loss"):
        assert found[name] == pytest.approx(figures[name], abs=1e-6)


@pytest.mark.run
def test_evaluation_on_ipus_equals_that_of_the_host(machine, tmp_path):
    config = pipelined()
    workdir = untrained_run(tmp_path / "run", config)
    machine()
    on_ipus = evaluate.evaluate(config, workdir)
    with config.unlocked():
        config.runtime.strategy = "default"
    on_host = evaluate.evaluate(config, workdir)
    assert on_ipus["images"] == on_host["images"] == 200
    for name in ("top1", "top5", "loss"):
        assert on_ipus[name] == pytest.approx(on_host[name], abs=2e-2)


def types_of(function, operation):
    """The types in which an operation of a concrete function and those that it calls computes."""
    graph = function.graph.as_graph_def()
    nodes = [graph.node] + [called.node_def for called in graph.library.function]
    return {node.attr["T"].type for part in nodes for node in part if node.op == operation}


@pytest.mark.slow
def test_serving_export_gives_the_logits_of_the_model(trained, machine):
    config, workdir, _ = trained
    machine()
    with config.unlocked():
        config.runtime.strategy, config.export.format = "ipu", "ipu_serving"
    figures = export.export(config, workdir)
    batch = figures["batch"]
    images = np.random.RandomState(0).randint(0, 256, [batch, 32, 32, 3]).astype("uint8")
    loaded = tf.saved_model.load(figures["path"])  # TensorFlow 2.6 forgets the variables of what nobody holds
    exported = loaded.signatures["serving_default"](images=tf.constant(images))
    with compat.policy(config.runtime.precision):
        model, _ = assemble.trained(config, workdir)
    logits = model(images.astype("float32"), training=False)
    np.testing.assert_allclose(exported["logits"], logits, atol=1e-2)  # float16, in another order of operations
    assert tf.float16.as_datatype_enum in types_of(loaded.signatures["serving_default"], "Conv2D")
    assert figures["ipus"] == 2
    with config.unlocked():
        config.runtime.strategy = "default"
    with pytest.raises(ConfigError, match="compiled by the IPU SDK in one process; got runtime.strategy=default"):
        export.export(config, workdir)
    with config.unlocked():
        config.runtime.strategy, config.export.format = "ipu", "saved_model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(ipu__replicas=2, runtime__grad_accumulation=4),
        dict(runtime__strategy="popdist", ipu__splits="3a", ipu__replicas=2, runtime__micro_batch=16),
    ],
    ids=["unpipelined", "popdist"],
)
def test_whole_runs_learn(changes, machine, tmp_path):
    machine(poprun=poprun())
    figures = train.train(tiny(**changes), str(tmp_path))
    assert figures["images"] == 359 and figures["loss"] < np.log(10)


def test_an_epoch_that_is_no_whole_number_of_calls_is_refused_before_a_model_is_built(machine, tmp_path):
    machine()
    with pytest.raises(ConfigError, match="must divide the 11 weight updates"):
        train.train(tiny(runtime__steps_per_execution=2), str(tmp_path))
    assert not list(tmp_path.iterdir())
