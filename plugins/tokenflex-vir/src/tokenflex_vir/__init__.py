"""The visual resolution router of InternVL3.5-Flash (arXiv 2508.18265): parts, and how they are trained."""

from tokenflex_vir.consistency import ConsistencyObjective
from tokenflex_vir.gate import GateObjective
from tokenflex_vir.labels import RunningQuantile, gate_loss, loss_ratio, vir_targets
from tokenflex_vir.quantile_gate import QuantileGatePolicy
from tokenflex_vir.tile_gate import TileGateRouter
from tokenflex_vir.two_rates import TwoRatesScaler

__all__ = [
    "ConsistencyObjective",
    "GateObjective",
    "QuantileGatePolicy",
    "RunningQuantile",
    "TileGateRouter",
    "TwoRatesScaler",
    "gate_loss",
    "loss_ratio",
    "vir_targets",
]
