"""SGD, AdamW, LAMB and Lion against Keras' own and against their papers; what all optimizers share."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net import compat, layers, native
from g16net.config.optimizers import OPTIMIZERS
from g16net.config.recipe import PARTS
from g16net.optim import optimizers
from g16net.optim.base import layer_rates
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import Cosine
from g16net.optim.weight_average import WeightAverage

OURS = {"rmsprop": RMSProp, "sgd": optimizers.SGD, "adamw": optimizers.AdamW, "lamb": optimizers.Lamb}
OURS["lion"] = optimizers.Lion
FOREIGN = "Adamax"


def variable(value, name):
    """`name`: that of a layer may come before it, as in `stem_conv/kernel`."""
    value, (*layer, own) = np.asarray(value, np.float32), name.split("/")
    if not compat.KERAS3:
        return tf.Variable(value, name=name)
    with keras.name_scope(layer[0]) if layer else contextlib.nullcontext():
        return keras.Variable(value, name=own)


def start(seed=0):
    draw = np.random.default_rng(seed)
    shapes = {"kernel": (3, 4), "bias": (4,), "gamma": (4,)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gradients(steps=6, seed=1, size=1.0):
    draw = np.random.default_rng(seed)
    return [
        [size * draw.normal(size=value.shape).astype(np.float32) for value in start().values()] for _ in range(steps)
    ]


def step_of(optimizer, variables):
    """`step(*gradients)`, an update, as a program of TensorFlow."""

    @tf.function
    def step(*gradients):
        optimizer.apply_gradients(zip(gradients, variables))

    return step


def moved(optimizer, steps, values=None):
    """The variables after the steps."""
    variables = [variable(value, name) for name, value in (values or start()).items()]
    step = step_of(optimizer, variables)
    for step_gradients in steps:
        step(*map(tf.constant, step_gradients))
    return [v.numpy() for v in variables]


def same(a, b, tolerance=2e-6):
    for one, other in zip(a, b):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (lambda: optimizers.SGD(0.1, momentum=0.9), lambda k: k.SGD(0.1, momentum=0.9, nesterov=True)),
        (lambda: optimizers.SGD(0.1, nesterov=False), lambda k: k.SGD(0.1, momentum=0.9)),
        (lambda: optimizers.AdamW(0.1), lambda k: k.Adam(0.1)),
        (lambda: optimizers.of_keras("Adam", 0.1), lambda k: k.Adam(0.1)),
        (lambda: optimizers.AdamW(0.1, weight_decay=0.3), lambda k: k.AdamW(0.1, weight_decay=0.3)),
        (lambda: optimizers.Lion(0.1, weight_decay=0.3), lambda k: k.Lion(0.1, weight_decay=0.3)),
        (lambda: optimizers.Lamb(0.1), lambda k: k.Lamb(0.1)),
    ],
)
def test_equals_keras(ours, theirs):
    library = keras.optimizers
    try:
        their = theirs(library)
    except AttributeError as error:
        pytest.skip(f"this Keras has none: {error}")
    if getattr(their, "weight_decay", None):
        their.exclude_from_weight_decay(var_names=["gamma"])
    # Keras' Adam adds epsilon where the bias is still in, which tells at the first steps only.
    same(moved(ours(), gradients()), moved(their, gradients()), tolerance=2e-5)


def test_lamb_steps_by_the_length_of_each_variable():
    (step,) = gradients(1)
    before = list(start().values())
    after = moved(optimizers.Lamb(0.1, weight_decay=0.5, epsilon=1e-12), [step])
    for name, old, new, gradient in zip(start(), before, after, step):
        direction = np.sign(gradient) + (0.5 * old if name != "gamma" else 0)  # after one step m / sqrt(v) is the sign
        np.testing.assert_allclose(
            new, old - 0.1 * np.linalg.norm(old) / np.linalg.norm(direction) * direction, rtol=1e-5, atol=1e-6
        )
    zeros = {"kernel": np.zeros([3, 4], np.float32)}  # has no length: the step as it is
    (kernel,) = moved(optimizers.Lamb(0.1, epsilon=1e-12), [step[:1]], zeros)
    np.testing.assert_allclose(kernel, -0.1 * np.sign(step[0]), rtol=1e-5)


@pytest.mark.parametrize("name", [*OURS, FOREIGN])
def test_accumulated_gradients_are_one_update_and_bad_ones_none(name):
    def made(**arguments):
        if name == FOREIGN:
            return optimizers.of_keras(name, 0.1, weight_decay=0.01, **arguments)
        return OURS[name](0.1, weight_decay=0.01, **arguments)

    steps = gradients(4)
    means = [[(a + b) / 2 for a, b in zip(*steps[i : i + 2])] for i in (0, 2)]
    same(moved(made(accumulation=2), steps), moved(made(), means))

    steps[1][0][0, 0] = np.nan
    optimizer = made(guard="skip")
    same(moved(optimizer, steps), moved(made(), [steps[0], *steps[2:]]))
    assert int(optimizer.skipped.numpy()) == 1 and list(optimizer.not_finite.numpy()) == [1, 0, 0]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_the_norm_of_a_whole_update_is_clipped(name, accumulation):
    steps = gradients(4, size=3.0) + gradients(2, size=0.01)
    whole = [[sum(g) / accumulation for g in zip(*steps[i : i + accumulation])] for i in range(0, 6, accumulation)]
    norms = [np.sqrt(sum(np.square(g).sum() for g in step)) for step in whole]
    assert max(norms) > 1 > min(norms)
    clipped = [[g * min(1, 1 / norm) for g in step] for step, norm in zip(whole, norms)]
    same(
        moved(OURS[name](0.1, accumulation=accumulation, clip_norm=1.0, guard="skip"), steps),
        moved(OURS[name](0.1), clipped),
        tolerance=1e-5,
    )


def nodes_of(function, *args):
    graph = function.get_concrete_function(*args).graph.as_graph_def()
    return [node.op for node in graph.node] + [n.op for inner in graph.library.function for n in inner.node_def]


@pytest.mark.skipif(not native.enabled(), reason="the update at once is native")
@pytest.mark.parametrize("name", sorted(set(OURS) - {"lamb"}))
@pytest.mark.parametrize("guard, accumulation", [("none", 1), ("report", 1), ("skip", 1), ("report", 2)])
def test_update_at_once_equals_one_variable_at_a_time(name, guard, accumulation, monkeypatch):
    random = np.random.RandomState(0)
    shapes = {"stem_conv/kernel": (3, 3, 16, 24), "top_norm/gamma": (24,), "top/scalar": (), "top/large": (70000,)}
    starts = {name: np.float32(random.randn(*shape)) for name, shape in shapes.items()}
    steps = [[np.float32(random.randn(*shape)) for shape in shapes.values()] for _ in range(4)]
    steps[2][1][5], steps[2][1][7] = np.inf, np.nan
    results = []
    for at_once in (True, False):
        with monkeypatch.context() as patch:
            if not at_once:
                patch.setattr(native, "enabled", lambda *_: False)
            variables = [variable(value, name) for name, value in starts.items()]
            optimizer = OURS[name](
                0.01, weight_decay=0.01, guard=guard, accumulation=accumulation, layer_rates=[("stem", 0.25)]
            )
            step = step_of(optimizer, variables)
            for gradients in steps:
                step(*map(tf.constant, gradients))
            assert ("G16Update" in nodes_of(step, *map(tf.constant, steps[0]))) == at_once
            kept = compat.optimizer_state(optimizer, variables, range(len(variables)))
            counts = [optimizer.skipped, optimizer.not_finite] if guard != "none" else []
            results.append([v.numpy() for v in [*variables, *kept.values(), *counts]])
    for value, right in zip(*results):
        if name == "rmsprop":  # the others end in NaN where one variable at a time ends in infinity
            np.testing.assert_allclose(value, right, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(np.isfinite(value), np.isfinite(right))
        np.testing.assert_allclose(*np.where(np.isfinite(right), [value, right], 0), rtol=2e-6, atol=2e-7)


@pytest.mark.skipif(compat.TF_VERSION < (2, 8), reason="compile's jit_compile came with 2.8")
@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_a_train_step_that_xla_compiles_does_the_same(name):
    """XLA does not know the native operations."""
    results = []
    for compiled in (False, True):
        compat.set_seed(0)
        model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
        model.compile(OURS[name](0.1, guard="report"), loss="mse", jit_compile=compiled)
        model.fit(np.ones([8, 4]), np.ones([8, 3]), batch_size=4, verbose=0)
        results.append(model.get_weights())
    same(*results)


def test_a_subclass_with_an_update_of_its_own_makes_that_one():
    class Still(optimizers.SGD):
        def update(self, variable, gradient, learning_rate, velocity):
            return variable.assign_add(0.0 * gradient)

    class Undecayed(optimizers.SGD):
        def with_l2(self, variable, gradient):
            return gradient

    class Plain(optimizers.AdamW):
        def decayed(self, variable, direction):
            return direction

    class Renamed(optimizers.SGD):
        pass

    same(moved(Still(0.1), gradients()), start().values())
    same(moved(Undecayed(0.1, weight_decay=0.5), gradients()), moved(optimizers.SGD(0.1), gradients()))
    same(moved(Plain(0.1, weight_decay=0.5), gradients()), moved(optimizers.AdamW(0.1, weight_decay=0.0), gradients()))
    same(moved(Renamed(0.1), gradients()), moved(optimizers.SGD(0.1), gradients()))
    assert Renamed.rule == "sgd"


@pytest.mark.parametrize("name", OURS)
def test_layers_learn_at_their_own_rates(name):
    factors = {"stem_conv": 0.5**8, "block6a_conv": 0.25, "predictions": 1.0}
    inputs = x = keras.Input([2])
    for layer in factors:
        x = keras.layers.Dense(2, kernel_initializer="ones", name=layer)(x)
    model = keras.Model(inputs, x)
    kernels = [layer.kernel for layer in model.layers[1:]]
    optimizer = OURS[name](0.1, layer_rates=layer_rates(0.5, PARTS))
    step = tf.ones([2, 2])
    optimizer.apply_gradients([(step, kernel) for kernel in kernels])
    for kernel, factor in zip(kernels, factors.values()):
        (right,) = moved(OURS[name](0.1 * factor), [[step]], {"w": np.ones([2, 2], np.float32)})
        np.testing.assert_allclose(kernel.numpy(), right, rtol=1e-6)


@keras.utils.register_keras_serializable("mine")
class Halved(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.05

    def get_config(self):
        return {}


class Own(keras.Model):
    """Whose layers are built in its call."""

    def __init__(self):
        super().__init__(name="own")
        self.parts = [keras.layers.Dense(2, name=name) for name in ("stem_conv", "predictions")]

    def call(self, inputs):
        return self.parts[1](self.parts[0](inputs))


@pytest.mark.parametrize("kind", ["loaded", "own"])
def test_variables_know_their_layer_however_it_was_built(kind, tmp_path):
    if kind == "loaded":
        names = "stem_conv", "stem_norm", "predictions"
        made = [keras.layers.Dense(2, name=names[0]), layers.LayerNorm(name=names[1])]
        model = keras.Sequential([keras.Input([4, 4, 2]), *made, keras.layers.Dense(2, name=names[2])])
        if compat.TF_VERSION < (2, 12):
            pytest.skip("this Keras has no .keras files")
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
        images = tf.ones([2, 4, 4, 2])
    else:
        model, images = Own(), tf.ones([2, 2])
    for at_once in (True, False):
        optimizer = optimizers.SGD(1.0, momentum=0.0, layer_rates=[("stem_", 0.25)])
        optimizer.rule = optimizer.rule if at_once else None
        model.compile(optimizer, loss="mse", jit_compile=False)
        model(images)
        before = [v.numpy() for v in model.trainable_variables]
        optimizer.apply_gradients([(tf.ones_like(v.numpy()), v) for v in model.trainable_variables])
        steps = [old - v.numpy() for old, v in zip(before, model.trainable_variables)]
        same(steps, [0.25] * (len(steps) - 2) + [1, 1])
    count = len(model.trainable_variables)
    assert len(WeightAverage(model).named()) == 1 + count
    assert len(compat.optimizer_state(optimizer, model.trainable_variables)) == 1 + count


def test_names_that_do_not_tell_variables_apart_are_an_error():
    kernels = [variable(np.ones([2, 2]), "kernel") for _ in range(3)]
    with pytest.raises(ValueError, match="3 of 3 are called 'kernel'"):
        compat.optimizer_state(optimizers.SGD(0.1), kernels)
    assert len(compat.optimizer_state(optimizers.SGD(0.1), kernels, range(3))) == 4
    optimizer = optimizers.SGD(0.1, layer_rates=[("stem", 0.5)])
    with pytest.raises(ValueError, match="the variable 'kernel' has none in its name"):
        optimizer.apply_gradients([(tf.ones([2, 2]), kernels[0])])
    named = optimizers.SGD(0.1, layer_rates=[("stem", 0.5), ("kernel", 2.0)])
    named.apply_gradients([(tf.ones([2, 2]), kernels[0])])


@pytest.mark.skipif(not compat.KERAS3, reason="a method of Keras 3")
@pytest.mark.parametrize("made", [lambda: optimizers.SGD(0.1, weight_decay=0.5),
                                  lambda: optimizers.of_keras("Adam", 0.1, weight_decay=0.5)])  # fmt: skip
def test_keras_own_way_to_exclude_variables_from_decay(made):
    before, variables = start(), [variable(value, name) for name, value in start().items()]
    optimizer = made()
    optimizer.exclude_from_weight_decay(var_list=variables[:1], var_names=["bias"])
    optimizer.apply_gradients([(tf.zeros(v.shape), v) for v in variables])
    for v, value in zip(variables, before.values()):
        np.testing.assert_array_equal(v.numpy(), value)


@pytest.mark.parametrize("name", list(OURS)[1:])
def test_config_round_trip(name):
    optimizer = OURS[name](0.1, weight_decay=0.2, accumulation=3, guard="skip", clip_norm=2.0, layer_rates=[("a", 0.5)])
    config = optimizer.get_config()
    again = type(optimizer).from_config(config)
    assert again.get_config() == config
    assert (again.accumulation, again.guard, again.clip_norm) == (3, "skip", 2.0)
    assert again.layer_rates == (("a", 0.5),) and again.decay_rate == 0.2


@pytest.mark.parametrize("arguments", [{"global_clipnorm": 0.5}, {"gradient_accumulation_steps": 2}])
def test_config_keeps_what_keras_own_arguments_were(arguments):
    if "gradient_accumulation_steps" in arguments and not compat.KERAS3:
        pytest.skip("an argument of Keras 3")
    config = optimizers.SGD(0.1, **arguments).get_config()
    assert {name: config[name] for name in arguments} == arguments
    assert optimizers.SGD.from_config(config).get_config() == config
    ours = optimizers.SGD(0.1, accumulation=2, clip_norm=1.0).get_config()
    assert not {"global_clipnorm", "gradient_accumulation_steps"} & set(ours)


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
@pytest.mark.parametrize(
    "name, rate",
    [
        (FOREIGN, lambda: 0.1),
        (FOREIGN, lambda: Cosine(0.1, steps=9)),
        (FOREIGN, lambda: Halved()),
        ("SGD", lambda: Cosine(0.1, steps=9)),
    ],
)
def test_models_with_an_optimizer_of_keras_are_saved_and_loaded(name, rate, tmp_path):
    compat.set_seed(0)
    x, y = np.random.default_rng(0).normal(size=(2, 8, 4)).astype("float32")
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(4, name="head")])
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile(optimizers.of_keras(name, rate(), weight_decay=0.1, clip_norm=0.5, guard="report"), "mse", **kwargs)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    optimizer = again.optimizer
    assert int(optimizer.iterations) == 4
    assert (optimizer.l2, optimizer.clip_norm, optimizer.guard, optimizer.accumulation) == (0.1, 0.5, "report", 1)
    assert optimizer.get_config() == model.optimizer.get_config()
    for either in (model, again):
        either.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    same(again.get_weights(), model.get_weights())


@pytest.mark.skipif(compat.KERAS3, reason="Keras 3's Nadam counts updates")
@pytest.mark.parametrize("arguments", [{"accumulation": 2}, {"guard": "skip"}])
def test_an_optimizer_that_counts_passes_is_refused_where_they_are_no_updates(arguments):
    with pytest.raises(ValueError, match="Nadam multiplies up its momentums in passes without an update"):
        optimizers.of_keras("Nadam", 0.1, **arguments)
    optimizers.of_keras("Nadam", 0.1, guard="report")


@pytest.mark.parametrize("name", OURS)
def test_variables_of_float64(name):
    values = []
    for dtype in (np.float32, np.float64):
        variable = tf.Variable(np.arange(1, 4, dtype=dtype), name="kernel")
        optimizer = OURS[name](0.1, weight_decay=0.01)
        for _ in range(2):
            optimizer.apply_gradients([(tf.constant([1.0, -2.0, 3.0], dtype), variable)])
        assert variable.dtype == dtype
        values.append(variable.numpy())
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("name", [*list(OURS)[1:], FOREIGN])
def test_state_has_a_place_in_checkpoints(name):
    made = (lambda: optimizers.of_keras(name, 0.1)) if name == FOREIGN else (lambda: OURS[name](0.1))
    steps = gradients(4)
    variables = [variable(value, name) for name, value in start().items()]
    optimizer = made()
    for step in steps[:2]:
        optimizer.apply_gradients(zip(map(tf.constant, step), variables))
    kept = {name: v.numpy() for name, v in compat.optimizer_state(optimizer, variables).items()}
    again = made()
    others = [variable(v.numpy(), name) for name, v in zip(start(), variables)]
    for key, place in compat.optimizer_state(again, others).items():
        place.assign(kept[key])
    for step in steps[2:]:
        again.apply_gradients(zip(map(tf.constant, step), others))
    same([v.numpy() for v in others], moved(made(), steps))


def test_refuses():
    with pytest.raises(ValueError, match="momentum must be in"):
        optimizers.SGD(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="beta_2 must be in"):
        optimizers.AdamW(0.1, beta_2=1.5)
    with pytest.raises(ValueError, match="no optimizer 'Adm'; it has .*Adam"):
        optimizers.of_keras("Adm", 0.1)
    assert set(OURS) == set(OPTIMIZERS)
