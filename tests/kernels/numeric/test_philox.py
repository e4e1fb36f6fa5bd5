"""Counter-based random numbers: against the published test vectors, and the same however they are asked for."""

import numpy as np

from lora_kernels.numeric.philox import _philox, keep_mask, random_bits, stream_key, uniform


def test_zero_key_and_counter_give_the_published_vector():
    # Random123's kat_vectors: philox4x32-10, counter 0, key 0.
    words = _philox(np.zeros(1, np.uint64), 0, 0)[0]
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_any_range_is_a_slice_of_the_whole():
    key = stream_key(7, "model.layers.0.q_proj")
    whole = random_bits(key, 0, 1000)
    for first, count in ((0, 1000), (1, 5), (3, 1), (4, 4), (997, 3), (10, 0)):
        assert np.array_equal(random_bits(key, first, count), whole[first : first + count])


def test_counters_past_32_bits_do_not_repeat():
    key = stream_key(0, "w")
    assert not np.array_equal(random_bits(key, 0, 8), random_bits(key, 4 * 2**32, 8))


def test_names_and_seeds_make_different_streams():
    assert len({stream_key(seed, name) for seed in range(3) for name in ("a", "b")}) == 6


def test_uniform_is_in_range_and_has_the_right_mean():
    numbers = uniform(stream_key(1, "x"), 0, 1 << 16)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Five standard errors of the mean of 65536 uniform numbers.
    assert abs(float(numbers.mean(dtype=np.float64)) - 0.5) < 5 * (1 / 12) ** 0.5 / 256


def test_a_mask_keeps_what_is_below_the_density_exactly():
    key = stream_key(1, "x")
    numbers = uniform(key, 5, 5000)
    # Densities that are some element's own number, and just above it, where a rounding would show.
    for density in (0.0, 0.3, 1.0, float(numbers[0]), float(numbers[0]) + 2.0**-40, float(numbers.max())):
        expected = numbers.astype(np.float64) < density
        assert np.array_equal(keep_mask(key, 5, 5000, density), expected)
