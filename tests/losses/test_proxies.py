"""The proxies of identities against a loop over samples."""

import torch
from torch.nn import functional as F

from nextreid.losses import ProxyLoss


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_the_loss_is_that_of_a_loop(monkeypatch):
    torch.manual_seed(0)
    loss, vectors = ProxyLoss(8, 4, 3, hidden=0.25).double(), torch.randn(5, 8, dtype=torch.float64)
    pid, rows = torch.tensor([2, 0, 2, 3, 1]), torch.tensor([True, True, False, True, True])
    noise = torch.rand(4, 8, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand_like", lambda _: noise)
    each = []
    for n, i in enumerate(rows.nonzero()[:, 0].tolist()):
        f, c, p = unit(vectors[i]), int(pid[i]), loss.proxies
        others = torch.stack([p[d] @ f for d in range(4) if d != c]).mean() / 3
        hidden = noise[n] >= noise[n].sort().values[6]  # two of eight channels
        products = p[c] @ loss.encoder(vectors[i] * ~hidden) / 0.1
        told = loss.decoder(products.softmax(0) @ p[c])
        each.append(others - (p[c] @ f).mean() + (told - vectors[i])[hidden].square().mean())
    torch.testing.assert_close(loss(vectors, pid, rows), torch.stack(each).mean())
    nothing = loss(vectors, pid, torch.zeros(5, dtype=torch.bool))
    assert nothing == 0 and nothing.requires_grad
    assert ProxyLoss(8, 4).encoder is None


def test_proxies_follow_those_that_are_nearest():
    torch.manual_seed(1)
    loss, vectors = ProxyLoss(6, 3, 2).double(), torch.randn(4, 6, dtype=torch.float64)
    pid, rows = torch.tensor([0, 2, 0, 2]), torch.tensor([True, True, True, False])
    before = loss.proxies.detach().clone()
    running = torch.zeros_like(before)
    for _ in range(2):
        expected = before.clone()
        for c in (0, 2):
            mine = [unit(vectors[i]) for i in range(4) if pid[i] == c and rows[i]]
            for k in range(2):
                share = [F.softmax(before[c] @ f / 0.1, 0)[k] for f in mine]
                running[c, k] = 0.9 * running[c, k] + 0.1 * sum(a * f for a, f in zip(share, mine, strict=True))
                expected[c, k] = unit(0.9 * before[c, k] + 0.1 * unit(running[c, k]))
        loss.follow(vectors, pid, rows=rows)
        torch.testing.assert_close(loss.proxies.detach(), expected)
        before = expected
    assert torch.equal(loss.followed[1], torch.zeros(2, 6, dtype=torch.float64))
