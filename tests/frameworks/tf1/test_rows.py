"""What people come from, line by line, and what to write instead: the table of the documentation."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpureg
from gpureg import tf1
from tests.frameworks.tf1.sides import bound, names, number, ours, penalties, same, theirs
from tests.helpers import bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf
    from tensorflow.python.keras.legacy_tf_layers import convolutional, core  # what tf.layers is without Keras 3

pytestmark = pytest.mark.filterwarnings("ignore:.*(is|are) deprecated and will be removed:UserWarning")

DECAY = 0.1
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 3, 1, 64), dtype=np.float32)
WEIGHTS = RNG.standard_normal((20, 7), dtype=np.float32)
ONES = np.ones(7, np.float32)


def close(mine: Any, other: Any, count: int) -> bool:
    """Return whether two penalties of so many weights are as near as both sides' rounding."""
    return bool(abs(float(mine) - float(other)) <= bound(count) * float(other))


def penalty_of_layer(one: Any) -> tuple[Any, ...]:
    """Return what a layer of TensorFlow's left: names, the weights and the value of the penalty."""
    import tensorflow.compat.v1 as v1  # noqa: PLC0415

    [loss] = one.losses.get_regularization_losses()
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        kernel, value = session.run([one.trainable_variables()[0], loss])
    return names(one.trainable_variables()), penalties(one), kernel, value


def by_hand(scope: str, kernel: NDArray[Any]) -> tuple[Any, ...]:
    """Return the same of variables made by hand in a scope."""

    def script(one: Any) -> tuple[Any, ...]:
        with one.variable_scope(scope):
            one.get_variable("kernel", initializer=kernel, regularizer=one.l2_regularizer(DECAY))
            one.get_variable("bias", [kernel.shape[-1]], initializer=np.zeros)
        return names(one.trainable_variables()), penalties(one), one.losses.get_regularization_loss().value

    found: tuple[Any, ...] = ours(script)
    return found


def test_tf_layers_conv2d_with_a_kernel_regularizer() -> None:
    def layer(one: Any) -> Any:
        convolutional.conv2d(tf.ones([1, 8, 8, 1]), 64, 3, kernel_regularizer=one.l2_regularizer(DECAY), name="conv")
        return penalty_of_layer(one)

    variables, losses, kernel, value = theirs(layer)
    assert variables == ["conv/kernel:0", "conv/bias:0"]
    assert losses == ["conv/kernel/Regularizer/l2_regularizer:0"]
    mine = by_hand("conv", kernel)
    assert mine[:2] == (variables, losses)
    assert close(mine[2], value, kernel.size)


def test_tf_layers_dense_with_a_kernel_regularizer() -> None:
    def layer(one: Any) -> Any:
        core.dense(tf.ones([1, 20]), 7, kernel_regularizer=one.l2_regularizer(DECAY), name="fc")
        return penalty_of_layer(one)

    variables, losses, kernel, value = theirs(layer)
    mine = by_hand("fc", kernel)
    assert mine[:2] == (variables, losses) == (["fc/kernel:0", "fc/bias:0"], ["fc/kernel/Regularizer/l2_regularizer:0"])
    assert close(mine[2], value, kernel.size)


def test_contrib_fully_connected_with_a_weights_regularizer() -> None:
    """The layer calls its kernel `weights`, but the penalty after the kernel."""

    def layer(one: Any) -> Any:
        one.slim.fully_connected(tf.ones([1, 20]), 7, weights_regularizer=one.l2_regularizer(DECAY), scope="fc")
        return penalty_of_layer(one)

    variables, losses, kernel, value = theirs(layer)
    assert variables == ["fc/weights:0", "fc/biases:0"]
    mine = by_hand("fc", kernel)
    assert mine[1] == losses == ["fc/kernel/Regularizer/l2_regularizer:0"]
    assert close(mine[2], value, kernel.size)


def test_get_variable_and_variable_scope_with_a_regularizer() -> None:
    def script(one: Any) -> Any:
        one.get_variable("w", initializer=WEIGHTS, regularizer=one.l1_regularizer(DECAY))
        with one.variable_scope("conv", regularizer=one.l2_regularizer(DECAY)):
            one.get_variable("kernel", initializer=KERNEL)
            one.get_variable("bias", initializer=ONES, regularizer=one.no_regularizer)
        return penalties(one), [float(number(loss)) for loss in one.losses.get_regularization_losses()]

    (mine, values), (other, reference) = ours(script), theirs(script)
    assert mine == other == ["w/Regularizer/l1_regularizer:0", "conv/kernel/Regularizer/l2_regularizer:0"]
    assert all(map(close, values, reference, (WEIGHTS.size, KERNEL.size)))


