"""Named cases, measured beside peers in one run. Imported as ``catapult_fast.bench`` only."""

if __name__ != "catapult_fast.bench":
    raise ImportError(f"import catapult_fast.bench, not {__name__}: it belongs to the package catapult_fast")
