"""torch's AdamW in one kernel: the same numbers, also after a state of the other form came in."""

import copy

import torch

from megatron_synth.training.optimizer import use_fused_step


def made(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(7, 5, generator=generator).requires_grad_() for _ in range(3)]
    groups = [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}]
    return weights, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def go(weights, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def assert_same(ours, theirs):
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_the_fused_step_gives_the_numbers_of_the_plain_one():
    (plain, plainly), (fused, fusedly) = made(), made()
    use_fused_step(fusedly, device_type="cpu")
    assert all(group["fused"] for group in fusedly.param_groups)
    go(plain, plainly, 5, seed=1)
    go(fused, fusedly, 5, seed=1)
    assert_same(fused, plain)


def test_a_run_goes_on_fused_from_a_state_that_was_not():
    (plain, plainly), (fused, fusedly) = made(), made()
    for weights, optimizer in ((plain, plainly), (fused, fusedly)):
        go(weights, optimizer, 3, seed=1)
    state = copy.deepcopy(fusedly.state_dict())
    state["state"][0]["step"] = 3  # some checkpoints hold a plain number
    fusedly.load_state_dict(state)
    use_fused_step(fusedly, device_type="cpu")
    go(plain, plainly, 3, seed=2)
    go(fused, fusedly, 3, seed=2)
    assert_same(fused, plain)


def test_parameters_elsewhere_keep_the_plain_step():
    _, optimizer = made()
    use_fused_step(optimizer, device_type="cuda")
    assert not any(group["fused"] for group in optimizer.param_groups)
