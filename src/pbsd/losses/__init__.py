"""Loss functions on tensors: torch only, pure, nothing about models or trainers."""
