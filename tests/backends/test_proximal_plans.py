"""Proximal steps of several tensors on the CPU: the definition's bits, each tensor with a length of its own."""

import numpy as np
import pytest

from gpureg import backends
from gpureg.backends import Leaf
from tests import reference
from tests.helpers import DTYPES, REGULARIZERS, assert_bits, content, raw, values
from tests.reference import Rule

USABLE = [name for name in backends.NAMES if name != "cuda" and backends.load(name).unusable() is None]


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("strength", [1.0, 0.7, 0.0])
def test_steps_have_the_definition_s_bits(name: str, strength: float) -> None:
    backend = backends.load(name)
    rules = [rule for _, rule in REGULARIZERS.values()]
    regularizers = [regularizer for regularizer, _ in REGULARIZERS.values()]
    dtypes = [list(DTYPES)[i % 4] for i in range(len(rules))]
    weights = [content("wide", 300 * i, dtype, seed=i) for i, dtype in enumerate(dtypes)]
    lengths = [0.5 / (1 + i % 3) for i in range(len(rules))]
    expected = [
        reference.proximal(values(w), dtype, scaled(rule, strength), length)
        for w, dtype, rule, length in zip(weights, dtypes, rules, lengths, strict=True)
    ]
    coefficients = [regularizer.coefficients for regularizer in regularizers]
    plan = backend.proximal_plan([Leaf(*pair) for pair in zip(weights, coefficients, strict=True)])
    before = [raw(w) for w in weights]
    for skips in (1.0, np.array(1, np.float32), np.nan):
        plan.take(lengths, strength=strength, skips=skips)
        assert all(np.array_equal(raw(w), bits) for w, bits in zip(weights, before, strict=True))
    plan.take([np.array(length) for length in lengths], strength=np.array(strength), skips=np.array(0.0))
    for w, numbers, dtype in zip(weights, expected, dtypes, strict=True):
        assert_bits(w, numbers, dtype)


def scaled(rule: Rule, strength: float) -> Rule:
    """Return a rule whose coefficients are scaled, as a strength does first."""
    return Rule(l1=rule.l1 * strength, l2=rule.l2 * strength, halved=rule.halved)
