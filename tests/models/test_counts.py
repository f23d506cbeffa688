"""What the head and a step cost, counted: counts never vary, so that a change that costs more is seen."""

import pytest

from benchmarks.speed.counts import aggregation, head_step, inference, optimizer_calls, tower_calls


def test_a_training_step_of_the_head():
    written, ours = (head_step(768, 4.0, 0.1, form) for form in ("reference", "torch"))
    assert written.flops > 4.9e12 and ours.flops <= 4.4e12
    assert written.calls > 800 and ours.calls <= 310
    assert written.bytes > 32 * 2**30 and ours.bytes <= 19.6 * 2**30


def test_a_training_step_with_the_kernels_as_operators():
    ours = head_step(768, 4.0, 0.1, "kernels")
    assert ours.calls <= 225 and ours.bytes <= 18.5 * 2**30


def test_without_dropout_no_second_layer_meets_a_token():
    written, ours = (head_step(768, 4.0, 0.0, form) for form in ("reference", "torch"))
    assert written.flops > 4.9e12 and ours.flops <= 2.6e12
    assert ours.calls <= 400 and ours.bytes <= 22.9 * 2**30  # no slices of stacked parameters in the graph


@pytest.mark.parametrize("batch", [1, 16])
def test_flops_grow_with_the_batch_alone(batch):
    assert head_step(768, 4.0, 0.1, "torch", batch).flops <= batch * 4.4e12 / 64 + 3e10


def test_inference_skips_what_is_sampled_out():
    written, ours = inference(768, 4.0)
    assert written > 25e9 and ours <= 11.5e9


def test_keys_and_values_are_not_formed():
    written, ours = aggregation(768)
    assert written > 3.6e9 and ours <= 0.25e9


def test_one_fused_optimizer_and_one_call_of_the_tower():
    assert optimizer_calls() <= 10 < 1000 < optimizer_calls(fused=False)
    assert tower_calls() == 1
