"""``tokenflex serve``: an OpenAI-compatible endpoint over ``FlexModel.generate``, or in front of a vLLM server.

Needs ``pip install 'tokenflex[serve]'``. `limits` says what a request may cost, `protocol` what it may say,
`images` where its images may come from; an engine (`transformers_engine`, `vllm_engine`) answers, and `app` puts them
together.
"""
