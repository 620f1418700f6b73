"""Scalers that resample an image's tokens: adaptive pooling, nested learned queries, attention within regions."""

from tokenflex_resampling.adaptive_pool import AdaptivePoolScaler
from tokenflex_resampling.nested_queries import NestedQueriesScaler
from tokenflex_resampling.region_attention import RegionAttentionScaler

__all__ = ["AdaptivePoolScaler", "NestedQueriesScaler", "RegionAttentionScaler"]
