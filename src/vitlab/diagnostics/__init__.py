"""What a configuration spends its time on, and which changes would make it faster."""
