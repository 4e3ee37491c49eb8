"""From a recipe to a supervised training run."""
