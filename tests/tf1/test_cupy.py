"""Variables of CuPy arrays: one launch for all penalties, with NumPy's bits. The kernels run on the host."""

from typing import Any

import numpy as np
import pytest

from gpureg import samples, tf1
from tests.helpers import bits
from tests.kernels.conftest import cupy  # noqa: F401 - a fixture
from tests.kernels.fake_cupy import FakeCupy, on_device

SHAPES = {"fc1": (100, 30), "fc2": (30, 10), "out": (10,)}


def total(place: Any) -> Any:
    with tf1.Graph().as_default():
        for number, (name, shape) in enumerate(SHAPES.items()):
            array = place(samples.weights(int(np.prod(shape)), np.dtype(np.float32), seed=number).reshape(shape))
            with tf1.variable_scope(name, regularizer=tf1.l1_l2_regularizer(0.1, 0.3)):
                assert tf1.get_variable("kernel", initializer=array).value is array
        return 0.01 * sum(tf1.losses.get_regularization_losses())


def test_a_sum_of_penalties_is_one_launch_with_numpys_bits(cupy: FakeCupy) -> None:  # noqa: F811 - the fixture
    expected, deferred = total(lambda array: array), total(lambda array: on_device(cupy, array))
    assert not cupy.launches
    for _ in range(2):
        launches = len(cupy.launches)
        value = deferred.value
        assert len(cupy.launches) == launches + 1
        assert isinstance(value, cupy.ndarray)
        assert bits(value.get()) == bits(expected.value)


def test_one_penalty_is_one_launch_over_its_own_variable(cupy: FakeCupy) -> None:  # noqa: F811 - likewise
    w = samples.weights(1000, np.dtype(np.float32))
    loss = tf1.nn.l2_loss(tf1.get_variable("w", initializer=on_device(cupy, w)))
    assert bits(loss.value.get()) == bits(tf1.nn.l2_loss(w))
    assert len(cupy.launches) == 1


def test_variables_of_two_libraries_are_an_error_that_names_them(cupy: FakeCupy) -> None:  # noqa: F811 - likewise
    for name, place in (("a", np.asarray), ("b", lambda array: on_device(cupy, array))):
        tf1.get_variable(name, initializer=place(np.ones(3, np.float32)), regularizer=tf1.l2_regularizer(0.5))
    both = tf1.losses.get_regularization_losses()
    assert [bits(np.asarray(both[0].value)), bits(both[1].value.get())] == [bits(np.float32(0.75))] * 2
    with pytest.raises(TypeError, match=r"^weights\['b:0'\] is of cupy, but weights\['a:0'\] is of numpy; all must"):
        float(sum(both))
