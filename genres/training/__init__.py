"""Training: one trainer on accelerate, photographs, losses and optimisers. A recipe is a small YAML file."""
