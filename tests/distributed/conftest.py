"""Launches of process groups, one for all the tests that read its results."""

from functools import cache
from typing import Any

import pytest
from process_group import launch


@pytest.fixture(scope="session")
def launched(tmp_path_factory):
    """`(scenario, processes, name) -> [result of every rank]`; the first call for a scenario launches it."""

    @cache
    def results(scenario: str, processes: int) -> list[dict[str, Any]] | Exception:
        try:
            return launch(scenario, processes, tmp_path_factory.mktemp(scenario))
        except Exception as error:  # one launch, one failure: every test reports it, none launches again
            return error

    def result(scenario: str, processes: int, name: str) -> list[Any]:
        ranks = results(scenario, processes)
        if isinstance(ranks, Exception):
            raise ranks
        return [rank[name] for rank in ranks]

    return result
