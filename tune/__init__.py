"""What searches: sweeps over whole experiments."""
