"""Published ways of selecting visual tokens, and two training-free routers, as parts of TokenFlex."""

from tokenflex_selection.cdpruner import CDPrunerScaler
from tokenflex_selection.dart import DARTScaler
from tokenflex_selection.divprune import DivPruneScaler
from tokenflex_selection.effective_rank import EffectiveRankRouter
from tokenflex_selection.farthest_point import FarthestPointScaler
from tokenflex_selection.holov import HoloVScaler
from tokenflex_selection.id_selection import IDSelectionScaler
from tokenflex_selection.mmtok import MMTokScaler
from tokenflex_selection.mutual_information import MutualInformationRouter
from tokenflex_selection.norm import NormScaler
from tokenflex_selection.top_attention import TopAttentionScaler
from tokenflex_selection.vispruner import VisPrunerScaler

__all__ = [
    "CDPrunerScaler",
    "DARTScaler",
    "DivPruneScaler",
    "EffectiveRankRouter",
    "FarthestPointScaler",
    "HoloVScaler",
    "IDSelectionScaler",
    "MMTokScaler",
    "MutualInformationRouter",
    "NormScaler",
    "TopAttentionScaler",
    "VisPrunerScaler",
]
