"""Fixtures for fewer compilations."""

from kept_programs import kept_programs, one_device

__all__ = ["kept_programs", "one_device"]
