"""What is simulated: road networks, demand and macro observables. Neither Ray nor torch is imported here."""
