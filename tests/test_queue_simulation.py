"""The simulated queue: nothing is lost, and it behaves as its causes demand."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.queue_simulation import Load, most, simulate

BASE = Load(gpus=4, requests_an_hour=300, hours=1.0)


def test_the_same_seed_gives_the_same_result_and_another_one_does_not():
    assert simulate(BASE) == simulate(BASE)
    assert simulate(BASE) != simulate(dataclasses.replace(BASE, seed=2))


def test_without_waiting_and_loading_the_work_is_the_sum_of_the_images():
    quiet = Load(gpus=50, requests_an_hour=60, hours=2.0, loading=0.0, encoding=0.0, seconds=dict.fromkeys(
        ("text", "style", "subject", "both"), 10.0))  # fmt: skip
    served = simulate(quiet)
    assert served.late_wait == 0.0
    assert 0.7 * served.images * 10 / (50 * 7200) < served.work <= served.images * 10 / (50 * 7000)


def test_lost_workers_cost_time_but_no_request():
    calm, lossy = simulate(BASE), simulate(dataclasses.replace(BASE, lost_each_hours=0.2))
    assert lossy.losses > 0 == calm.losses
    assert (lossy.requests, lossy.images) == (calm.requests, calm.images)
    assert lossy.late_wait >= calm.late_wait


def test_more_gpus_wait_less_and_affinity_loads_less():
    assert simulate(dataclasses.replace(BASE, gpus=8)).late_wait <= simulate(BASE).late_wait
    quiet = dataclasses.replace(BASE, gpus=8, requests_an_hour=60, other_model=0.2)
    assert simulate(quiet).loads < simulate(dataclasses.replace(quiet, affinity=False)).loads


def test_the_most_is_the_border():
    found = most(BASE, patience=30.0)
    assert simulate(found).late_wait <= 30.0
    assert simulate(dataclasses.replace(found, requests_an_hour=1.3 * found.requests_an_hour)).late_wait > 30.0


@pytest.mark.parametrize("gpus", [1, 8])
def test_nobody_comes(gpus):
    assert simulate(Load(gpus=gpus, requests_an_hour=0.0)).requests == 0
