"""The one-sample map: two layers, one input, any width (arXiv 2003.02218, section 2)."""
