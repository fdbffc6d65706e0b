"Small files for readers: how much is lost, and what is refused."
import lzma
import random

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from s2dm.core import DataError, ParameterError
from s2dm.packing import BLOCK, pack, restored, rounded, unpack


@given(
    numbers=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=100),
    bits=st.integers(2, 8))
def test_every_number_is_off_by_half_a_scale_at_most(numbers, bits):
    x = torch.tensor(numbers)
    some = rounded(x, bits)
    scale = some.scales.float().repeat_interleave(BLOCK)[:len(x)]
    # numbers too small for half precision become zero
    off = (restored(some, x.shape) - x).abs()
    assert (off <= torch.maximum(scale / 2 * 1.001, torch.tensor(6e-5))).all()
    assert some.integers.abs().max() <= 2 ** (bits - 1) - 1


def weights(seed, scale=1.):
    draw = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": scale * torch.randn(40, 33, generator=draw) for i in range(3)}


def test_differences_lose_a_few_percent_of_their_norm_and_shrink():
    before, change = weights(0), weights(1, .02)
    learned = {name: before[name] + change[name] for name in before}
    sizes = {}
    for bits, most in ((4, .12), (6, .03), (8, .007)):
        data = pack(learned, before, bits)
        sizes[bits] = len(data)
        back = unpack(data, before)
        for name, weight in learned.items():
            assert (back[name] - weight).norm() < most * change[name].norm()
    assert sizes[4] < sizes[6] < sizes[8] < 4 * 3 * 40 * 33 / 2


def test_damage_is_an_error_or_changes_nothing():
    before = weights(0)
    data = pack(weights(2), before)
    right = unpack(data, before)
    rng = random.Random(0)
    for _ in range(150):
        broken = bytearray(data)
        if rng.random() < .5: broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        else: del broken[rng.randrange(len(broken)):]
        try: found = unpack(bytes(broken), before)
        except DataError: continue
        assert all(torch.equal(found[name], right[name]) for name in right)


@pytest.mark.parametrize("change, says", [
    ({"layer0.weight:scales": None}, "is broken: layer0.weight"),
    ({"layer0.weight:integers": torch.zeros(4, BLOCK)}, "is broken: layer0.weight"),
    ({"layer0.weight:scales": torch.full((42,), torch.inf).half()}, "is broken: layer0.weight"),
    ({"foreign:scales": torch.ones(1).half()}, "foreign is unknown")])
def test_what_does_not_fit_is_named(change, says):
    before = weights(0)
    tensors = safetensors.torch.load(lzma.decompress(pack(weights(2), before))) | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    data = lzma.compress(safetensors.torch.save(tensors))
    with pytest.raises(DataError, match=f"mine.xz.*{says}"): unpack(data, before, "mine.xz")


def test_numbers_that_no_half_precision_holds_are_refused():
    with pytest.raises(ParameterError, match="not finite"): rounded(torch.tensor([1e9]))