def model(one: Any) -> Any:
    for name, array in (("conv/kernel", KERNEL), ("fc/kernel", WEIGHTS), ("fc/bias", ONES)):
        regularizer = one.no_regularizer if "bias" in name else one.l2_regularizer(DECAY)
        one.get_variable(name, initializer=array, regularizer=regularizer)
    return one


COUNT = KERNEL.size + WEIGHTS.size


def test_the_total_of_the_collection_in_each_form() -> None:
    forms = [
        lambda one: model(one).losses.get_regularization_loss(),
        lambda one: model(one).add_n(one.get_collection(one.GraphKeys.REGULARIZATION_LOSSES)),
        lambda one: sum(model(one).get_collection(one.GraphKeys.REGULARIZATION_LOSSES)),
        lambda one: model(one).reduce_sum(one.get_collection(one.GraphKeys.REGULARIZATION_LOSSES)),
    ]
    values = [ours(lambda one, form=form: form(one).value) for form in forms]  # type: ignore[misc] # mypy cannot infer
    assert len({int(bits(value)) for value in values}) == 1
    for form in forms:
        assert close(values[0], theirs(lambda one, form=form: number(form(one))), COUNT)  # type: ignore[misc] # likewise


def test_the_sum_by_hand_over_trainable_variables() -> None:
    def script(one: Any) -> Any:
        model(one)
        wanted = [v for v in one.trainable_variables() if "bias" not in v.name]
        manual = DECAY * one.reduce_sum([one.nn.l2_loss(v) for v in wanted])
        return number(manual), number(one.losses.get_regularization_loss())

    mine, other = ours(script), theirs(script)
    assert bits(mine[0]) == bits(mine[1])  # of TensorFlow's this is not promised
    assert close(mine[0], other[0], COUNT)


def test_the_sum_of_squares_of_eager_variables() -> None:
    theirs = tf.add_n([tf.reduce_sum(tf.square(tf.Variable(w))) for w in (KERNEL, WEIGHTS)])
    with tf1.Graph().as_default():
        variables = [model(tf1).get_collection(tf1.GraphKeys.TRAINABLE_VARIABLES)][0][:2]
        deferred = 2 * tf1.add_n([tf1.nn.l2_loss(v) for v in variables])
        at_once = gpureg.Penalty({v.name: v.value for v in variables}, gpureg.L2(1.0))()
        assert bits(deferred.value) == bits(at_once)
        assert close(at_once, theirs, COUNT)
        # As it stands it works too, but the sums are NumPy's, in float32 as TensorFlow's.
        as_it_stands = tf1.add_n([tf1.reduce_sum(np.square(v)) for v in variables])
        assert abs(float(as_it_stands) - float(at_once)) <= 2 * bound(COUNT) * float(at_once)


def test_raw_weights_put_into_the_collection() -> None:
    def script(one: Any) -> Any:
        key = one.GraphKeys.REGULARIZATION_LOSSES
        for name, array in (("a", KERNEL), ("b", WEIGHTS)):
            one.add_to_collection(key, one.get_variable(name, initializer=array))
        penalty = one.apply_regularization(one.l2_regularizer(DECAY), one.get_collection(key))
        return penalty.name, names(one.get_collection(key)), number(penalty)

    mine, other = ours(script), theirs(script)
    assert mine[:2] == other[:2] == ("get_regularization_penalty:0", ["a:0", "b:0", "get_regularization_penalty:0"])
    assert close(mine[2], other[2], COUNT)


def test_weight_decay_collected_variable_by_variable() -> None:
    def script(one: Any) -> Any:
        for name, array in (("conv1", KERNEL), ("fc", WEIGHTS)):
            with one.variable_scope(name):
                v = one.get_variable("weights", initializer=array)
                one.add_to_collection("losses", one.nn.l2_loss(v) * DECAY)
        one.add_to_collection("losses", np.float32(2.5))
        losses = one.get_collection("losses")
        return names(losses), names(one.get_collection("losses", "fc")), number(one.add_n(losses))

    mine, other = ours(script), theirs(script)
    assert mine[:2] == other[:2] == (["conv1/mul:0", "fc/mul:0", None], ["fc/mul:0"])
    assert close(mine[2], other[2], COUNT + 1)


