"""Devices for tests marked ``gpu``, which skip with the reason where there is none."""

import pytest


@pytest.fixture
def on_device():
    """``on_device(backend)`` skips the test, saying why, unless that back end runs here on a device."""

    def need(backend):
        from catapult_fast import devices

        why = "Numba simulates the device" if devices.simulated() else devices.reason(backend)
        if why is not None:
            pytest.skip(why)

    return need
