"""The prefix cache: a radix tree of token sequences that remembers the model's states.

What a real server keeps as KV blocks is here the language model's state after each token, so
a prefix that is found need not be computed again. The size is bounded in tokens; the least
recently used leaves go first. A running sequence holds its own states, so a node may be
evicted under it without harm: the cache is an accelerator and a count, never a dependency.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import Generic, TypeVar

StateT = TypeVar("StateT")
EVICTION_SLACK = 16  # evict one sixteenth of the capacity at a time, so that it stays rare


class _Node(Generic[StateT]):
    __slots__ = ("children", "key", "parent", "states", "used")

    def __init__(self, key: list[int], states: list[StateT], parent: _Node[StateT] | None) -> None:
        self.key = key
        self.states = states
        self.parent = parent
        self.children: dict[int, _Node[StateT]] = {}
        self.used = 0


class RadixCache(Generic[StateT]):
    """Token sequences with one state per token. ``size`` counts the tokens that are held."""

    def __init__(self, capacity: int) -> None:
        """``capacity``: the most tokens held; 0 switches the cache off."""
        self.capacity = capacity
        self.size = 0
        self._root: _Node[StateT] = _Node([], [], None)
        self._clock = itertools.count(1)

    def match(self, tokens: Sequence[int]) -> list[StateT]:
        """The states after the longest known prefix of ``tokens``, one per token of it."""
        states: list[StateT] = []
        node, position, now = self._root, 0, next(self._clock)
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                break
            child.used = now
            shared = _shared(child.key, tokens, position)
            if shared < len(child.key):
                states += child.states[:shared]
                break
            states += child.states
            position += shared
            node = child
        return states

    def insert(self, tokens: Sequence[int], states: Sequence[StateT]) -> int:
        """Remembers ``tokens``; ``states[i]`` is the state after ``tokens[: i + 1]``.

        Returns how many tokens had to be forgotten to make room.
        """
        if not self.capacity:
            return 0
        node, position, now = self._root, 0, next(self._clock)
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                child = _Node(list(tokens[position:]), list(states[position:]), node)
                child.used = now
                node.children[tokens[position]] = child
                self.size += len(child.key)
                break
            child.used = now
            shared = _shared(child.key, tokens, position)
            if shared < len(child.key):
                child = self._split(child, shared)
            position += shared
            node = child
        before = self.size
        if self.size > self.capacity:
            self._evict(self.capacity - self.capacity // EVICTION_SLACK)
        return before - self.size

    def clear(self) -> None:
        """Forgets everything."""
        self._root = _Node([], [], None)
        self.size = 0

    def _split(self, node: _Node[StateT], at: int) -> _Node[StateT]:
        """Cuts ``node`` after ``at`` tokens and returns the upper half."""
        parent = node.parent
        assert parent is not None, "the root has no key and is never split"
        upper = _Node(node.key[:at], node.states[:at], parent)
        upper.used = node.used
        parent.children[upper.key[0]] = upper
        node.key, node.states, node.parent = node.key[at:], node.states[at:], upper
        upper.children[node.key[0]] = node
        return upper

    def _evict(self, target: int) -> None:
        order = itertools.count()
        leaves: list[tuple[int, int, _Node[StateT]]] = []
        stack = [self._root]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if not node.children and node.parent is not None:
                leaves.append((node.used, next(order), node))
        heapq.heapify(leaves)
        while leaves and self.size > target:
            node = heapq.heappop(leaves)[2]
            parent = node.parent
            assert parent is not None, "only leaves below the root are collected"
            del parent.children[node.key[0]]
            self.size -= len(node.key)
            if not parent.children and parent.parent is not None:
                heapq.heappush(leaves, (parent.used, next(order), parent))


def _shared(key: list[int], tokens: Sequence[int], start: int) -> int:
    """How many tokens of ``key`` stand in ``tokens`` from ``start`` on."""
    window = tokens[start : start + len(key)]
    if window == key:
        return len(key)
    for index, (one, other) in enumerate(zip(key, window, strict=False)):
        if one != other:
            return index
    return min(len(key), len(window))
