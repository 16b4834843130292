"""vitlab: Vision Transformer experiments."""
