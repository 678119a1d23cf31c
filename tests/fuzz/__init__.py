"""What drives random deliveries through the whole ingress; ``make fuzz`` does it for long."""
