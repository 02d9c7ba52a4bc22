"""Settings of JAX that its traces read. A study pins most of them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax

# Numbers never follow these: nonfinite runs are results, and the suite's own programs rely on the standard promotion.
PINNED: dict[str, Any] = {
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_check_tracer_leaks": False,
    "jax_debug_key_reuse": False,
    "jax_softmax_custom_jvp": False,
    "jax_high_dynamic_range_gumbel": False,
    "jax_use_direct_linearize": True,
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_transfer_guard_device_to_device": None,
}

FREE = ("jax_enable_x64", "jax_default_matmul_precision")  # the user's choice: they enter a study's provenance


def current() -> tuple[Hashable, ...]:
    """Return the values of these settings in this thread. A program is valid only for those that it was traced with."""
    return tuple(getattr(jax.config, name, None) for name in (*PINNED, *FREE))
