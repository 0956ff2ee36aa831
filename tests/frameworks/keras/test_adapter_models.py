"""Layers and models of Keras with the regularizers of `gpureg.keras`: losses, training, saving and loading."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import gpureg
import gpureg.keras
from gpureg.keras import L1, L1L2, L2, HalvedL2, OrthogonalRegularizer
from tests.frameworks.keras.sides import orthogonal_bound, outcome, sum_bound, tensor
from tests.frameworks.keras.test_adapter import bits, gradients_agree, number

# What torch.compile says of Keras's code, and of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`.*'dtypes.py:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

BACKEND = keras.backend.backend()
ONES = np.ones((5, 5), np.float32)
MODES: dict[str, dict[str, Any]] = {
    "eager": {"run_eagerly": True}, "default": {}, "compiled": {"jit_compile": True}
}  # fmt: skip


def dense(units: int = 5, **options: Any) -> Any:
    return keras.layers.Dense(units, kernel_initializer="ones", use_bias=False, **options)


def losses(layer: Any, x: Any) -> list[float]:
    """Return a layer's losses of one call."""
    layer(tensor(x))
    return [number(loss) for loss in layer.losses]


# Layers --------------------------------------------------------------------------------------------------------------


def test_the_example_of_keras_s_documentation() -> None:
    layer = dense(kernel_regularizer=L1(0.01), activity_regularizer=L2(0.01))
    assert losses(layer, 2 * ONES) == [5.0, 0.25]
    assert number(keras.ops.sum(layer.losses)) == 5.25


@pytest.mark.parametrize("mode", MODES)
def test_the_example_within_a_model(mode: str) -> None:
    model = keras.Sequential([dense(kernel_regularizer=L1(0.01), activity_regularizer=L2(0.01))])
    model.compile(loss="mse", **MODES[mode])
    assert model.evaluate(2 * ONES, 10 * ONES, batch_size=5, verbose=0) == 5.25  # there is no other loss


def test_a_users_own_function() -> None:
    def penalty(weight_matrix: Any) -> Any:
        return L1(0.01)(weight_matrix)

    assert losses(dense(kernel_regularizer=penalty), ONES) == [0.25]


def test_a_users_own_class() -> None:
    class Own(keras.regularizers.Regularizer):  # type: ignore[misc] # Keras has no types
        def __init__(self, l2: float = 0.0) -> None:
            self.l2 = l2

        def __call__(self, x: Any) -> Any:
            return HalvedL2(2 * self.l2)(x)

        def get_config(self) -> dict[str, Any]:
            return {"l2": self.l2}

    class Derived(L2):
        def __call__(self, w: Any) -> Any:
            return super().__call__(w) / 2

    for own in (Own(0.5), Derived(1.0)):
        assert losses(dense(kernel_regularizer=own), ONES) == [12.5]


@pytest.mark.parametrize("own", [gpureg.L2(0.5), lambda w: 0.5 * gpureg.l2_loss(w)])
def test_gpureg_s_own_are_for_arrays(own: Any) -> None:
    layer = dense(kernel_regularizer=own)
    layer.build((None, 5))
    with pytest.raises(TypeError, match=r"keras\..*Variable"):
        _ = layer.losses
    assert number(own(layer.kernel.value)) == {"L2": 12.5}.get(type(own).__name__, 6.25)


def test_a_frozen_layer_keeps_its_activity_alone() -> None:
    layer = dense(kernel_regularizer=L1(0.01), activity_regularizer=L2(0.01))
    layer.build((None, 5))
    layer.trainable = False
    assert losses(layer, 2 * ONES) == [5.0]
    layer.trainable = True
    assert losses(layer, 2 * ONES) == [5.0, 0.25]


def test_a_frozen_layer_is_not_penalised_when_a_model_is_trained() -> None:
    frozen = dense(kernel_regularizer=L2(0.25), trainable=False)
    model = keras.Sequential([frozen, dense(kernel_regularizer=L2(0.25))])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    history = model.fit(ONES, 25 * ONES, batch_size=5, verbose=0)
    assert history.history["loss"] == [6.25]
    assert (keras.ops.convert_to_numpy(frozen.kernel) == 1).all()


def test_an_empty_batch_has_an_activity_penalty_of_zero() -> None:
    assert losses(dense(activity_regularizer=L1L2(1.0, 1.0)), ONES[:0]) == [0.0]


LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[str, ...]]] = {
    "Dense": (lambda **r: keras.layers.Dense(3, **r), (5,), ("kernel", "bias")),
    "EinsumDense": (lambda **r: keras.layers.EinsumDense("ab,bc->ac", 3, bias_axes="c", **r), (5,), ("kernel", "bias")),
    "Conv2D": (lambda **r: keras.layers.Conv2D(4, 3, **r), (6, 6, 2), ("kernel", "bias")),
    "DepthwiseConv2D": (lambda **r: keras.layers.DepthwiseConv2D(3, **r), (6, 6, 2), ("depthwise", "bias")),
    "SeparableConv2D": (
        lambda **r: keras.layers.SeparableConv2D(4, 3, **r), (6, 6, 2), ("depthwise", "pointwise", "bias")
    ),
    "Embedding": (lambda **r: keras.layers.Embedding(7, 3, **r), (4,), ("embeddings",)),
    "LSTM": (lambda **r: keras.layers.LSTM(3, **r), (4, 5), ("kernel", "recurrent", "bias")),
    "BatchNormalization": (keras.layers.BatchNormalization, (5,), ("beta", "gamma")),
    "PReLU": (lambda **r: keras.layers.PReLU(alpha_initializer="ones", **r), (5,), ("alpha",)),
    "MultiHeadAttention": (
        lambda **r: keras.layers.MultiHeadAttention(2, 4, **r), (4, 5), ("kernel", "bias")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_penalise_the_same_weights_as_with_keras_s_own(name: str) -> None:
    make, shape, parts = LAYERS[name]

    def built(regularizer: Any) -> Any:
        keras.utils.set_random_seed(0)
        layer = make(**{f"{part}_regularizer": regularizer for part in parts})
        x = keras.Input(shape)
        layer(*[x] * (2 if name == "MultiHeadAttention" else 1))
        return layer

    ours, theirs = built(L1L2(0.1, 0.3)), built(keras.regularizers.L1L2(0.1, 0.3))
    penalised = [variable for variable in ours.trainable_weights if variable.regularizer is not None]
    assert len(ours.losses) == len(theirs.losses) == len(penalised) >= len(parts)
    for variable, loss, reference in zip(penalised, ours.losses, theirs.losses, strict=True):
        w = keras.ops.convert_to_numpy(variable)
        assert bits(loss) == bits(gpureg.L1L2(0.1, 0.3)(w))
        assert abs(number(reference) - number(loss)) <= sum_bound(w.size, np.float32) * number(loss)


class Wrapped(keras.layers.Layer):  # type: ignore[misc] # Keras has no types
    """A layer within another, whose output shape Keras finds by calling it on what stands for a batch."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Any] = []

    def call(self, x: Any) -> Any:
        y = self.inner(x)
        self.seen.append(y.shape)
        return y


@pytest.mark.parametrize("mode", MODES)
def test_activities_of_inner_layers_of_a_functional_model(mode: str) -> None:
    inner = dense(activity_regularizer=L2(0.01))
    inner.build((None, 5))
    wrapped, x = Wrapped(inner), keras.Input((5,))
    model = keras.Model(x, wrapped(x))
    assert len({tuple(shape) for shape in wrapped.seen}) == len(wrapped.seen)  # none was tried twice, to get by
    model.compile(loss="mse", **MODES[mode])
    assert model.evaluate(2 * ONES, 10 * ONES, batch_size=5, verbose=0) == 5.0


@pytest.mark.parametrize("mode", MODES)
def test_activities_of_an_unknown_batch_may_be_orthogonal(mode: str) -> None:
    regularizer = OrthogonalRegularizer(5.0)
    x = keras.Input((5,))
    model = keras.Model(x, Wrapped(keras.layers.Identity(activity_regularizer=regularizer))(x))
    model.compile(loss="mse", **MODES[mode])
    batch = np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32)
    expected = float(gpureg.OrthogonalRegularizer(5.0)(batch)) / 4
    assert abs(model.evaluate(batch, batch, verbose=0) - expected) <= 5 / 4 * orthogonal_bound(4, 5) + 2**-24


def test_a_layer_s_own_penalty_is_of_its_weights_as_it_sees_them() -> None:
    class Own(keras.layers.Layer):  # type: ignore[misc] # likewise
        def __init__(self) -> None:
            super().__init__(dtype="mixed_float16")
            self.kernel = self.add_weight((3,), initializer=keras.initializers.Constant(1.001))

        def call(self, x: Any) -> Any:
            self.add_loss(L2(1.0)(self.kernel))
            return x

    layer = Own()
    layer(tensor(ONES))
    (loss,) = layer.losses
    assert bits(loss) == bits(gpureg.L2(1.0)(np.full(3, 1.001, np.float16)))


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_training_follows_the_gradient(mode: str) -> None:
    model = keras.Sequential([dense(kernel_regularizer=L1L2(0.25, 0.125))])
    model.compile(keras.optimizers.SGD(0.5), "mse", **MODES[mode])
    history = model.fit(ONES, 5 * ONES, batch_size=5, verbose=0)  # of which the kernel of ones makes no error
    assert history.history["loss"] == [25 * 0.375]
    assert keras.ops.convert_to_numpy(model.layers[0].kernel).tolist() == [[1 - 0.5 * (0.25 + 2 * 0.125)] * 5] * 5


def layer_gradient(layer: Any, x: Any, loss: Callable[[Any], Any]) -> Any:
    """Return the gradient of a loss of a layer's output and of its own losses at its kernel."""
    match BACKEND:
        case "tensorflow":
            import tensorflow  # noqa: PLC0415 - only the backend that is there is imported

            with tensorflow.GradientTape() as tape:
                total = loss(layer(x)) + sum(layer.losses)
            return keras.ops.convert_to_numpy(tape.gradient(total, layer.kernel.value))
        case "jax":
            import jax  # noqa: PLC0415 - likewise

            def total_of(kernel: Any) -> Any:
                output, _, losses = layer.stateless_call([kernel], [], x, return_losses=True)
                return loss(output) + sum(losses)

            return keras.ops.convert_to_numpy(jax.grad(total_of)(layer.kernel.value))
        case _:
            (loss(layer(x)) + sum(layer.losses)).backward()
            return keras.ops.convert_to_numpy(layer.kernel.value.grad)


def test_the_gradient_of_a_convolution_s_penalty_is_the_manual_one() -> None:
    layer = keras.layers.Conv2D(4, (3, 3), use_bias=False, kernel_regularizer=L2(1e-4))
    layer.build((None, 8, 8, 3))
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    (loss,) = layer.losses
    manual = number(keras.ops.sum(keras.ops.square(layer.kernel)) * 1e-4)
    assert abs(number(loss) - manual) <= sum_bound(kernel.size, np.float32) * manual
    x = tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3), dtype=np.float32))
    gradient = layer_gradient(layer, x, lambda output: 0 * keras.ops.sum(output))
    assert gradients_agree(gradient, gpureg.L2(1e-4).grad(kernel))
    # As reduce_sum(square(v)) * 1e-4 has it: 1e-4 is rounded to float32, doubling is exact, and so is the rest but for
    # one product.
    assert gradients_agree(gradient, np.float32(1e-4) * (2 * kernel))


