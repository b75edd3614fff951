"""The registry's rows, one module per subject."""

from registry.models.agents import Agent, BarredKey, EnrolmentCode
from registry.models.grants import Grant
from registry.models.installation import Installation
from registry.models.people import Human
from registry.models.requests import IdempotencyRecord, SpentProof
from registry.models.service_providers import ServiceProvider, ServiceProviderSecret
from registry.models.subjects import PairwiseSubject
from registry.models.tokens import Token

__all__ = [
    "Agent",
    "BarredKey",
    "EnrolmentCode",
    "Grant",
    "Human",
    "IdempotencyRecord",
    "Installation",
    "PairwiseSubject",
    "ServiceProvider",
    "ServiceProviderSecret",
    "SpentProof",
    "Token",
]
