"""TokenFlex in vLLM: image embeddings of different lengths in one batch."""
