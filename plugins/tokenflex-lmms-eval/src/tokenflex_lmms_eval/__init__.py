"""TokenFlex models in lmms-eval, registered as ``tokenflex`` through its entry point group."""
