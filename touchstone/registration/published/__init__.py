"""What is published with a model's weights, and need not be asked for: configurations of transformers and
timm, and what installed packages say of their architectures. Never imports torch.
"""
