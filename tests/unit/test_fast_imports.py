"""Nothing collects garbage while modules are imported, and all is as it was afterwards."""

import gc

import pytest

from workloads.imports import fast_imports


def test_the_collector_stands_still_inside_and_runs_again_after_an_error() -> None:
    assert gc.isenabled()
    with fast_imports():
        assert not gc.isenabled()
        with fast_imports():
            pass
        assert not gc.isenabled()  # the outer block is not over
    assert gc.isenabled()
    with pytest.raises(ImportError), fast_imports():
        raise ImportError
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with fast_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
