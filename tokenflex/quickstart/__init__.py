"""The embedded default: a small AVG-LLaVA trained end to end, here and now, on real images."""
