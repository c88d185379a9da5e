"""What layers, losses, schedules and the optimizer compute on JAX or PyTorch is what they compute on TensorFlow."""

import json

import helpers
import numpy as np
import pytest
from backends import network

from g16net import compat
from g16net.compat import keras, ops
from g16net.layers import BatchNorm, Dropout, GroupConv2D, ProxyNormActivation, StochasticDepth
from g16net.optim import losses, optimizers
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import Cosine, ExponentialStaircase

pytestmark = [pytest.mark.backends, pytest.mark.run]

PROXY = dict(np.load(helpers.GOLDEN / "proxy_norm_layer.npz"))
LOGITS = dict(np.load(helpers.GOLDEN / "logits.npz"))
PARAMETERS = "gamma", "beta", "proxy_gamma", "proxy_beta"


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def gradients(loss, x, variables):
    """Gradients of `loss(x)` to `x` and to the variables, as arrays, by the backend's own differentiation."""
    x = ops.convert_to_tensor(x)
    if compat.BACKEND == "jax":
        import jax

        def pure(x, values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return loss(x)

        dx, slopes = jax.grad(pure, (0, 1))(x, [v.value for v in variables])
        return [numbers(slope) for slope in (dx, *slopes)]
    x = x.requires_grad_()
    loss(x).backward()
    return [numbers(slope) for slope in (x.grad, *(v.value.grad for v in variables))]


@pytest.mark.parametrize("case", [str(case) for case in PROXY["cases"][::2]])
def test_proxy_norm_has_the_recorded_gradients(case):
    inputs, _, kind = case.partition("/")
    activation, groups, *flags = kind.split("_")
    x = PROXY[f"{inputs}/x"].astype("float32")
    settings = {"groups": int(groups[1:]), "strided": "strided" in flags, "delayed_scale": "delayed" in flags}
    layer = ProxyNormActivation(activation, **settings)
    layer.build(x.shape)
    for name in PARAMETERS:
        getattr(layer, name).assign(PROXY[f"{inputs}/{name}"].astype("float32"))
    given = (PROXY[f"{inputs}/{name}"].astype("float32") for name in ("cotangent", "cotangent_inv_std"))
    cotangents = [ops.convert_to_tensor(one) for one in given]

    def loss(x):
        out = layer(x)
        pairs = zip(out if "delayed" in flags else [out], cotangents)
        return sum(ops.sum(part * cotangent) for part, cotangent in pairs)

    out = layer(x)
    expected = PROXY[f"{case}/out"]
    np.testing.assert_allclose(
        numbers(out[0] if "delayed" in flags else out), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    slopes = gradients(loss, x, [getattr(layer, name) for name in PARAMETERS])
    for name, slope in zip(("x", *PARAMETERS), slopes):
        expected = PROXY[f"{case}/d{name}"]
        np.testing.assert_allclose(slope, expected, rtol=0, atol=3e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("name", network.NAMES)
def test_a_network_predicts_and_trains_as_on_tensorflow(name):
    for what, found in network.results(name).items():
        expected = LOGITS[f"{name}/{what}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=what)


@pytest.mark.parametrize("width, strides, kernel", [(1, 1, 3), (1, 2, 5), (4, 1, 5), (4, 2, 3), (12, 1, 3)])
def test_group_convolution_is_the_sum_over_a_groups_channels(width, strides, kernel):
    random = np.random.RandomState(0)
    x = random.randn(2, 6, 7, 12).astype("float32")
    padded = np.zeros((2, 20, 20, 12))
    # 'SAME': what is missing, the smaller half before
    before = [max((-(-n // strides) - 1) * strides + kernel - n, 0) // 2 for n in (6, 7)]
    padded[:, before[0] : before[0] + 6, before[1] : before[1] + 7] = x
    results = []
    for lowering in ("native", "split") + (("depthwise",) if width == 1 else ()):
        layer = GroupConv2D(kernel, strides, width, lowering=lowering)
        layer.build(x.shape)
        weights = np.random.RandomState(1).randn(kernel, kernel, width, 12).astype("float32")
        layer.kernel.assign(weights)
        expected = np.zeros((2, -(-6 // strides), -(-7 // strides), 12))
        for i in range(expected.shape[1]):
            for j in range(expected.shape[2]):
                patch = padded[:, i * strides : i * strides + kernel, j * strides : j * strides + kernel]
                for c in range(12):
                    first = c // width * width
                    expected[:, i, j, c] = (patch[..., first : first + width] * weights[..., c]).sum((1, 2, 3))
        np.testing.assert_allclose(numbers(layer(x)), expected, atol=2e-5)
        assert layer.compute_output_shape(x.shape) == expected.shape
        results.append(gradients(lambda x: ops.sum(ops.square(layer(x))), x, [layer.kernel]))  # noqa: B023
    for slopes in results[1:]:
        for slope, right in zip(slopes, results[0]):
            np.testing.assert_allclose(slope, right, rtol=1e-4, atol=1e-4 * np.abs(right).max())


def test_batch_norm_keeps_the_unbiased_variance():
    x = np.random.RandomState(0).randn(3, 2, 2, 4).astype("float32") * 2 + 1
    layer = BatchNorm(momentum=0.9)
    y = numbers(layer(x, training=True))
    np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3), atol=1e-5)
    np.testing.assert_allclose(numbers(layer.moving_mean), 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(numbers(layer.moving_variance), 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    layer.trainable = False
    assert np.abs(numbers(layer(x, training=True)) - y).max() > 0.1


@pytest.mark.parametrize("run", ["plain", "l2", "recipe"])
def test_rmsprop_follows_the_recorded_trajectory(run):
    golden = np.load(helpers.GOLDEN / "rmsprop.npz")
    names = ["kernel", "bias", "gamma", "beta"]
    variables = [keras.Variable(golden["init/" + name].astype("float32"), name=name) for name in names]
    optimizer = RMSProp(0.0, rho=float(golden[run + "/decay"]), weight_decay=float(golden[run + "/weight_decay"]))
    for index, rate in enumerate(golden["lr"]):
        optimizer.learning_rate = float(rate)
        gradients = [ops.convert_to_tensor(golden["grad/" + name][index].astype("float32")) for name in names]
        optimizer.apply(gradients, variables)
        for name, variable in zip(names, variables):
            np.testing.assert_allclose(numbers(variable), golden[f"{run}/{name}"][index], rtol=0, atol=1e-5)
    assert int(optimizer.iterations) == 20


def test_schedules_have_the_recorded_rates():
    recorded = json.loads((helpers.GOLDEN / "schedules.json").read_text())
    for name, kind in (("exponential_batch768", ExponentialStaircase), ("finetune_cosine", Cosine)):
        one = recorded[name]
        schedule = kind(one["base_lr"], one["iterations"], one["warmup_iterations"])
        rates = [numbers(schedule(ops.convert_to_tensor(step))) for step in one["step"]]
        assert {rate.dtype for rate in rates} == {np.dtype("float32")}
        np.testing.assert_allclose(rates, one["lr"], rtol=1e-6, atol=1e-17)
    if ops.WHOLE == "int32":
        with pytest.raises(ValueError, match=r"steps \* drops must fit int32"):
            ExponentialStaircase(0.1, 2**30, drops=146)


def test_losses_and_metrics_take_every_form_of_labels():
    random = np.random.RandomState(0)
    logits, ids = random.randn(6, 5).astype("float32"), np.array([0, 1, 2, 3, 4, 0])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.full((6, 5), 0.1 / 4)
    rows[np.arange(6), ids] = 0.9
    expected = -(rows * log_probs).sum(-1).mean()
    mixed = np.stack([np.stack([ids, np.full(6, 0.25)], -1), np.stack([ids, np.full(6, 0.75)], -1)], 1)
    loss = losses.SmoothedCrossEntropy(5)
    for labels in (ids, ids[:, None], np.eye(5)[ids], mixed.astype("float32")):
        assert float(loss(labels, logits)) == pytest.approx(expected, rel=1e-5)
        assert numbers(losses.main_class(labels, 5)).tolist() == ids.tolist()
    assert np.isnan(float(loss(np.array([-1]), logits[:1])))
    with pytest.raises(ValueError, match="do not fit logits of 5 classes"):
        loss(np.zeros((6, 4), "float32"), logits)

    metric = losses.Top5()
    metric.update_state(np.array([0, 4, 5, 7]), np.zeros((4, 8), "float32"))  # of equal logits the first come first
    assert float(metric.result()) == 0.5
    top1 = losses.Top1()
    top1.update_state(ids, logits, sample_weight=np.ones(6))
    assert float(top1.result()) == pytest.approx((logits.argmax(-1) == ids).mean())


@pytest.mark.parametrize("layer, shape", [(StochasticDepth(0.75, seed=3), (400, 1, 1, 2)), (Dropout(0.25), (40, 20))])
def test_what_is_drawn_keeps_the_mean(layer, shape):
    x = np.ones(shape, "float32")
    assert (numbers(layer(x, training=False)) == 1).all()
    first, second = (numbers(layer(x, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {0, np.float32(1 / 0.75)} and (first != second).any()
    assert abs(first.mean() - 1) < 0.15
    if len(shape) == 4:
        assert (first[..., 0] == first[..., 1]).all()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lamb", "Lion"])
def test_optimizers_equal_those_of_keras(name):
    arguments = {"SGD": ({}, {"momentum": 0.9, "nesterov": True}), "Lamb": ({}, {"epsilon": 1e-6})}
    decay = {"weight_decay": 0.1} if name in ("AdamW", "Lion") else {}
    ours, theirs = arguments.get(name, ({}, {}))
    both = [
        getattr(optimizers, name)(0.1, **ours, **decay, clip_norm=2.0),
        getattr(keras.optimizers, name)(0.1, **theirs, **decay, global_clipnorm=2.0),
    ]
    draw = np.random.default_rng(0)
    start, gradients = draw.normal(size=(3, 4)), draw.normal(size=(5, 3, 4))
    results = []
    for optimizer in both:
        variable = keras.Variable(start.astype("float32"), name="kernel")
        for gradient in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient.astype("float32"))], [variable])
        results.append(keras.ops.convert_to_numpy(variable))
    np.testing.assert_allclose(*results, rtol=2e-5, atol=2e-5)
