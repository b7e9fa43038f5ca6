import pytest
import torch
import torch_geometric.transforms as T

from hellm_pyg.data import SequenceLoader
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import Popularity
from hellm_pyg.transforms import LeaveOneOut, SampleUsers
from tests.builders import rec_data


def mask_of(share, num_users=40, **kwargs):
    return SampleUsers(share, **kwargs)(rec_data(num_users))['user'].sample_mask


@pytest.mark.parametrize(('share', 'number'), [(0.25, 10), (1, 40), (0.01, 1)])
def test_so_many_users(share, number):
    mask = mask_of(share)
    assert mask.shape == (40,)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == number


def test_the_same_users_in_every_run():
    small, large = mask_of(0.2), mask_of(0.6)
    assert torch.equal(small, mask_of(0.2))
    assert not torch.equal(small, mask_of(0.2, seed=1))
    assert bool(large[small].all())


def test_nothing_else_changes():
    plain, sampled = rec_data(), T.Compose([SampleUsers(0.5)])(rec_data())
    edges = ('user', 'interacts', 'item')
    assert torch.equal(plain[edges].edge_index, sampled[edges].edge_index)
    assert sampled['user'].num_nodes == plain['user'].num_nodes
    assert 'sample_mask' not in plain['user']


def test_sequences_and_targets_of_the_sample_alone():
    whole = LeaveOneOut()(rec_data(seed=3))
    data = SampleUsers(0.3)(LeaveOneOut()(rec_data(seed=3)))
    sample = set(data['user'].sample_mask.nonzero().view(-1).tolist())

    def users(data, split, **kwargs):
        loader = SequenceLoader(data, split, batch_size=4, **kwargs)
        return sorted(u for batch in loader for u in batch.user.tolist())

    for split in ('train', 'val', 'test'):
        found, every = users(data, split), users(whole, split)
        assert found == [user for user in every if user in sample]
        assert len(found) < len(every)
    # Anybody may be recommended something, or be asked for by name.
    assert users(data, 'all') == users(whole, 'all')
    assert users(data, 'val', users=range(40)) == users(whole, 'val')
    model = Popularity(40, 30)
    model.fit(data)
    ranked = evaluate(model, whole, 'test')
    part = evaluate(model, data, 'test')
    own = torch.tensor([int(user) in sample for user in ranked.user])
    assert torch.equal(part.user, ranked.user[own])
    assert torch.equal(part.rank, ranked.rank[own])


@pytest.mark.parametrize('share', [0, -0.1, 1.01, float('nan')])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match=r"'share' needs to be above 0 and at most 1"):
        SampleUsers(share)


def test_repr():
    assert repr(SampleUsers(0.1)) == 'SampleUsers(0.1)'
