"""Architectures of other packages, which need not be installed: torchvision, timm and transformers."""