def data(seed: int = 0) -> tuple[Any, Any]:
    x = np.random.default_rng(seed).standard_normal((64, 6), dtype=np.float32)
    return x, np.tanh(x[:, :1] - 0.5 * x[:, 1:2])


def small_model() -> Any:
    keras.utils.set_random_seed(0)
    shared = L1L2(1e-3, 2e-3)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", kernel_regularizer=shared, bias_regularizer=HalvedL2(1e-2)),
            keras.layers.Dense(4, "tanh", kernel_regularizer=OrthogonalRegularizer(1e-2, "columns")),
            keras.layers.Dense(1, kernel_regularizer=shared, activity_regularizer=L2(1e-3)),
        ]
    )


def train(model: Any, epochs: int) -> list[float]:
    fitted: list[float] = model.fit(*data(), batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    return fitted


def regularizers_of(model: Any) -> list[Any]:
    parts = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
    return [getattr(layer, part) for layer in model.layers for part in parts]


def weight_losses(model: Any) -> list[Any]:
    return [bits(variable.regularizer(variable)) for variable in model.trainable_weights if variable.regularizer]


def through_file(model: Any, path: Path, **options: Any) -> Any:
    model.save(path)
    return keras.saving.load_model(path, **options)


def with_weights(again: Any, model: Any) -> Any:
    again.set_weights(model.get_weights())
    return compile_anew(again)


def compile_anew(model: Any) -> Any:
    model.compile("adam", "mse")
    return model


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "keras": lambda model, folder: through_file(model, folder / "model.keras"),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "copy": lambda model, _: copy.deepcopy(model),
    # Of HDF5 Keras 3.15 reads no training state that could be trained with.
    "HDF5": lambda model, folder: compile_anew(through_file(model, folder / "model.h5", compile=False)),
    "JSON": lambda model, _: with_weights(keras.models.model_from_json(model.to_json()), model),
    "clone": lambda model, _: with_weights(keras.models.clone_model(model), model),
    "configuration": lambda model, _: with_weights(type(model).from_config(model.get_config()), model),
}
WITH_OPTIMIZER = ("keras", "pickle", "copy")


