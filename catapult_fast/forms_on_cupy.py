"""The forms of a linear network's state on a device, through CuPy, and which one a sweep takes."""

from __future__ import annotations

from catapult_fast.compress import Span
from catapult_fast.errors import BackendUnavailable
from catapult_fast.forms import Form
from catapult_fast.sweep import Sweep

__all__ = ["form_of"]


def form_of(sweep: Sweep, span: Span) -> type[Form]:
    """Choose the form of a sweep's state.

    Raises
    ------
    BackendUnavailable
        If no form on the device holds it.
    """
    raise BackendUnavailable(
        f'backend = "cupy" has no form for {len(span.sigma)} data directions in this version; backend = "cpu" has'
    )
