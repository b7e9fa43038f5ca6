import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.datasets.kcore import core_mask

edges = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), max_size=60)


def one_at_a_time(edges: list[tuple[int, int]], k: int) -> set[int]:
    """Positions left when the first offending edge is dropped until none is."""
    left = dict(enumerate(edges))
    while True:
        users = [u for u, _ in left.values()]
        items = [i for _, i in left.values()]
        bad = [
            position
            for position, (u, i) in left.items()
            if users.count(u) < k or items.count(i) < k
        ]
        if not bad:
            return set(left)
        del left[bad[0]]


@given(edges=edges, k=st.integers(0, 4))
def test_equals_dropping_one_edge_at_a_time(edges, k):
    user, item = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    mask = core_mask(user, item, k)
    assert set(np.flatnonzero(mask)) == one_at_a_time(edges, k)


@given(edges=edges, k=st.integers(0, 4))
def test_degrees_and_repetition(edges, k):
    user, item = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    mask = core_mask(user, item, k)
    user, item = user[mask], item[mask]
    for side in (user, item):
        assert (np.unique(side, return_counts=True)[1] >= k).all()
    assert core_mask(user, item, k).all()
    assert core_mask(user[::-1], item[::-1], k).all()


@given(edges=edges, k=st.integers(0, 3), k_user=st.integers(0, 4))
def test_users_may_need_more_than_items(edges, k, k_user):
    user, item = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    mask = core_mask(user, item, k, k_user)
    left = dict(enumerate(edges))
    while True:
        bad = [
            position
            for position, (u, i) in left.items()
            if sum(v == u for v, _ in left.values()) < k_user
            or sum(j == i for _, j in left.values()) < k
        ]
        if not bad:
            break
        del left[bad[0]]
    assert set(np.flatnonzero(mask)) == set(left)
