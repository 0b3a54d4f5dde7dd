"""Memory and time before a run starts, against XLA's own figures for the compiled step."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_jax import classifier, estimate, optim, plugins, state, step
from nest_jax import config as configs
from nest_jax import segmenter as seg
from tests import tiny


def resolved(pick="", **overrides):
    return configs.resolve(tiny.config(pick, **overrides))


def test_memory_and_operations_are_those_of_the_compiled_step():
    config = resolved("method=mib", train__crop_size=64, train__batch_size=16)
    protocol, segmenter = configs.protocol(config), seg.build(config)
    num_old, num_new = len(protocol.old(1)), len(protocol.new(1))
    method = plugins.load("methods", "mib").build(config.method, num_old=num_old, num_new=num_new)
    optimiser = optim.sgd(optim.poly(0.1, 10, 0.9), momentum=0.9, weight_decay=1e-4)

    def models():
        network, stats = seg.init(segmenter, jax.random.key(0), 64)
        old, new = (
            classifier.random(jax.random.key(1), segmenter.channels, count) for count in (num_old, num_old + num_new)
        )
        teacher = {"network": network, "classifier": old, "batch_stats": stats}
        return state.create({**teacher, "classifier": new}, optimiser), teacher

    student, teacher = jax.eval_shape(models)
    frozen = {"teacher": teacher, "table": jnp.zeros(256, jnp.uint8), "key": jnp.zeros(2, jnp.uint32)}
    batch = {"image": np.zeros((16, 64, 64, 3), np.uint8), "label": np.zeros((16, 64, 64), np.uint8)}
    train_step = jax.jit(step.make(segmenter, method, optimiser), donate_argnums=0)
    compiled = train_step.lower(student, frozen, batch).compile()

    found, memory, cost = estimate.step(config, protocol), compiled.memory_analysis(), compiled.cost_analysis()
    assert memory and cost and found.teacher
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes == pytest.approx(found.memory, rel=0.25)
    assert cost["flops"] == pytest.approx(4 * found.forward, rel=0.25)


def test_what_helps_against_too_much_memory_lowers_the_estimate(monkeypatch):
    def memory(**overrides):
        config = resolved(**overrides)
        return estimate.step(config, configs.protocol(config)).memory

    whole = memory()
    assert memory(train__batch_size=4) < whole
    assert memory(train__gradient_accumulation=2) < whole
    assert memory(dtype="bfloat16") < whole
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert memory() < whole


def test_forward_passes_of_a_run():
    config = resolved("method=mib,classifier_init=nest", train__epochs="3,2", classifier_init__epochs=5)
    images = [estimate.Images(80, 16), estimate.Images(20, 24)]  # batches of 8
    steps, passes = estimate.forwards(config, True, 0, images)
    assert steps == 3 * 10 + 2 * 2
    assert passes == 3 * 10 * 3 + 2 + 2 * 2 * 4 + 3 + (1 + 5) * 2
    assert estimate.forwards(config, True, 1, images[1:]) == (4, 16 + 3 + 12)
    plain = resolved("method=finetune,classifier_init=random", train__epochs="3,2")
    assert estimate.forwards(plain, False, 0, images) == (34, 34 * 3 + 2 + 3)


def test_the_line_and_the_warning(monkeypatch, caplog):
    config = resolved()
    protocol = configs.protocol(config)
    monkeypatch.setattr(estimate, "step", lambda *_: estimate.Step(12_000_000_000, 1e12, True))
    monkeypatch.setattr(estimate, "rate", lambda _: 1e12)
    monkeypatch.setattr(estimate, "device_memory", lambda: 80_000_000_000)
    assert estimate.told(config, protocol) == (
        "estimate (1 x cpu): 12.0 GB of 80.0 GB device memory, 4.0e+12 FLOP a step, about 6.7 s to 20 s a step"
    )
    assert not caplog.records
    monkeypatch.setattr(estimate, "device_memory", lambda: 8_000_000_000)
    with caplog.at_level(logging.WARNING):
        told = estimate.told(config, protocol, 1, [estimate.Images(8000, 8)])
    assert "4.0e+12 FLOP a step, 1,000 steps, about 2 h 50 min to 8 h 20 min" in told
    (record,) = caplog.records
    for help_ in ("train.batch_size", "train.gradient_accumulation", "dtype=bfloat16", "sharding.fsdp"):
        assert help_ in record.getMessage()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (9.5, "9.5 s"), (42.4, "42 s"), (6e2, "10 min"), (1.32e4, "3 h 40 min"), (9e4, "25 h")],
)
def test_durations(seconds, text):
    assert estimate._duration(seconds) == text


def test_the_machine_is_measured():
    assert 1e8 < estimate.rate("float32") < 1e15
    assert 1e9 < estimate.device_memory() < 1e14
