"""The linear network on its scaled blocks: one output, full batch, width of at least r + 1."""
