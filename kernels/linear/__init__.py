"""The two-layer linear network on its compressed state."""
