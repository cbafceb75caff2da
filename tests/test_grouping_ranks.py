"""What processes must not change: two with half of every batch against one with all of it."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from made_groups import made_bank, normal
from torch import multiprocessing

from smog.distributed import rows_of_all_ranks

STEPS, BATCH = 4, 24  # of two views: 192 features through a cache of 50


def work(rank, world):
    """Some steps of training with this rank's part of every batch; return all that must not depend on the ranks."""
    bank = made_bank(0, groups=6, dim=5, momentum=0.7, cache=50)
    weight = normal(1, 7, 5).requires_grad_()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    found = {"started": started(bank, normal(2, 2, BATCH, 5)[:, mine])}
    for step in range(STEPS):
        x, q = normal(10 + step, 2, BATCH, 7)[:, mine], normal(20 + step, 2, BATCH, 5)[:, mine]
        z = F.normalize(x @ weight, dim=-1)
        found[f"balanced {step}"] = rows_of_all_ranks(bank.balanced(z), 1)
        groups = bank.updated(z)
        target = torch.arange(2 * BATCH).view(2, BATCH)[:, mine].flatten() % 6
        loss = bank.loss((q @ weight[:5, :5]).flatten(0, 1), groups, target, 0.2)
        (gradient,) = torch.autograd.grad(loss, weight)
        bank.commit(groups, z)
        if world > 1:  # what DDP does
            dist.all_reduce(gradient)
        found |= {f"groups {step}": groups.detach(), f"gradient {step}": gradient / world}
        with torch.no_grad():
            weight -= 0.1 * gradient / world
    found |= {f"{name} at the end": value.clone() for name, value in bank.state_dict().items()}
    bank.regroup(torch.Generator().manual_seed(3 + rank))  # the first rank's draws are everyone's
    usage = torch.tensor(list(bank.usage().values()), dtype=torch.float64)
    return found | {"regrouped": bank.groups, "belonging": bank.cached_own, "usage": usage}


def started(bank, z):
    bank = copy.deepcopy(bank)
    bank.start_from(z)
    return bank.groups


def in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(work(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory):
    """What one process finds with whole batches, and each of two with half of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        multiprocessing.spawn(in_process, (str(folder),), nprocs=2)
    return work(0, 1), torch.load(folder / "0.pt"), torch.load(folder / "1.pt")


@pytest.mark.parametrize(
    "names",
    [["started"], ["balanced 0", "balanced 3"], ["groups 0", "groups 3"], ["gradient 0", "gradient 3"],
     ["cache at the end", "pushed at the end", "cached_own at the end"], ["groups at the end"],
     ["regrouped", "belonging"], ["usage"]],
    ids=lambda names: names[0],
)  # fmt: skip
def test_two_processes_with_half_the_batch_give_what_one_gives(by_ranks, names):
    alone, first, second = by_ranks
    for name in names:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(first[name], second[name])
