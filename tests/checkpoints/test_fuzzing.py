"""Files with changes are read or refused; `tests.checkpoints.fuzzing` goes on with it for longer."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpureg import checkpoints
from tests.checkpoints.fuzzing import ATTACKS, survive
from tests.checkpoints.samples import SAMPLES


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_themselves_are_read(tmp_path: Path, name: str) -> None:
    assert not survive(tmp_path / name, SAMPLES[name])


@pytest.mark.parametrize("kind", ATTACKS)
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_changed_files_are_read_or_refused(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    name, contents = data.draw(ATTACKS[kind])
    survive(tmp_path / name, contents)


@pytest.mark.parametrize("name", SAMPLES)
def test_files_cut_off_anywhere_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(SAMPLES[name])
    for size in reversed(range(len(SAMPLES[name]))):
        os.truncate(path, size)
        with pytest.raises(checkpoints.CheckpointError, match=rf"^{path}(, byte \d+)?: .+$"):
            checkpoints.read(path)
