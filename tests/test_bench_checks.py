"""What the benches refuse: to time a wrong answer, and to call a leak flat."""

import dataclasses

import numpy as np
import pytest
import soak
from compare import Cell, Inputs
from conftest import VARIANTS
from load import closed_loop
from serving import judge
from streams import Streams, Truth
from systems import (
    INFER,
    System,
    read_triton,
    triton_message,
)
from wire import grpc_request

SPEC = VARIANTS["lstm_random"]


def system(server, read=read_triton):
    return System(
        name="looprnn",
        protocol="grpc",
        address=server.grpc,
        pid=0,
        frame=lambda x: grpc_request(INFER, triton_message(SPEC.name, {"input": x})),
        read=read,
    )


def a_little_off(answer):
    return {name: array + np.float32(1e-3) for name, array in read_triton(answer).items()}


def without_c_n(answer):
    return {name: array for name, array in read_triton(answer).items() if name != "c_n"}


@pytest.mark.live
def test_a_wrong_answer_is_not_timed(server):
    inputs = Inputs.draw(SPEC, (8, 20), count=3)
    right = system(server)
    measured = closed_loop(inputs.requests(right), 2, 0.3)
    for wrong, error in ((a_little_off, SystemExit), (without_c_n, KeyError)):
        with pytest.raises(error):
            inputs.requests(system(server, wrong))
    cell = Cell(system=right, traffic="ragged", concurrency=2)
    cell.add(measured, inputs)
    assert cell.row()["throughput_rps"] > 0 and 8 * cell.rates[0] <= cell.steps[0]
    cell.system = system(server, a_little_off)
    with pytest.raises(SystemExit, match="not timed"):
        cell.add(measured, inputs)


@pytest.mark.live
def test_a_stream_that_lost_its_state_is_not_timed(server):
    truth = Truth(SPEC)
    streams = Streams(address=server.grpc, model=f"{SPEC.name}_stream", chunks=truth.chunks)
    truth.prove_all("streams", streams)
    forgetful = dataclasses.replace(streams, model=SPEC.name)  # begins anew with each chunk
    with pytest.raises(SystemExit, match="chunk 1 is wrong"):
        truth.prove_all("forgetful", forgetful)


def cell(name, traffic, rate, p99, steps):
    fields = dict.fromkeys(("protocol", "address", "pid", "frame", "read"))
    made = Cell(system=System(name=name, **fields), traffic=traffic, concurrency=8)
    made.rates, made.p50, made.p99, made.steps = [rate], [1.0], [p99], [steps]
    return made


def test_ratios_are_of_the_same_load():
    said = judge(
        [
            cell("looprnn", "equal", 200.0, 3.0, 6400.0),
            cell("plain", "equal", 100.0, 2.0, 3200.0),
            cell("looprnn", "ragged", 90.0, 9.0, 3200.0),
        ]
    )
    assert said == [
        "at 8, looprnn does 2.00 times plain's requests (target 1.4); its p99 is not lower, "
        "3.0 to 2.0 ms",
        "at 8, looprnn does 0.50 of the useful steps a second on ragged traffic that it does on "
        "equal (target 0.8)",
    ]


def samples(memory):
    return [
        soak.Sample(second=float(k), server=mb, engines=1.0, shared=1.0)
        for k, mb in enumerate(memory)
    ]


@pytest.mark.parametrize(
    ("memory", "flat"),
    [
        ([10.0] + [100.0] * 99, True),  # grows while it warms up
        ([100 + 0.01 * k for k in range(100)], True),
        ([100 + 0.1 * k for k in range(100)], False),  # a slow leak
        ([100.0] * 70 + [110.0] * 30, False),  # a step that stays
        ([100.0] * 95 + [500.0] + [100.0] * 4, True),  # a peak that goes
    ],
    ids=["warm_up", "noise", "leak", "step", "peak"],
)
def test_a_leak_is_not_flat(memory, flat):
    assert soak.verdict(samples(memory), "server")["flat"] is flat


@pytest.mark.live
def test_a_sample_sees_the_engine_processes_and_their_segments(server):
    got = soak.sample(server.process.pid, 0.0)
    engines = soak.children(server.process.pid)
    assert len(engines) >= len(VARIANTS)
    assert got.server > 5 and got.engines > 5 * len(engines) and got.shared > 1
    assert soak.segments(engines)
