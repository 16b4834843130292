"""The networks: the Vision Transformer, its parts, its sizes, and timm's models."""
