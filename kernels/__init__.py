"""The numerics: arrays in, arrays out. Imported as ``catapult_fast.kernels`` only."""

if __name__ != "catapult_fast.kernels":
    raise ImportError(f"import catapult_fast.kernels, not {__name__}: a second copy would compile everything twice")
