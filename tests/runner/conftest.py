"""Compiled programs kept for all tests of a file."""

from kept_programs import kept_programs

__all__ = ["kept_programs"]
