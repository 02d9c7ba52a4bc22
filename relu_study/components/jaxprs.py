"""Parameters of jaxpr equations that differ between versions of JAX."""

from __future__ import annotations

from typing import Any


def scan_operands(eqn: Any) -> tuple[int, int]:
    """Return the number of constants and of carried values of a scan; its other operands are sliced."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)
