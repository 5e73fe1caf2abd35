"""Where it runs: Ray sessions. Stands on nothing but Ray."""
