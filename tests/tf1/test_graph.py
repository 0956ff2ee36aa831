"""Collections, and which graph they are in."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpureg import tf1


def in_a_thread(call: Callable[[], Any]) -> Any:
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


# Collections ---------------------------------------------------------------------------------------------------------


def test_a_collection_is_in_order_with_duplicates_and_a_copy() -> None:
    for item in (2, 1, 2):
        tf1.add_to_collection("numbers", item)
    found = tf1.get_collection("numbers")
    assert found == [2, 1, 2]
    found.clear()
    assert tf1.get_collection("numbers") == [2, 1, 2]


def test_a_reference_is_the_collection_itself_and_makes_it() -> None:
    reference = tf1.get_collection_ref("numbers")
    assert reference == tf1.get_collection("numbers") == []
    reference.append(1)
    tf1.add_to_collection("numbers", 2)
    assert tf1.get_collection("numbers") == reference == [1, 2]
    assert tf1.get_collection_ref("numbers") is reference


def test_asking_for_a_collection_does_not_make_it() -> None:
    tf1.get_collection("numbers").append(1)
    assert tf1.get_collection("numbers") == []


def test_a_scope_is_matched_from_the_start_of_a_name_and_drops_what_has_none() -> None:
    a, ab, ba = (SimpleNamespace(name=name) for name in ("a/x", "ab/x", "b/a"))
    for item in (a, 3.0, ab, np.ones(2), ba, SimpleNamespace(name=None)):
        tf1.add_to_collection("things", item)
    assert tf1.get_collection("things", "a") == [a, ab]
    assert tf1.get_collection("things", "a/") == [a]
    assert tf1.get_collection("things", ".*a$") == [ba]
    assert tf1.get_collection("things", "") == [a, ab, ba]
    assert len(tf1.get_collection("things")) == 6


def test_keys_are_tensorflows() -> None:
    keys = tf1.GraphKeys
    assert (keys.REGULARIZATION_LOSSES, keys.WEIGHTS, keys.TRAINABLE_VARIABLES, keys.GLOBAL_VARIABLES, keys.LOSSES) == (
        "regularization_losses", "weights", "trainable_variables", "variables", "losses",
    )  # fmt: skip


# Graphs --------------------------------------------------------------------------------------------------------------


def test_graphs_share_nothing(graph: tf1.Graph) -> None:
    tf1.get_variable("w", [1])
    with tf1.Graph().as_default() as inner:
        assert tf1.get_default_graph() is inner
        assert tf1.trainable_variables() == []
        tf1.get_variable("w", [2])
        with graph.as_default():
            assert [v.get_shape().as_list() for v in tf1.trainable_variables()] == [[1]]
    assert tf1.get_default_graph() is graph


def test_a_graph_is_left_when_its_block_fails(graph: tf1.Graph) -> None:
    with pytest.raises(KeyError), tf1.Graph().as_default():
        raise KeyError
    assert tf1.get_default_graph() is graph


def test_a_graph_starts_with_no_scope_open() -> None:
    with tf1.variable_scope("outer", regularizer=tf1.l2_regularizer(0.5)), tf1.Graph().as_default():
        assert tf1.get_variable("w", [1]).name == "w:0"
        assert tf1.losses.get_regularization_losses() == []


def test_the_outermost_graph_lasts_until_it_is_reset() -> None:
    def script() -> tuple[Any, ...]:
        graph = tf1.get_default_graph()
        tf1.get_variable("w", [1])
        same = tf1.get_default_graph() is graph
        tf1.reset_default_graph()
        return same, tf1.get_default_graph() is graph, tf1.trainable_variables()

    assert in_a_thread(script) == (True, False, [])


def test_a_graph_that_is_open_is_not_reset() -> None:
    with pytest.raises(AssertionError, match=r"^Do not use tf\.reset_default_graph\(\) to clear nested graphs\."):
        tf1.reset_default_graph()


# Threads -------------------------------------------------------------------------------------------------------------


def test_each_thread_has_a_default_graph_of_its_own(graph: tf1.Graph) -> None:
    theirs = in_a_thread(tf1.get_default_graph)
    assert theirs is not graph
    assert theirs is not in_a_thread(tf1.get_default_graph)


def test_threads_share_a_graphs_variables_but_not_its_scopes(graph: tf1.Graph) -> None:
    def script() -> str:
        with graph.as_default(), tf1.variable_scope("inner") as scope:
            tf1.get_variable("w", [1])
            return scope.name

    with tf1.variable_scope("outer", regularizer=tf1.l2_regularizer(0.5)):
        assert in_a_thread(script) == "inner"
        assert tf1.get_variable_scope().name == "outer"
    assert [v.name for v in tf1.trainable_variables()] == ["inner/w:0"]
    assert tf1.losses.get_regularization_losses() == []


def test_of_many_threads_one_makes_a_variable(graph: tf1.Graph) -> None:
    start = threading.Barrier(8)
    made = []

    def script() -> None:
        with graph.as_default(), tf1.variable_scope("s", reuse=tf1.AUTO_REUSE, regularizer=tf1.l2_regularizer(0.5)):
            start.wait()
            made.append(tf1.get_variable("w", [10_000]))

    threads = [threading.Thread(target=script) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(made) == 8
    assert len(tf1.losses.get_regularization_losses()) == 1
