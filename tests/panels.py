"""Array code on NumPy in the place of a device, for tests."""

from functools import partial

import numpy as np

import catapult_fast as cf
from catapult_fast import devices, forms_on_cupy


def put_numpy_in_place(monkeypatch):
    """Let ``backend="cupy"`` compute on NumPy."""
    monkeypatch.setattr(forms_on_cupy, "module", lambda: np)
    monkeypatch.setattr(devices, "reason", lambda backend: None)
    monkeypatch.setattr(forms_on_cupy, "goes_once", lambda r: False)
    monkeypatch.setattr(devices, "use", lambda backend: None)


def force(monkeypatch, name):
    """Have every sweep that can take the blocks take this form of them; "Root": none of them."""
    if name == "PanelRoot":
        monkeypatch.setattr(forms_on_cupy.forms, "form_of", lambda sweep, span: forms_on_cupy.forms.Root)
    else:
        monkeypatch.setattr(forms_on_cupy, "_seconds_shared", lambda *_: 0.0 if name == "SharedBlocks" else 2.0)
        monkeypatch.setattr(forms_on_cupy, "_seconds_own", lambda *_: 1.0)


run = partial(cf.run, backend="cupy", progress=False)
