"""benchmarks/collective_bytes.py: what it counts in a compiled step, and what it concludes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.collective_bytes import Collective, collectives, efficiency

ROOT = Path(__file__).parent.parent
HLO = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %x)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.2 = f32[8]{0} all-reduce(%part), replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (image: u8[4,64,64,3]) -> f32[] {
  %loop = (s32[], f32[8]{0}) while(%start), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %all-reduce.1 = (f32[64]{0}, bf16[2,3]{1,0:T(8,128)}) all-reduce(%a, %b), replica_groups=[1,4]<=[4], to_apply=%add
  %use = f32[64]{0} get-tuple-element(%all-reduce.1), index=0
  %all-gather-start = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), replica_groups=[1,4]<=[4], dimensions={0}
  %all-gather-done = f32[16]{0} all-gather-done(%all-gather-start)
  %reduce-scatter.1 = f32[5]{0} reduce-scatter(%d), replica_groups=[2,2]<=[4], dimensions={0}, to_apply=%add
  %start = (pred[4]{0}, pred[4]{0}, u32[], u32[]) collective-permute-start(%e), source_target_pairs={{0,1}}
}
"""


def test_every_collective_is_counted_as_often_as_it_runs():
    assert collectives(HLO, 4) == [
        Collective("all-reduce", 32, 2, 5),
        Collective("all-reduce", 4 * 64 + 2 * 6, 4, 1),
        Collective("all-gather", 64, 4, 1),
        Collective("reduce-scatter", 20, 2, 1),
        Collective("collective-permute", 4, 4, 1),
    ]


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="loop of unknown length"):
        collectives(re.sub(", backend_config=.*", "", HLO), 4)


@pytest.mark.parametrize(
    ("kind", "sent"), [("all-reduce", 1500), ("all-gather", 750), ("reduce-scatter", 3000), ("collective-permute", 1000)]
)  # fmt: skip
def test_bytes_that_a_ring_sends(kind, sent):
    assert Collective(kind, 1000, 4, 1).sent() == sent
    assert Collective(kind, 1000, 4, 3).sent() == 3 * sent


def test_efficiency_is_the_share_of_computation():
    work = {"gradient": 1e9, "operations": 1e12, "sustained": 0.5}  # 0.02 s at 100 TFLOP/s
    torus, nodes = (100, 100, 0, 0), (100, 100, 2, 10)
    # Two chips: 1e9 bytes each at 100 GB/s. Four in nodes of two: then half of them at 10 GB/s.
    assert efficiency(torus, 2, **work, rounds=0, latency=1) == pytest.approx(0.02 / 0.03)
    assert efficiency(nodes, 4, **work, rounds=0, latency=1) == pytest.approx(0.02 / (0.02 + 0.01 + 0.05))
    assert efficiency(torus, 4, **work, rounds=10, latency=0.001) == pytest.approx(0.02 / (0.02 + 0.015 + 0.02))


def test_the_compiled_step_sends_what_the_formula_says():
    script = ROOT / "benchmarks/collective_bytes.py"
    command = [sys.executable, str(script), "--config=configs/shapes.py:method=mib", "--devices=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    formula = re.search(r"together ([\d.]+) MB", told.stdout)
    measured = re.search(r"all-reduce +\d+ +\d+ +([\d.]+)", told.stdout)
    assert formula and measured, told.stdout
    assert float(measured[1]) == pytest.approx(float(formula[1]), abs=0.005)  # and a few scalars
    assert "H100" in told.stdout
