"""Batches: when the rest of one is not tried."""

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.services.batch_fairness import FAULTS_IN_A_ROW, FaultCount


def test_late_success_does_not_restart_a_stopped_batch() -> None:
    faults = FaultCount()
    for _ in range(FAULTS_IN_A_ROW):
        faults.check()
        faults.count_answer(fault=True)
    # A request that was already running when the last one failed.
    faults.count_answer(fault=False)
    with pytest.raises(TemporarilyUnavailableError, match="did not try this request"):
        faults.check()


def test_success_between_faults_lets_the_batch_go_on() -> None:
    faults = FaultCount()
    for fault in (True, True, False, True, True):
        faults.count_answer(fault=fault)
    faults.check()
