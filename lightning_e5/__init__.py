"""lightning_e5: E5 text embeddings (arXiv 2212.03533) as a PyTorch Lightning experiment project.

.. include:: ../docs/terms.md
"""

__version__ = "0.1.0"
