"""What is learned of driving scenes."""
