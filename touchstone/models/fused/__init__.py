"""Networks prepared for inference: folded normalization, packed convolutions."""
