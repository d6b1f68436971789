"""Training: recipes, patches, the trainer and its checkpoints, and the options of ``train``."""
