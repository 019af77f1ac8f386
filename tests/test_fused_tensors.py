"""How a request's tensors lie side by side, and in how few copies they go in and out."""

import pytest
from conftest import VARIANTS
from drawn import specs
from hypothesis import given
from hypothesis import strategies as st

from looprnn.engines.fused_slots import copied_in
from looprnn.engines.fused_tensors import ALIGNMENT, places, room, stretches


@given(spec=specs(), batch=st.integers(1, 64), time=st.integers(1, 64), data=st.data())
def test_no_tensor_lies_on_another_and_a_stretch_holds_what_it_should(spec, batch, time, data):
    batch, time = min(batch, spec.profile.batch.max), min(time, spec.profile.time.max)
    where = places(spec, batch, time)
    end = 0
    for place in where.values():
        assert place.offset % ALIGNMENT == 0
        assert end <= place.offset < end + ALIGNMENT
        end = place.offset + place.nbytes
    assert end <= room(spec)
    assert set(where) == {*spec.input_names, *spec.output_names, "slots"}
    names = data.draw(st.sets(st.sampled_from(sorted(where))))
    found = stretches(where, names)
    for name, place in where.items():
        inside = [at <= place.offset and place.offset + place.nbytes <= at + n for at, n in found]
        assert any(inside) == (name in names)


@pytest.mark.parametrize("begin", ["given", "slots", "both"])
@pytest.mark.parametrize("name", ["lstm", "padded_gru", "tokens", "bilstm"])
def test_what_goes_in_is_one_copy(name, begin):
    spec = VARIANTS[name]
    into = copied_in(spec, begin).values()
    assert len(stretches(places(spec, 3, 5), into)) == 1


def test_what_comes_out_is_one_copy_and_what_nobody_asked_for_stays():
    spec = VARIANTS["lstm"]
    where = places(spec, 3, 5)
    ((at, _),) = stretches(where, {"output"})
    assert at == where["output"].offset
    assert len(stretches(where, set(spec.output_names))) == 1
    assert len(stretches(where, {"h_n", "output"})) == 2
