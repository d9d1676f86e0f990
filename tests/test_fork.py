"""A process that forks after it used a device or a daemon: what is whose, in real processes.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import OUTPUT
from forked_processes import FRAMES
from peers import LOCAL, LONG, HandmadeEdge, Sockets, in_one_process
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.offloader import Device, EdgeServer

pytestmark = pytest.mark.usefixtures("no_threads_left")

Start = Callable[..., Process]


def test_a_child_has_its_own_connection_and_the_parent_keeps_its_request(
    onnx_bundle: Bundle, sockets: Sockets, start_process: Start
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    process = start_process(
        "forked_processes", "in_flight", str(onnx_bundle.path), edge.endpoint, edge.control
    )
    parent = edge.greet()
    unanswered = edge.request()
    inherited = process.read_json()
    assert "this process was forked while the request was under way" in inherited["error"]
    child = edge.greet()
    assert child != parent
    request = edge.request()
    assert (unanswered.device_id, request.device_id) == (parent, child)
    answers = [np.full(OUTPUT, value, np.float32) for value in (1, 2)]
    edge.answer(request, answers[1])
    assert process.read_json() == {"event": "child", "output": answers[1].tolist()}
    closed = process.read_json()
    assert "was closed" in closed["error"]
    assert closed["called"] == 0  # the callback is the parent's
    assert process.read_json() == {"event": "exit", "code": 0}
    edge.answer(unanswered, answers[0])
    assert process.read_json() == {"event": "parent", "output": answers[0].tolist()}
    assert process.read_json() == {"event": "called", "own": True}
    assert process.read_all() == ""


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny_bundle", "onnx_bundle"])
def test_children_answer_while_other_threads_of_the_parent_are_busy(
    request: pytest.FixtureRequest, name: str, start_process: Start
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    with EdgeServer(bundle, LOCAL) as edge:
        process = start_process(
            "forked_processes", "busy", str(bundle.path), edge.endpoint, edge.control_endpoint
        )
        assert process.read_json() == {"event": "busy", "codes": [0] * 6}
        assert process.read_all() == ""
        stats = edge.stats()
    assert (stats.failed, stats.expired, stats.rejected) == (0, 0, {})


def test_a_child_keeps_the_fallback_and_the_deadline(
    onnx_bundle: Bundle, start_process: Start
) -> None:
    with EdgeServer(onnx_bundle, LOCAL) as edge:
        process = start_process(
            "forked_processes", "away", str(onnx_bundle.path), edge.endpoint, edge.control_endpoint
        )
        assert process.read_json() == {"event": "parent", "where": "edge"}
    process.write_line()
    answer, ended = {"event": "child", "where": "local"}, {"event": "exit", "code": 0}
    once = [answer, answer, ended, ended]  # child, grandchild, their ends
    assert [process.read_json() for _ in range(9)] == [*once, *once, ended]
    assert process.read_all() == ""


def test_a_child_of_a_daemon_neither_answers_nor_disturbs_it(
    onnx_bundle: Bundle, start_process: Start
) -> None:
    process = start_process("forked_processes", "edge", str(onnx_bundle.path))
    ready = process.read_json()
    with Device(onnx_bundle, ready["endpoint"], control=ready["control"], deadline=LONG) as device:
        expected = in_one_process(onnx_bundle, FRAMES[0])
        np.testing.assert_array_equal(device.infer(FRAMES[0]), expected)
        process.write_line()
        child = process.read_json()
        for call in ("start", "serve", "stats"):
            assert "runs in the process that forked this one" in child[call]
        assert process.read_json() == {"event": "exit", "code": 0}
        np.testing.assert_array_equal(device.infer(FRAMES[0]), expected)
    process.write_line()
    assert process.read_json() == {"event": "served", "count": 2}
    assert process.read_all() == ""


def test_a_child_has_its_own_connections_to_several_edges(
    onnx_bundle: Bundle, start_process: Start
) -> None:
    with EdgeServer(onnx_bundle, LOCAL) as second:
        with EdgeServer(onnx_bundle, LOCAL) as first:
            both = (first, second)
            process = start_process(
                "forked_processes",
                "several",
                str(onnx_bundle.path),
                *(each.endpoint for each in both),
                *(each.control_endpoint for each in both),
            )
            endpoints = [each.endpoint for each in both]
            for name in ("parent", "child"):
                said = process.read_json()
                assert said["event"] == name
                assert said["edge"] in endpoints  # the one that was there first
        process.write_line()
        assert process.read_json() == {"event": "child", "edge": second.endpoint}
        assert process.read_json() == {"event": "exit", "code": 0}
        assert process.read_json() == {"event": "parent", "edge": second.endpoint}
        assert process.read_all() == ""


def test_a_child_is_told_that_its_parent_reads_the_frames_of_a_stream(
    onnx_bundle: Bundle, start_process: Start
) -> None:
    process = start_process("forked_processes", "streaming", str(onnx_bundle.path))
    child = process.read_json()
    assert "this process was forked after the stream was made" in child["error"]
    assert child["answers"] == 1
    assert process.read_json() == {"event": "exit", "code": 0}
    assert process.read_json() == {"event": "parent", "number": True}
    assert process.read_all() == ""