@pytest.mark.parametrize("way", WAYS)
def test_a_trained_model_is_saved_loaded_and_continues_with_the_same_penalty(way: str, tmp_path: Path) -> None:
    model = compile_anew(small_model())
    first, *_, last = train(model, 5)
    assert last < first
    again = WAYS[way](model, tmp_path)
    assert again is not model
    assert regularizers_of(again) == regularizers_of(model)
    assert list(map(type, regularizers_of(again))) == list(map(type, regularizers_of(model)))
    assert len(weight_losses(model)) == 4
    assert weight_losses(again) == weight_losses(model)
    assert again.evaluate(*data(1), verbose=0) == model.evaluate(*data(1), verbose=0)
    if way not in WITH_OPTIMIZER:
        compile_anew(model)
    assert train(again, 2) == train(model, 2)
    assert weight_losses(again) == weight_losses(model)


def test_weights_that_are_penalised_become_smaller() -> None:
    def norm(strength: float) -> float:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(1, kernel_regularizer=L2(strength))])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        train(model, 3)
        return float(gpureg.l2_loss(keras.ops.convert_to_numpy(model.layers[0].kernel)))

    assert norm(0.5) < norm(0.05) < norm(0.0)


POLICIES = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", *(["float64"] if BACKEND != "jax" else [])]


def fit_with(side: Any, policy: str) -> Any:
    layer = dense(2, dtype=policy, kernel_regularizer=side.L2(0.5), activity_regularizer=side.L1(0.25))
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model.fit(ONES, 5 * ONES[:, :2], batch_size=5, verbose=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_dtype_policy_is_trained_with(policy: str) -> None:
    # Of ten weights of one, and of two outputs of five for each row: all exact.
    assert fit_with(gpureg.keras, policy).history["loss"] == [0.5 * 10 + 0.25 * 10]


@pytest.mark.parametrize("policy", POLICIES)
def test_keras_s_own_are_not_on_tensorflow(policy: str) -> None:
    expected = "TypeError" if BACKEND == "tensorflow" else "History"
    assert outcome(lambda: fit_with(keras.regularizers, policy))[0] == expected


# Programs that have not imported gpureg.keras ------------------------------------------------------------------------

LOADING = """
import sys, keras
l2, halved = sys.argv[1:]
regularizer = keras.saving.load_model(l2).layers[0].kernel_regularizer
print(type(regularizer).__module__.partition(".")[0], regularizer.l2)
try:
    keras.saving.load_model(halved)
except TypeError as error:
    print("Could not interpret regularizer identifier" in str(error) and "gpureg>HalvedL2" in str(error))
import gpureg.keras
print(*(keras.saving.load_model(path).layers[0].kernel_regularizer for path in (l2, halved)))
"""


def test_without_gpureg_keras_a_model_has_keras_s_own_or_is_an_error(tmp_path: Path) -> None:
    for regularizer in (L2(0.5), HalvedL2(0.5)):
        model = keras.Sequential([keras.Input((5,)), dense(kernel_regularizer=regularizer)])
        model.save(tmp_path / f"{type(regularizer).__name__}.keras")
    command = [sys.executable, "-c", LOADING, str(tmp_path / "L2.keras"), str(tmp_path / "HalvedL2.keras")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["keras 0.5", "True", "L2(l2=0.5) HalvedL2(l2=0.5)"]
