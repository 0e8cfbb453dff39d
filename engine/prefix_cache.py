"""The prefix cache: states in host memory, found by the tokens that they have read.

A radix tree over token logs. A state may stand at any token: at the end of a prompt, of a reply, at a checkpoint that
a request marked, and where two logs were found to part, since a third is likely to part there too. The longest match
wins; there is no grid.

The budget is in bytes. What goes first is what saves least: the tokens that would have to be read again from the next
shorter state, per byte, aged by when it was last used (GreedyDual-Size: Cao and Irani 1997, section 4; for recurrent
states Pan et al. 2024, Marconi, section 4.2). A state that a sequence still needs lives on until it has been loaded.

A scope (an API key) sees its own logs only: that a prefix is known is itself a secret.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from ostinato.engine.state_pool import State

MIN_BRANCH = 16  # tokens that a state at a parting must save: less is read faster than it is copied

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """state: the longest useful one. branch: where the log parts from another one, beyond that state, if it does."""

    state: State | None
    branch: int | None = None


@dataclass(slots=True, eq=False)
class _Node:
    """The end of `edge`, `depth` tokens below the root. value, version: of its entry in the heap, if it has a state."""

    edge: Tokens
    depth: int
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    state: State | None = None
    value: float = 0.0
    version: int = 0


class PrefixCache:
    """Belongs to the engine's thread. `budget` is in bytes; 0 keeps nothing."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.num_bytes = 0
        self.num_states = 0
        self.evictions = 0
        self._roots: dict[str, _Node] = {}
        self._heap: list[tuple[float, int, _Node]] = []
        self._versions = count(1)
        self._age = 0.0  # value of what was evicted last: what comes later is worth so much more

    def find(self, scope: str, tokens: Tokens) -> Match:
        """The longest state that has read a beginning of `tokens`: of all of them only if it brought its logits."""
        root = self._roots.get(scope)
        if root is None:
            return Match(None)
        path, matched = _walk(root, tokens)
        best = next((node for node in reversed(path) if _is_useful(node, tokens)), None)
        if best is not None:
            self._touch(best)
        known = 0 if best is None else best.depth
        parts = known + MIN_BRANCH <= matched < len(tokens)
        return Match(None if best is None else best.state, matched if parts else None)

    def insert(self, scope: str, tokens: Tokens, state: State) -> None:
        """Keeps a state that has read exactly `tokens`, and makes room for it. One larger than the budget is not kept.

        One that is there already stays, unless the new one brings logits and it had none.
        """
        if not tokens or _cost(state, len(tokens)) > self.budget:
            return
        node = self._node_at(scope, tokens)
        if node.state is not None and (node.state.logits is not None or state.logits is None):
            self._touch(node)
            return
        self._drop(node)
        node.state = state
        self.num_states += 1
        self.num_bytes += _cost(state, node.depth)
        self._touch(node)
        self._make_room()

    def _node_at(self, scope: str, tokens: Tokens) -> _Node:
        """The node of exactly these tokens, which is made if there is none."""
        root = self._roots.setdefault(scope, _Node((), 0, None))
        path, matched = _walk(root, tokens)
        node = path[-1]
        if matched > node.depth:
            node = _split(node.children[tokens[node.depth]], matched - node.depth)
        if matched < len(tokens):
            leaf = _Node(tokens[matched:], len(tokens), node)
            node.children[tokens[matched]] = leaf
            node = leaf
        return node

    def _touch(self, node: _Node) -> None:
        """It was used now: counts from the present age again."""
        if node.state is None:
            return
        node.version = next(self._versions)
        node.value = self._age + _saved_tokens(node) / _cost(node.state, node.depth)
        heapq.heappush(self._heap, (node.value, node.version, node))

    def _make_room(self) -> None:
        while self.num_bytes > self.budget:
            value, version, node = heapq.heappop(self._heap)
            if node.version != version or node.state is None:
                continue  # it was used since this entry was made
            self._age = value
            self.evictions += 1
            self._drop(node)
            self._prune(node)

    def _drop(self, node: _Node) -> None:
        if node.state is not None:
            self.num_bytes -= _cost(node.state, node.depth)
            self.num_states -= 1
            node.state = None

    def _prune(self, node: _Node) -> None:
        """Removes nodes that lead nowhere, upwards from `node`."""
        while node.parent is not None and not node.children and node.state is None:
            parent = node.parent
            del parent.children[node.edge[0]]
            node = parent
        if node.parent is None and not node.children:
            self._roots = {scope: root for scope, root in self._roots.items() if root is not node}


def _walk(root: _Node, tokens: Tokens) -> tuple[list[_Node], int]:
    """The nodes that `tokens` passes, from the root, and how many tokens match, which may end inside of an edge."""
    path = [root]
    while True:
        node = path[-1]
        child = node.children.get(tokens[node.depth]) if node.depth < len(tokens) else None
        if child is None:
            return path, node.depth
        shared = _common_length(child.edge, tokens[node.depth : child.depth])
        if shared < len(child.edge):
            return path, node.depth + shared
        path.append(child)


def _common_length(left: Tokens, right: Tokens) -> int:
    """Length of the longest common beginning; by halves, since comparing slices is faster than comparing tokens."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _split(node: _Node, at: int) -> _Node:
    """Puts a new node into the edge that leads to `node`, `at` tokens below its parent."""
    assert node.parent is not None  # the root has no edge
    upper = _Node(node.edge[:at], node.parent.depth + at, node.parent)
    node.parent.children[upper.edge[0]] = upper
    upper.children[node.edge[at]] = node
    node.edge, node.parent = node.edge[at:], upper
    return upper


def _is_useful(node: _Node, tokens: Tokens) -> bool:
    return node.state is not None and (node.depth < len(tokens) or node.state.logits is not None)


def _saved_tokens(node: _Node) -> int:
    """What would have to be read again without it."""
    return node.depth - next((other.depth for other in _ancestors(node) if other.state is not None), 0)


def _ancestors(node: _Node) -> Iterator[_Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _cost(state: State, tokens: int) -> int:
    """Bytes: of the state, and of the log as the tree holds it, at most."""
    return state.num_bytes + 8 * tokens
