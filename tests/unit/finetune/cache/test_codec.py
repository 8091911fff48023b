"""What goes in comes out: exactly, rounded, or projected; and takes the bytes it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgempi.finetune.cache.codec import Codec, octets
from edgempi.finetune.cache.key import DTYPES, CacheKey
from edgempi.finetune.cache.projection import projection
from edgempi.finetune.cache.record import DamagedError, check


def _back(codec: Codec, layers: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    record = codec.encode(7, layers)
    return codec.decode(record, codec.check(record), dtype)


def test_fp32_is_exact(make_key: Any, hidden: Any, same: Any) -> None:
    assert same(_back(Codec(make_key()), hidden(3)), hidden(3))


def test_fp64_is_exact(make_key: Any, hidden: Any, same: Any) -> None:
    layers = {name: x.double() * torch.pi for name, x in hidden(3).items()}
    assert same(_back(Codec(make_key(dtype="fp64")), layers, torch.float64), layers)


def test_bf16_rounds_once(make_key: Any, hidden: Any, same: Any) -> None:
    rounded = {name: x.bfloat16() for name, x in hidden(3).items()}
    assert same(_back(Codec(make_key(dtype="bf16")), hidden(3), torch.bfloat16), rounded)


def test_int8_errs_by_at_most_half_a_step_of_its_row(make_key: Any, hidden: Any) -> None:
    layers = {name: x * torch.logspace(-8, 8, len(x)).unsqueeze(1) for name, x in hidden(4).items()}
    layers["enc.0"][1] = 0
    for name, got in _back(Codec(make_key(dtype="int8")), layers).items():
        step_R1 = layers[name].abs().amax(dim=1, keepdim=True) / 127
        assert ((got - layers[name]).abs() <= step_R1 * 0.5001).all()
        assert torch.equal(got.abs().argmax(1), layers[name].abs().argmax(1))


def test_int8_does_not_hide_what_is_not_finite(make_key: Any, hidden: Any) -> None:
    layers = hidden(4)
    layers["enc.0"][0, 3] = torch.nan
    layers["enc.0"][1, 3] = -torch.inf
    got = _back(Codec(make_key(dtype="int8")), layers)["enc.0"]
    assert not got[:2].isfinite().any()
    assert got[2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kept", DTYPES)
def test_comes_in_the_dtype_asked_for_and_as_ones_own(make_key: Any, hidden: Any, kept: str, dtype: Any) -> None:
    codec = Codec(make_key(dtype=kept))
    record = codec.encode(1, hidden(1))
    before = record.clone()
    for x in codec.decode(record, codec.check(record), dtype).values():
        assert x.dtype == dtype
        x.zero_()
    assert torch.equal(record, before)


def test_projection_is_orthonormal_and_fixed() -> None:
    matrix = projection(64, 8, seed=5)
    assert matrix.shape == (64, 8)
    assert torch.allclose(matrix.T @ matrix, 8 * torch.eye(8), atol=1e-5)
    assert torch.equal(matrix, projection(64, 8, seed=5))
    assert not torch.allclose(matrix, projection(64, 8, seed=6))
    # The same on every machine and with every version, or what one device cached would mislead another.
    expected = torch.tensor([0.3536, 0.3020, -0.3150, 0.2296])
    assert torch.allclose(projection(64, 8, seed=0)[0, :4], expected, atol=1e-4)


def test_projection_keeps_norms_and_distances() -> None:
    x_TD = torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    ratios = (x_TD @ projection(256, 4, seed=0)).norm(dim=1) / x_TD.norm(dim=1)
    assert 0.99 < ratios.mean() < 1.01
    assert ratios.min() > 0.75
    assert ratios.max() < 1.25


def test_projected_and_full_layers(make_key: Any, hidden: Any, same: Any) -> None:
    key: CacheKey = make_key(factor=4, seed=3, full=("dec.1",))
    codec = Codec(key)
    got = _back(codec, hidden(2))
    matrix = projection(key.width, 4, 3)
    expected = {name: x if name == "dec.1" else x @ matrix for name, x in hidden(2).items()}
    assert {name: x.shape[1] for name, x in got.items()} == {name: key.width_of(name) for name in key.layers}
    for name, x in expected.items():
        assert torch.allclose(got[name], x, atol=1e-5)
        assert torch.allclose(codec.project(hidden(2)[name]), hidden(2)[name] @ matrix)


@pytest.mark.parametrize(("given", "exact"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_a_projection_is_taken_in_fp32_at_least(make_key: Any, hidden: Any, given: Any, exact: Any) -> None:
    key: CacheKey = make_key(factor=4, dtype="fp32" if exact is torch.float32 else "fp64")
    codec, layers = Codec(key), {name: x.to(given) for name, x in hidden(4).items()}
    got = _back(codec, layers, exact)
    for name, x in layers.items():
        wanted = x.to(exact) @ projection(key.width, 4, key.seed).to(exact)
        torch.testing.assert_close(got[name], wanted, rtol=1e-6, atol=1e-6)


def test_parts_of_a_sample_and_empty_layers(make_key: Any, hidden: Any, same: Any) -> None:
    for dtype in DTYPES:
        codec = Codec(make_key(dtype=dtype, full=("dec.1",)))
        only = hidden(2, ("dec.1",))
        assert _back(codec, only).keys() == only.keys()
        nothing = {"enc.0": torch.empty(0, 16), "dec.1": torch.empty(0, 16)}
        assert same(_back(codec, nothing), nothing)


@pytest.mark.parametrize("factor", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_length_is_known_beforehand(make_key: Any, hidden: Any, dtype: str, factor: int) -> None:
    codec = Codec(make_key(dtype=dtype, factor=factor, full=("dec.1",)))
    layers = hidden(3)
    assert codec.encode(3, layers).numel() == codec.nbytes({name: len(x) for name, x in layers.items()})


def test_layers_that_do_not_fit(make_key: Any, hidden: Any) -> None:
    codec = Codec(make_key())
    with pytest.raises(ValueError, match=r"enc\.9 is none of"):
        codec.encode(1, {"enc.9": torch.zeros(2, 16)})
    for wrong in (torch.zeros(2, 15), torch.zeros(1, 2, 16), torch.zeros(2, 16, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"enc\.0 is"):
            codec.encode(1, {"enc.0": wrong})
    for sample in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64 bits"):
            codec.encode(sample, hidden(1))


def test_every_flipped_byte_is_noticed(make_key: Any, hidden: Any) -> None:
    codec = Codec(make_key(dtype="int8"))
    record = codec.encode(1, hidden(1))
    for at in range(record.numel()):
        broken = record.clone()
        broken[at] ^= 0x10
        with pytest.raises(DamagedError):
            codec.check(broken)
        with pytest.raises(DamagedError):
            check(octets(record[:at].clone()))


def test_records_of_another_key_are_refused(make_key: Any, hidden: Any) -> None:
    record = Codec(make_key()).encode(1, hidden(1))
    with pytest.raises(DamagedError, match="another key"):
        Codec(make_key(model="other")).check(record)
