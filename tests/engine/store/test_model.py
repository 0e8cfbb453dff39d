"""Random operations on the store against a dictionary that does the same."""

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.engine.store.folder_blobs import FolderBlobs
from ostinato.engine.store.state_store import StateRecord, StateStore, Tier
from tests.engine.store.samples import ALICE, BOB, Clock, content, put

OWNERS = ("", ALICE, BOB)
CONTENTS = 4

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put for a while", "fork", "delete", "pin", "wait", "sweep", "repair", "reopen"]),
        st.sampled_from(OWNERS),
        st.integers(0, CONTENTS - 1),
    ),
    max_size=25,
)


class Model:
    """What should be there: owner and id of every living state, with its record and content."""

    def __init__(self, folder: str) -> None:
        self.clock = Clock()
        self.folder = folder
        self.states: dict[tuple[str, str], tuple[StateRecord, bytes]] = {}
        self.store = self.opened()

    def opened(self) -> StateStore:
        return StateStore([Tier(FolderBlobs(self.folder))], clock=self.clock)

    def apply(self, operation: str, owner: str, number: int) -> None:
        mine = sorted(id for holder, id in self.states if holder == owner)
        chosen = mine[number % len(mine)] if mine else None
        if operation in ("put", "put for a while"):
            expires = self.clock.now + 3 if operation == "put for a while" else None
            record = put(self.store, content(number), owner=owner, expires=expires)
            self.states[owner, record.id] = (record, content(number))
        elif operation == "wait":
            self.clock.tick(2)
        elif operation in ("sweep", "repair"):
            getattr(self.store, operation)()
        elif operation == "reopen":
            self.store = self.opened()
        elif chosen is not None:
            self.change(operation, owner, chosen)
        self.forget_expired()

    def change(self, operation: str, owner: str, id: str) -> None:
        if operation == "delete":
            self.store.delete(owner, id)
            del self.states[owner, id]
        elif operation == "pin":
            self.states[owner, id] = (self.store.update(owner, id, pinned=True), self.states[owner, id][1])
        else:
            for fork in self.store.fork(owner, id, 2):
                self.states[owner, fork.id] = (fork, self.states[owner, id][1])

    def forget_expired(self) -> None:
        now = self.clock.now
        for key, (record, _) in list(self.states.items()):
            if record.expires is not None and record.expires <= now:
                del self.states[key]

    def check(self) -> None:
        """Listings, contents and the number of files are as they should be. Reads nothing that counts as use."""
        for owner in OWNERS:
            expected = {id: record.labels for (holder, id), (record, _) in self.states.items() if holder == owner}
            assert {record.id: record.labels for record in self.store.page(owner, limit=1000)} == expected
        self.store.sweep()
        assert self.store.usage()[0].contents == len({data for _, data in self.states.values()})
        for (owner, id), (record, data) in self.states.items():
            found, read = self.store.read(owner, id)
            assert bytes(read) == data
            assert (found.pinned, found.expires, found.parent) == (record.pinned, record.expires, record.parent)


@settings(deadline=None, max_examples=40)
@given(OPERATIONS)
def test_the_store_does_what_a_dictionary_does(operations: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Model(folder)
        for operation in operations:
            model.apply(*operation)
        model.check()
