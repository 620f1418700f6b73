"""Scalers for TokenFlex; the entry points in pyproject.toml say which."""
