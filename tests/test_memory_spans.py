"""Which spans of memory meet, against a comparison of all pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpureg import memory
from tests.helpers import LAYOUTS

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.booleans()), max_size=12)


@given(spans)
def test_the_pairs_that_meet_are_those_with_a_byte_in_common(given_: list[tuple[int, int, bool]]) -> None:
    starts = np.array([start for start, _, _ in given_], np.int64)
    stops = starts + np.array([length for _, length, _ in given_], np.int64)
    written = np.array([writes for _, _, writes in given_], bool)
    expected = {
        (i, j)
        for j in range(len(given_))
        for i in range(j)
        if (written[i] or written[j]) and set(range(starts[i], stops[i])) & set(range(starts[j], stops[j]))
    }
    found = list(memory.meetings(starts, stops, written))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_the_extent_of_an_array_is_that_of_its_elements() -> None:
    for name, layout in LAYOUTS.items():
        array = layout.place(np.zeros((3, 4, 5), np.float32)).array
        start = array.__array_interface__["data"][0]
        low, high = np.lib.array_utils.byte_bounds(array)
        assert memory.extent(array.shape, array.strides, array.itemsize) == (low - start, high - start), name
    assert memory.extent((3, 0), (4, 4), 4) == (0, 0)
    assert memory.extent((), (), 8) == (0, 8)
