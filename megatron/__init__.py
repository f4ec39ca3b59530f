"""An instrument for scaling-law research on autoregressive and masked-diffusion language models."""

__version__ = "0.1.0"
