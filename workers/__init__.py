"""What actors run: SUMO rollouts, learner shards, the reward service, and the fleet that keeps them alive."""
