"""Batched Lanczos for the largest eigenvalue of symmetric operators."""
