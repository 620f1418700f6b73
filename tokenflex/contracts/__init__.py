"""What a part must be: the abstract classes people extend and the data that flows between them."""

from tokenflex.contracts.component import Component, ComponentConfig
from tokenflex.contracts.confidence import Confidence
from tokenflex.contracts.host import HostAdapter, HostBatch, HostInputs, PaddingSide, Span, Spliced
from tokenflex.contracts.policy import Policy
from tokenflex.contracts.router import Router
from tokenflex.contracts.rules import Count, NotNegative, Positive, Rule, Share, one_of
from tokenflex.contracts.scaler import Scaler
from tokenflex.contracts.tensors import (
    READ_OFF,
    Ballots,
    Decision,
    Grid,
    Instruction,
    Need,
    ScaledTokens,
    Tried,
    VisualTokens,
)
from tokenflex.contracts.voter import Voter

__all__ = [
    "READ_OFF",
    "Ballots",
    "Component",
    "ComponentConfig",
    "Confidence",
    "Count",
    "Decision",
    "Grid",
    "HostAdapter",
    "HostBatch",
    "HostInputs",
    "Instruction",
    "Need",
    "NotNegative",
    "PaddingSide",
    "Policy",
    "Positive",
    "Router",
    "Rule",
    "ScaledTokens",
    "Scaler",
    "Share",
    "Span",
    "Spliced",
    "Tried",
    "VisualTokens",
    "Voter",
    "one_of",
]
