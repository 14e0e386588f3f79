"""What a run leaves on disk: checkpoints, latents, exported models, atlases."""
