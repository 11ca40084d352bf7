"""The torch side of `vocabulary_pass.py`: a process of its own, because torch is no dependency of mixdistill.

    PYTHON scripts/bench/vocabulary_torch.py PROBLEM.npz cpu|gpu

Prints the names of its rows as a JSON list; then runs the row that each line of standard input names, forwards and
backwards once, and prints its seconds: user seconds of one thread on a CPU, wall seconds on a GPU.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

TOP_K = 20


class Problem:
    """Hidden states `[N, D]` and unembedding `[V, D]` as leaves, targets `[N]`."""

    def __init__(self, path: str, device: str):
        arrays = np.load(path)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        place = {"device": "cuda" if device == "gpu" else "cpu"}
        self.hidden = torch.from_numpy(arrays["hidden"]).to(dtype=dtype, **place).requires_grad_()
        self.unembed = torch.from_numpy(arrays["unembed"].T.copy()).to(dtype=dtype, **place).requires_grad_()
        self.target = torch.from_numpy(arrays["target"].astype(np.int64)).to(**place)

    def forget(self) -> None:
        """Drops the gradients of the last run."""
        self.hidden.grad = self.unembed.grad = None


def dense(problem: Problem, statistics: bool) -> None:
    """Cross entropy on all logits, with the statistics of the vocabulary pass if asked."""
    problem.forget()
    logits = (problem.hidden @ problem.unembed.T).float()
    logp = torch.log_softmax(logits, -1)
    nll = -logp.gather(1, problem.target[:, None])[:, 0]
    if statistics:
        with torch.no_grad():
            top = logp.topk(TOP_K, -1)[0]
            entropy = -(logp.exp() * logp).sum(-1)
            rank = (logp > -nll[:, None]).sum(-1)
            _ = entropy, rank, top.mean(-1), 1 - top.exp().sum(-1), logits.max(-1)
    nll.sum().backward()


def liger(problem: Problem) -> Callable[[], None]:
    """Its fused linear cross entropy (Triton)."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def step() -> None:
        problem.forget()
        loss(problem.unembed, problem.hidden, problem.target).backward()

    return step


def main() -> None:
    """Answers until its input ends."""
    path, device = sys.argv[1:]
    torch.set_num_threads(1)
    problem = Problem(path, device)
    rows: dict[str, Callable[[], None]] = {
        f"torch {torch.__version__} CE + statistics": lambda: dense(problem, True),
        f"torch {torch.__version__} CE, no statistics": lambda: dense(problem, False),
    }
    if device == "gpu" and find_spec("liger_kernel"):
        rows["Liger fused CE, no statistics"] = liger(problem)
    clock = time.perf_counter if device == "gpu" else lambda: resource.getrusage(resource.RUSAGE_SELF).ru_utime
    print(json.dumps(list(rows)), flush=True)
    for line in sys.stdin:
        before = clock()
        rows[line.strip()]()
        if device == "gpu":
            torch.cuda.synchronize()
        print(clock() - before, flush=True)


if __name__ == "__main__":
    main()
