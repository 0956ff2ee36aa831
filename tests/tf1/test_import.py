"""What `import gpureg.tf1` brings along: no array library but NumPy, and no TensorFlow above all."""

from gpureg import tf1
from tests.test_import import LIBRARIES, loaded_by


def test_importing_imports_no_framework() -> None:
    assert not loaded_by("import gpureg.tf1") & LIBRARIES


def test_a_variable_and_its_penalty_import_no_framework() -> None:
    statements = (
        "from gpureg import tf1; tf1.get_variable('w', [3], regularizer=tf1.l2_regularizer(0.5)); "
        "float(tf1.losses.get_regularization_loss())"
    )
    assert not loaded_by(statements) & (LIBRARIES - {"llvmlite"})  # what computes, if it is installed


def test_gpureg_does_not_import_it() -> None:
    assert not any(module.startswith("gpureg.tf1") for module in loaded_by("import gpureg"))


def test_the_public_names_are_there() -> None:
    for name in tf1.__all__:
        assert getattr(tf1, name) is not None
