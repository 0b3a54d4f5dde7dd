"""The worker: `python -m reference INPUTS.npz eager|compile`."""

# pyright: reportMissingImports=false
import sys
import time

import numpy as np
import torch

from . import pipe
from .step import make


def main():
    step, student, device = make(sys.argv[1], compiled=sys.argv[2] == "compile")
    cuda = device.type == "cuda"

    def timed(steps):
        found = {}
        if cuda:
            torch.cuda.synchronize()
        clock = time.perf_counter()
        for _ in range(steps):
            found = step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - clock, {name: float(value) for name, value in found.items()}

    def first():
        seconds, terms = timed(1)
        return {"seconds": seconds, "terms": terms, "device": torch.cuda.get_device_name() if cuda else "cpu"}

    def parameters(path):
        np.savez(path, **{name: value.detach().float().cpu().numpy() for name, value in student.state_dict().items()})
        # PyTorch leaves alone what the loss does not reach, even by weight decay
        unreached = [name for name, value in student.named_parameters() if value.requires_grad and value.grad is None]
        return {"unreached": unreached}

    def settle():
        timed(2)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        pipe.forget_peak()
        return {}

    def run(steps):
        return {"seconds": timed(steps)[0]}

    def peak():
        return {"bytes": torch.cuda.max_memory_allocated() if cuda else pipe.peak_resident_bytes()}

    pipe.serve({"first": first, "parameters": parameters, "settle": settle, "run": run, "peak": peak})


if __name__ == "__main__":
    main()
