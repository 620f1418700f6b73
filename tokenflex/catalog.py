"""Names of the built-in components and where they live. Strings only: reading this imports nothing."""

SCALERS = {
    "average-pool": "tokenflex.scalers.average_pool:AveragePoolScaler",
    "random": "tokenflex.scalers.random:RandomScaler",
    "resize": "tokenflex.scalers.resize:ResizeScaler",
    "stride": "tokenflex.scalers.stride:StrideScaler",
}
ROUTERS = {
    "avg": "tokenflex.routers.avg:AVGRouter",
    "constant": "tokenflex.routers.constant:ConstantRouter",
    "random": "tokenflex.routers.random:RandomRouter",
}
VOTERS = {
    "mean": "tokenflex.voters.mean:MeanVoter",
    "position-weighted": "tokenflex.voters.position_weighted:PositionWeightedVoter",
}
POLICIES = {
    "argmax": "tokenflex.policies.argmax:ArgmaxPolicy",
    "constant": "tokenflex.policies.constant:ConstantPolicy",
}
HOSTS = {
    "llava_next": "tokenflex.hosts.llava_next:LlavaNextAdapter",
}
