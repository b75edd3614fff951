"""The registry's rows, one module per subject.

Read them in this order: `humans` (who approves), `agents` (whose program acts, with its enrolment
codes and barred keys), `service_providers` (whose API it calls, with their secrets), `catalogues`
(in whose words), `service_logos` (with which picture), `grants` (what was asked and approved),
`approvers` (who decides for whom) and `tokens` (what was issued). `pairwise_subjects` says which
key makes a person's `sub` at a service provider. `spent_proofs` are those of the replay cache,
`idempotency` keeps answers, and `recorded_settings` the settings that all processes must share.
Constraints and triggers enforce what a row may become; services change rows, and no other app does.
"""

from registry.models.agents import Agent, BarredKey, EnrolmentCode
from registry.models.approvers import Absence, ApprovalRule, ApproverGroup, GroupMember
from registry.models.catalogues import CatalogueVersion
from registry.models.grants import Grant, Renewal
from registry.models.humans import Human
from registry.models.idempotency import IdempotencyRecord
from registry.models.pairwise_subjects import PairwiseSubject
from registry.models.recorded_settings import Installation
from registry.models.service_logos import ServiceLogo
from registry.models.service_providers import ServiceProvider, ServiceProviderSecret
from registry.models.spent_proofs import SpentProof
from registry.models.tokens import Token

__all__ = [
    "Absence",
    "Agent",
    "ApprovalRule",
    "ApproverGroup",
    "BarredKey",
    "CatalogueVersion",
    "EnrolmentCode",
    "Grant",
    "GroupMember",
    "Human",
    "IdempotencyRecord",
    "Installation",
    "PairwiseSubject",
    "Renewal",
    "ServiceLogo",
    "ServiceProvider",
    "ServiceProviderSecret",
    "SpentProof",
    "Token",
]
