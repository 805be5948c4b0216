"""Tests that need a real SLURM."""
