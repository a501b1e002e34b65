"""Sweeps on a device through the worker processes of a Dask cluster: one device for each, and one that is lost."""

import importlib
import os
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import catapult_fast as cf

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install catapult-fast[dask]")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this system has no such signals")

SWEEP = cf.Sweep(
    cf.load_dataset("one-sample", dim=2), cf.TwoLayerLinear(256), kappa=np.linspace(0.2, 5, 48), steps=8,
    record=cf.Record(every=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def client():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster, set_as_default=False) as made:
        yield made


@pytest.fixture(scope="module")
def local():
    return cf.run(SWEEP, backend="cuda", progress=False)


def assert_same_bits(results, local):
    assert results.attrs["backend"] == "cuda"
    for name in local.dims:
        assert_array_equal(getattr(results, name), getattr(local, name), err_msg=name)


def rank_and_process(dask_worker):
    return importlib.import_module("catapult_fast.devices")._ranks[:], os.getpid()


def test_workers_compute_the_same_bits_each_on_its_device(client, local):
    assert_same_bits(cf.run(SWEEP, backend="cuda", executor=client, shard_members=8, progress=False), local)
    ranks, _ = zip(*client.run(rank_and_process).values(), strict=True)
    assert sorted(ranks) == [[0], [1]]


# What follows runs in workers.


def lose_the_device(dask_worker):
    """Shards of the second worker fail as with a dead context, until its process is another one."""
    module = importlib.import_module("catapult_fast.dask_worker")
    if dask_worker.name == 1:

        def fail(*given, **options):
            raise module.DeadDevice("the device is lost to this process after a failed launch (CUDA error 719)")

        module.compute_shard = fail


def test_a_lost_device_costs_one_worker(client, local):
    before = {process for _, process in client.run(rank_and_process).values()}
    client.run(lose_the_device)
    assert_same_bits(cf.run(SWEEP, backend="cuda", executor=client, shard_members=8, progress=False), local)
    client.wait_for_workers(2, timeout=60)
    after = {process for _, process in client.run(rank_and_process).values()}
    assert len(after) == 2
    assert len(before & after) == 1  # the other one was started anew
