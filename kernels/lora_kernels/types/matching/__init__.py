"""What rooms match an adapter's tensors with: the adapter beside the base, target weights, refusals."""
