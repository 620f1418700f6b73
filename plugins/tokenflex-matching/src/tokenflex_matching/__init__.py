"""Scalers that match tokens with one another and merge or keep the best, and two routers that need no training."""
