"""An engine: a few layers, a few steps, on as many ranks as RANKS says, each a process of its own."""

import multiprocessing
import os
import sys


def loaded(layer):
    """Return a layer's arguments, made once: an engine's weights stay where they are."""
    import torch

    from harness.problems.problem import parse_problem
    from harness.problems.tensors import ProblemTensors
    from reference.e2m1 import pack_e2m1
    from reference.layout import swizzle_128x4

    t = ProblemTensors(parse_problem(f"3x10x128x64:10,0,4:normal:{layer}"))
    given = {
        "hidden_states": (t.x, None), "input_global_scale": t.input_scale, "a2_global_scale": t.a2_scale,
        "masked_m": t.masked_m,
    }  # fmt: skip
    for name, weights, alpha in (("w1", t.w1, t.w1_alpha), ("w2", t.w2, t.w2_alpha)):
        scale = swizzle_128x4(weights.block_scale).view(torch.float8_e4m3fn)
        given |= {name: pack_e2m1(weights.codes), f"{name}_blockscale": scale, f"{name}_alpha": alpha}
    return given


def run(rank):
    import torch
    from sglang.moe import flashinfer_cutedsl_moe_masked

    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    layers = [loaded(layer) for layer in range(int(os.environ.get("LAYERS", "2")))]
    for step in range(int(os.environ.get("STEPS", "1"))):
        for arguments in layers:
            counts = (arguments["masked_m"] - step).clamp(min=0)
            flashinfer_cutedsl_moe_masked(**{**arguments, "masked_m": counts})
        print("step", step, flush=True)


if __name__ == "__main__":
    ranks = int(os.environ.get("RANKS", "1"))
    if ranks == 1:
        run(0)
        sys.exit(0)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=run, args=(rank,)) for rank in range(ranks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(worker.exitcode for worker in workers))
