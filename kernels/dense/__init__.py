"""Top eigenpairs of dense symmetric matrices, with bounds whose rounding is accounted for."""
