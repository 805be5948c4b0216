"""Tests that need a real Grid Engine."""
