"""What happens to the gradients before the step."""
