"""Several replicas: the penalty counts once, and all replicas stay the same."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import torch
import gpureg.torch
from gpureg import L1L2

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()


x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
for how in ("attached", "proximal", "in the loss"):
    model, alone = network(), network()
    replicated = torch.nn.parallel.DistributedDataParallel(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (replicated, alone)]
    penalties = [gpureg.torch.Penalty(each, L1L2(0.03, 0.05)) for each in (replicated, alone)]
    if how != "in the loss":
        handles = [
            gpureg.torch.attach(one, penalty, proximal=how == "proximal")
            for one, penalty in zip(optimizers, penalties)
        ]
    for step in range(5):
        for each, part, optimizer, penalty in zip(
            (replicated, alone), (x.chunk(size)[rank], x), optimizers, penalties
        ):
            optimizer.zero_grad()
            loss = each(part).square().mean()
            (loss + penalty() if how == "in the loss" else loss).backward()
            optimizer.step()
        # The value is that of one replica: not one for each.
        assert torch.allclose(penalties[0](), penalties[1](), rtol=1e-12, atol=0), how
        if how != "in the loss":
            assert torch.allclose(handles[0].value, handles[1].value, rtol=1e-12, atol=0), how
    for p, q in zip(model.parameters(), alone.parameters()):
        assert torch.allclose(p, q, rtol=0, atol=1e-12), how
        every = [torch.empty_like(p) for _ in range(size)]
        torch.distributed.all_gather(every, p.detach())
        assert all(torch.equal(one, every[0]) for one in every), how
torch.distributed.destroy_process_group()
print("done")
"""


def test_two_replicas_train_as_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program)]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    assert [output.splitlines()[-1] for output in outputs] == ["done", "done"], "\n".join(outputs)
    assert [rank.returncode for rank in ranks] == [0, 0]
