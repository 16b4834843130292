"""What happens in a training."""
