"""Counter-based random numbers: the published generator, uniform, and a function of seed and counters alone."""

import torch

from refine.ops.seeded_draws import mix, uniform


def test_the_first_numbers_are_those_of_the_published_generator():
    # SplitMix64 seeded with 0 starts 0xE220A8397B1DCDAF; with 1234567, 6457827717110365317
    assert mix(torch.tensor([0])).item() == 0xE220A8397B1DCDAF - (1 << 64)
    assert mix(torch.tensor([1234567])).item() == 6457827717110365317


def test_numbers_are_uniform_over_seeds_and_over_counters():
    over_seeds = uniform(torch.arange(100_000), 3)
    over_counters = uniform(torch.tensor([7]), torch.arange(100_000))
    for numbers in (over_seeds, over_counters):
        assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
        counts = torch.histc(numbers, 100, 0, 1)
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 170  # chi squared, 99 degrees of freedom: p < 1e-5
    assert abs(float(torch.corrcoef(torch.stack([over_seeds[1:], over_seeds[:-1]]))[0, 1])) < 0.02


def test_a_number_depends_on_its_own_seed_and_counters_alone():
    seeds = torch.tensor([5, -6, 2**62])
    together = uniform(seeds, 1, 2)
    assert all(uniform(seeds[i : i + 1], 1, 2).item() == together[i].item() for i in range(3))
    assert uniform(seeds, 2, 1).ne(together).all()
