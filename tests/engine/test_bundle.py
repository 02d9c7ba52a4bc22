"""Arrays pass through a bundle, a compiled program and back without a change of name, dtype, shape, order or bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from relu_study.engine.bundle import Bundle, separate


def drawn(seed: int) -> dict[str, np.ndarray]:
    """The arrays of a measurement of three runs: every dtype and rank, with NaN payloads, -0 and empty axes."""
    generator = np.random.default_rng(seed)
    loss = np.array([np.nan, -0.0, np.inf], np.float32)
    loss.view(np.uint32)[0] = 0x7FC00123
    return {
        "metric:loss": loss,
        "histogram:pre": generator.integers(-(2**31), 2**31, (3, 65)).astype(np.int32),
        "metric:norm": generator.normal(size=3).astype(np.float32),
        "dead:site_1": generator.integers(0, 256, (3, 2)).astype(np.uint8),
        "finite": np.array([True, False, True]),
        "square": generator.normal(size=(3, 2, 2)).astype(np.float32),
        "none": np.zeros((3, 0), np.uint8),
    }


def test_a_bundle_returns_the_same_bits() -> None:
    program = jax.jit(lambda arrays: Bundle.of(arrays))
    measured = [drawn(epoch) for epoch in range(4)]
    bundles = [program(jax.tree.map(jnp.asarray, arrays)) for arrays in measured]
    assert sorted(bundles[0].joined) == ["bool", "float32", "int32", "uint8"]
    for runs in (3, 2):
        returned = separate(bundles, runs)
        assert list(returned) == sorted(measured[0])  # a jitted function sorts the names of a dictionary
        for name, values in returned.items():
            expected = np.stack([arrays[name][:runs] for arrays in measured], axis=1)
            assert values.dtype == expected.dtype and values.shape == expected.shape
            assert values.tobytes() == expected.tobytes() and values.flags.writeable and values.flags.c_contiguous