def test_a_loss_in_a_session_is_a_float_here() -> None:
    def script(one: Any) -> Any:
        model(one)
        return float(number(np.float32(2.5) + 0.5 * sum(one.losses.get_regularization_losses())))

    assert close(ours(script), theirs(script), COUNT + 2)


def test_a_step_of_an_optimizer() -> None:
    """TensorFlow differentiates the loss; here the Penalty behind it adds its gradient to those of the model."""
    import tensorflow.compat.v1 as v1  # noqa: PLC0415

    def theirs_step(one: Any) -> Any:
        model(one)
        loss = one.losses.get_regularization_loss()
        step = v1.train.GradientDescentOptimizer(0.5).minimize(loss)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(step)
            return session.run(one.trainable_variables())

    def own_step(one: Any) -> Any:
        for name, array in (("conv/kernel", KERNEL.copy()), ("fc/kernel", WEIGHTS.copy()), ("fc/bias", ONES)):
            regularizer = one.no_regularizer if "bias" in name else one.l2_regularizer(DECAY)
            one.get_variable(name, initializer=array, regularizer=regularizer)
        penalty = one.losses.get_regularization_loss().as_penalty()
        grads = {v.name: np.zeros_like(v.value) for v in one.trainable_variables()}
        penalty.accumulate_grad(grads)
        for v in one.trainable_variables():
            v -= np.float32(0.5) * grads[v.name]  # noqa: PLW2901 - in place
        return [v.value for v in one.trainable_variables()]

    for mine, other in zip(ours(own_step), theirs(theirs_step), strict=True):
        # w - 0.5 * (DECAY * w): the decay, its product and the difference are rounded once on either side, by 2**-24 of
        # w and less.
        np.testing.assert_allclose(mine, other, rtol=6 * 2.0**-24, atol=0)


def test_variables_are_assigned_to() -> None:
    def script(one: Any) -> Any:
        v = one.get_variable("v", initializer=ONES.copy(), regularizer=one.l2_regularizer(1.0))
        loss = one.losses.get_regularization_loss()
        if one is tf1:
            v.assign(3 * ONES)
            v.assign_add(ONES)
            v.assign_sub(2 * ONES)
            return float(loss)
        import tensorflow.compat.v1 as v1  # noqa: PLC0415

        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for change in (v.assign(3 * ONES), v.assign_add(ONES), v.assign_sub(2 * ONES)):
                session.run(change)
            return float(session.run(loss))

    assert same(script) == 14.0


def test_the_loss_of_each_replica() -> None:
    """TensorFlow divides by the replicas of its strategy, of which there is one here."""
    strategy = tf.distribute.get_strategy()
    assert strategy.num_replicas_in_sync == 1
    assert tf1.nn.scale_regularization_loss(ONES) == float(tf.nn.scale_regularization_loss(ONES)) == 7.0
    assert tf1.nn.scale_regularization_loss(ONES, num_replicas=2) == 3.5


def test_l2_loss_of_half_precision_and_of_a_list() -> None:
    w = np.full(3, 2, np.float16)
    assert tf.nn.l2_loss(w) == tf1.nn.l2_loss(w) == 6.0
    assert tf.nn.l2_loss(w).dtype == tf.float16
    assert tf1.nn.l2_loss(w).dtype == np.float16
    assert tf1.nn.l2_loss(tf.constant(w)).dtype == tf.float16
    assert gpureg.l2_loss(w).dtype == np.float32
    large = np.array([300.0], np.float16)  # TensorFlow's sum of squares overflows before it is halved
    assert np.isinf(tf.nn.l2_loss(large))
    assert tf1.nn.l2_loss(large) == np.float16(45_000)
    assert tf.nn.l2_loss([[1.0, -2.0], [-3.0, 4.0]]) == 15.0
    with pytest.raises(TypeError, match="make an array of them first"):
        tf1.nn.l2_loss([[1.0, -2.0], [-3.0, 4.0]])
