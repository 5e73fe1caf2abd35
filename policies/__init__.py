"""What is learned: navigation, offline learners, preference models and the diffusion model over them. No Ray."""
